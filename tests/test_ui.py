"""The page's server over real HTTP: what it answers, and what may go wrong."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from ui_pages import CLASSES, photo_bytes, serving

from partialnet.checkpoint import create_checkpoint
from partialnet.errors import UserError
from partialnet.explain import Explainer, read_gates
from partialnet.explain.run import open_networks as open_explained
from partialnet.ui import Network, PageServer, Viewer, open_networks
from partialnet.ui import answers as ui_answers
from partialnet.ui import server as ui_server
from partialnet.ui import speed as ui_speed
from partialnet_cli import main

pytest.importorskip("pytorch_grad_cam")


def request(
    server: PageServer, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    try:
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def ask(server: PageServer, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    status, content, _ = request(server, method, path, body)
    return status, json.loads(content)


def decode(url: str) -> np.ndarray:
    import base64

    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


# ---- answers


def test_photo(page_server: PageServer, page_runs: tuple[Path, Path]) -> None:
    status, answer = ask(page_server, "POST", "/api/photos?name=a.png", photo_bytes())
    assert status == 200
    assert (answer["width"], answer["height"]) == (120, 80)
    image = Image.open(io.BytesIO(photo_bytes())).convert("RGB")
    assert (decode(answer["picture"]) == np.asarray(image)).all()
    for network, found in zip(open_networks([str(run) for run in page_runs]), answer["networks"], strict=True):
        probabilities = network.explainer.probabilities(network.explainer.prepare([image]))[0]
        told = {row["name"]: row["probability"] for row in found["classes"]}
        assert told == pytest.approx(dict(zip(CLASSES, probabilities.tolist(), strict=True)))
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert found["map"]["target"] == answer["networks"][0]["classes"][0]["name"]
        assert decode(found["map"]["picture"]).shape == (80, 120, 3)
    ours, peer = answer["networks"]
    gates = read_gates(open_networks([str(page_runs[0])])[0].explainer, image)
    assert [(row["stage"], row["block"]) for row in ours["gates"]["spatial"]] == [
        (gate.stage, gate.index) for gate in gates.spatial
    ]
    for row, gate in zip(ours["gates"]["channel"], gates.channel, strict=True):
        assert sum(row["counts"]) == row["channels"] == gate.values.size
        assert row["mean"] == pytest.approx(float(gate.values.mean()), abs=1e-6)
    assert peer["gates"]["spatial"] == peer["gates"]["channel"] == []


def test_stage_and_class_of_maps(page_server: PageServer) -> None:
    _, photo = ask(page_server, "POST", "/api/photos?name=a.png&stage=2", photo_bytes())
    assert [own["map"]["stage"] for own in photo["networks"]] == [2, 2]
    status, answer = ask(page_server, "GET", f"/api/photos/{photo['photo']}/maps?stage=3&target=church")
    assert status == 200
    assert [(row["stage"], row["target"]) for row in answer["maps"]] == [(3, "church")] * 2
    _, other = ask(page_server, "GET", f"/api/photos/{photo['photo']}/maps?stage=1&target=church")
    assert other["maps"][0]["picture"] != answer["maps"][0]["picture"]
    _, absent = ask(page_server, "GET", f"/api/photos/{photo['photo']}/maps?stage=9")
    assert all("no stage 9" in row["error"] for row in absent["maps"])


def test_attention_follows_the_place(page_server: PageServer, page_runs: tuple[Path, Path]) -> None:
    _, photo = ask(page_server, "POST", "/api/photos", photo_bytes())
    path = f"/api/photos/{photo['photo']}/attention"
    _, first = ask(page_server, "GET", f"{path}?x=0.3&y=0.2")
    _, second = ask(page_server, "GET", f"{path}?x=0.7&y=0.9")
    image = Image.open(io.BytesIO(photo_bytes())).convert("RGB")
    expected = read_gates(open_networks([str(page_runs[0])])[0].explainer, image).attention_from((0.3 * 120, 0.2 * 80))
    ours, peer = first["attention"]
    for block, (gate, weights) in zip(ours["blocks"], expected, strict=True):
        assert (block["stage"], block["block"], len(block["heads"])) == (gate.stage, gate.index, weights.shape[0])
        assert block["max"] == pytest.approx(float(weights.mean(0).max()), abs=1e-6)
    assert peer["blocks"] == []
    assert ours["blocks"][0]["picture"] != second["attention"][0]["blocks"][0]["picture"]
    # the left end is cropped away before the network; that is no failure of the others
    status, outside = ask(page_server, "GET", f"{path}?x=0.01&y=0.5")
    assert status == 200
    assert "does not see the point" in outside["attention"][0]["error"]
    # the very edge belongs to the photograph
    assert "error" not in ask(page_server, "GET", f"{path}?x=0.5&y=1")[1]["attention"][0]
    assert ask(page_server, "GET", f"{path}?x=1.5&y=0")[0] == 422
    for query in ("", "?x=a&y=1", "?x=nan&y=0", "?x=1e999&y=0"):
        assert ask(page_server, "GET", path + query)[0] in (400, 422)


def test_speed_is_of_the_device_where_the_networks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, waited = [], []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(
        ui_speed, "fastest_form", lambda models, image, setting: prepared.append(setting.device) or (lambda: None)
    )
    networks = {"tiny": create_checkpoint("partialnet_t0", **TINY)}
    second = torch.device("cuda:1")
    assert ui_speed.measure_folding(networks, second, seconds=0.01)["device"] == "cuda:1"
    assert set(prepared) == {"cuda:1"}
    assert set(waited) == {second}
    with pytest.raises(UserError, match="not on 'mps'"):
        ui_speed.measure_folding(networks, torch.device("mps"))


def test_speed(page_server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [
        {name: value.clone() for name, value in network.explainer.model.state_dict().items()}
        for network in page_server.viewer.networks
    ]
    measure = ui_answers.measure_folding
    monkeypatch.setattr(ui_answers, "measure_folding", lambda *args: measure(*args, seconds=0.1))
    status, answer = ask(page_server, "POST", "/api/speed")
    assert status == 200
    assert [(row["network"], row["form"]) for row in answer["rows"]] == [
        (name, form) for name in ("tiny", "peer") for form in ("unfolded", "folded")
    ]
    assert answer["rows"][0]["ratio"] == 1
    assert all(0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] and row["rounds"] >= 7 for row in answer["rows"])
    assert answer["note"] == ""
    assert answer["sizes"] == {"tiny": [64, 64], "peer": [64, 64]}
    for network, state in zip(page_server.viewer.networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.explainer.model.state_dict().items())


def test_other_kinds_of_networks(page_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model name, a folded checkpoint and an exported file, each with what it cannot show told."""
    from partialnet.checkpoint import load

    load(page_runs[0]).fold().save(tmp_path / "folded")
    main(["export", str(page_runs[0]), "--format", "onnx", "-o", str(tmp_path / "net.onnx")])
    viewer = Viewer(open_networks(["resnet10t", str(tmp_path / "folded"), str(tmp_path / "net.onnx")]))
    try:
        untrained, folded, exported = viewer.describe()["networks"]
        assert untrained["untrained"]
        assert "random" in untrained["notes"][0]
        assert "folded" in folded["notes"][0]
        assert "classes only" in exported["notes"][0]
        photo = viewer.add_photo(photo_bytes(), "a.png")
        assert all(len(own["classes"]) >= 3 for own in photo["networks"])
        assert ["picture" in own["map"] for own in photo["networks"]] == [True, True, False]
        first, second = photo["networks"][1:]
        assert [row["name"] for row in first["classes"]] == [row["name"] for row in second["classes"]]
        assert viewer.attention(photo["photo"], 0.5, 0.5) == [{"blocks": []}] * 3
        monkeypatch.setattr(ui_answers, "measure_folding", lambda checkpoints, device: {"rows": list(checkpoints)})
        timed = viewer.speed()
        assert timed["rows"] == ["resnet10t", "folded"]
        assert "Exported files are not timed" in timed["note"]
    finally:
        viewer.close()
    alone = Viewer(open_networks([str(tmp_path / "net.onnx")]))
    with pytest.raises(UserError, match="times the run they came from"):
        alone.speed()
    alone.close()


def test_names_tell_networks_apart(page_runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(page_runs[0], tmp_path / "tiny")
    sources = [str(page_runs[0]), str(tmp_path / "tiny"), str(page_runs[0])]
    for networks in (open_networks(sources), open_explained(sources, torch.device("cpu"))):
        assert [network.name for network in networks] == ["tiny", str(tmp_path / "tiny")]


def test_size_of_the_input(page_runs: tuple[Path, Path]) -> None:
    (network,) = open_networks([str(page_runs[0])], img_size=128)
    gates = read_gates(network.explainer, Image.open(io.BytesIO(photo_bytes())).convert("RGB"))
    assert gates.attention[0].values.shape[1:3] == (4, 4)


def test_photos_are_forgotten_in_order(page_server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were not asked about for longest, once all together take more memory than they may."""
    viewer = page_server.viewer
    keys = [viewer.add_photo(photo_bytes(seed), "a.png")["photo"] for seed in range(5)]
    assert len(set(keys)) == len(keys)
    assert all(viewer.maps(key) for key in keys)
    viewer.maps(keys[0])
    size = viewer._photos[keys[0]].num_bytes
    assert size > len(photo_bytes()) + 3 * 120 * 80
    monkeypatch.setattr(ui_answers, "MAX_MEMORY", 3.5 * size)
    keys.append(viewer.add_photo(photo_bytes(5), "a.png")["photo"])
    assert list(viewer._photos) == [keys[4], keys[0], keys[5]]
    status, answer = ask(page_server, "GET", f"/api/photos/{keys[1]}/maps")
    assert (status, "choose it again" in answer["error"]) == (410, True)
    monkeypatch.setattr(ui_answers, "MAX_MEMORY", 1)
    assert viewer.maps(viewer.add_photo(photo_bytes(), "a.png")["photo"])


# ---- what may go wrong


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", photo_bytes()[:300], b"\x00" * 5000]
)
def test_bad_file_gets_a_sentence(page_server: PageServer, content: bytes) -> None:
    status, answer = ask(page_server, "POST", "/api/photos?name=notes.jpg", content)
    assert status == 422
    assert "notes.jpg" in answer["error"]
    assert "\n" not in answer["error"]
    assert ask(page_server, "POST", "/api/photos", photo_bytes())[0] == 200


def test_too_large_a_file(page_server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_server, "MAX_UPLOAD", 2**20)
    status, answer = ask(page_server, "POST", "/api/photos", b"x" * (3 * 2**20))
    assert status == 413
    assert "1 MB" in answer["error"]


def test_announced_size_is_refused_before_it_is_read(page_server: PageServer) -> None:
    """Nothing is allocated for what a header only claims."""
    with socket.create_connection(("127.0.0.1", page_server.port), 10) as connection:
        head = f"POST /api/photos HTTP/1.0\r\nHost: 127.0.0.1:{page_server.port}\r\nContent-Length: {10**15}\r\n\r\n"
        connection.sendall(head.encode())
        connection.shutdown(socket.SHUT_WR)
        assert b" 413 " in connection.makefile("rb").readline()


def test_too_many_pixels(page_server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_answers, "MAX_PIXELS", 120 * 80 - 1)
    status, answer = ask(page_server, "POST", "/api/photos", photo_bytes())
    assert status == 422
    assert "120×80 pixels" in answer["error"]


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "²", "9" * 30])
def test_nonsense_length(page_server: PageServer, length: str) -> None:
    with socket.create_connection(("127.0.0.1", page_server.port), 10) as connection:
        head = f"POST /api/photos HTTP/1.0\r\nHost: localhost:{page_server.port}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 411 " in connection.makefile("rb").readline()


def test_upload_that_breaks_off(page_server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", page_server.port), 10) as connection:
        head = f"POST /api/photos HTTP/1.0\r\nHost: localhost:{page_server.port}\r\nContent-Length: 9000\r\n\r\n"
        connection.sendall(head.encode() + photo_bytes()[:100])
        connection.shutdown(socket.SHUT_WR)
        assert b" 400 " in connection.makefile("rb").readline()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "", "0.0.0.0:{port}"])
def test_other_names_of_this_machine_are_refused(page_server: PageServer, host: str) -> None:
    """DNS rebinding: a strange name that leads here."""
    headers = {"Host": host.format(port=page_server.port)}
    for method, path, body in (
        ("GET", "/", None),
        ("GET", "/api/networks", None),
        ("POST", "/api/photos", b"x" * 10**6),
    ):
        status, content, _ = request(page_server, method, path, body, headers)
        assert status == 403
        assert b"tiny" not in content


def test_other_sites_are_refused(page_server: PageServer) -> None:
    for origin in ("https://evil.example", "null", f"https://127.0.0.1:{page_server.port}", "http://127.0.0.1:1"):
        assert request(page_server, "POST", "/api/photos", photo_bytes(), {"Origin": origin})[0] == 403
    own = {"Origin": f"http://127.0.0.1:{page_server.port}"}
    assert request(page_server, "POST", "/api/photos", photo_bytes(), own)[0] == 200
    assert request(page_server, "GET", "/", None, {"Host": f"LOCALHOST:{page_server.port}"})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/server.py", "/page.html", "/page.js/",
        "/..%2fserver.py", "/api", "/api/photos", "/api/photos/../networks", "/api/photos/x/y", "/favicon.ico",
        "http://[", "*", "/api/photos/" + "a" * 65 + "/maps",
    ],
)  # fmt: skip
def test_unknown_addresses(page_server: PageServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", page_server.port), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{page_server.port}\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert b" 404 " in answer.splitlines()[0]
    assert b"root:" not in answer
    assert b"import" not in answer


def test_other_methods_are_refused(page_server: PageServer) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert request(page_server, method, "/")[0] == 501
    assert ask(page_server, "POST", "/api/networks", b"")[0] == 404
    assert ask(page_server, "GET", "/api/photos/none/maps")[0] == 410


def test_files_load_nothing_from_elsewhere(page_server: PageServer) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, content, headers = request(page_server, "GET", path)
        assert status == 200
        assert headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        # the namespace of SVG is a name, nothing is loaded from it
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", "").replace("://127.0.0.1", "")


def test_listens_on_this_machine_alone(page_server: PageServer) -> None:
    assert page_server.server_address[0] == "127.0.0.1"
    assert page_server.url == f"http://127.0.0.1:{page_server.port}/"


def test_many_at_once_get_their_own_answers(page_server: PageServer) -> None:
    """Hooks and gradients of one question do not enter another's."""
    contents = [photo_bytes(seed) for seed in range(6)]

    def classes(content: bytes) -> Any:
        answer = ask(page_server, "POST", "/api/photos", content)[1]
        return [(own["classes"], own["map"]["picture"], own["gates"]) for own in answer["networks"]]

    alone = [classes(content) for content in contents]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(classes, contents))
    assert together == alone
    assert len({json.dumps(answer) for answer in alone}) == len(contents)


def test_too_many_questions(page_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_answers, "MAX_WAITING", 1)
    with serving(page_runs) as server:
        server.viewer._places.acquire()
        status, answer = ask(server, "GET", "/api/networks")
        assert (status, "busy" in answer["error"]) == (503, True)
        server.viewer._places.release()
        assert ask(server, "GET", "/api/networks")[0] == 200


def test_failure_is_told_and_survived(page_server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nand many more lines")

    with monkeypatch.context() as broken:
        broken.setattr(Explainer, "probabilities", fail)
        status, answer = ask(page_server, "POST", "/api/photos", photo_bytes())
    assert (status, answer["error"]) == (500, "That did not work: out of memory")
    assert ask(page_server, "POST", "/api/photos", photo_bytes())[0] == 200


@pytest.mark.parametrize("part", ["classifier.bias", "stages.0"])
def test_network_that_overflows(part: str) -> None:
    """No NaN reaches the page, which JSON does not know."""
    checkpoint = create_checkpoint("partialnet_t0", CLASSES, num_classes=3, **TINY)
    checkpoint.input_config |= {"input_size": (3, 64, 64)}
    with torch.no_grad():
        for name, parameter in checkpoint.model.named_parameters():
            if name.startswith(part):
                parameter.fill_(float("nan"))
    viewer = Viewer([Network("broken", Explainer(checkpoint))])
    try:
        (own,) = viewer.add_photo(photo_bytes(), "a.png")["networks"]
    finally:
        viewer.close()
    assert "NaN" in own["error"]
    assert "NaN" in own["map"]["error"]
    json.dumps(own, allow_nan=False)


def test_sources_that_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        open_networks([str(tmp_path / "nothing")])
