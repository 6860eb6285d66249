"""The page: its server over real HTTP, its answers, and the whole of it in a browser."""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, save_run
from PIL import Image

from partialnet.checkpoint import create_checkpoint
from partialnet.cli import main
from partialnet.errors import UserError
from partialnet.explain import Explainer, read_gates
from partialnet.ui import Network, PageServer, Viewer, open_networks
from partialnet.ui import answers as ui_answers
from partialnet.ui import server as ui_server

pytest.importorskip("pytorch_grad_cam")

CLASSES = ("tench", "church", "<b>golf ball</b>")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return save_run(folder / "tiny", classes=CLASSES, **TINY), save_run(folder / "peer", "resnet10t", CLASSES)


def photo_bytes(seed: int = 0, size: tuple[int, int] = (120, 80)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(runs: tuple[Path, Path]) -> Iterator[PageServer]:
    viewer = Viewer(open_networks([str(run) for run in runs]))
    server = PageServer(viewer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    viewer.close()
    thread.join(5)


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


def test_photo(server: PageServer, runs: tuple[Path, Path]) -> None:
    status, answer = ask(server, "POST", "/api/photos?name=a.png", photo_bytes())
    assert status == 200
    assert (answer["width"], answer["height"]) == (120, 80)
    image = Image.open(io.BytesIO(photo_bytes())).convert("RGB")
    assert (decode(answer["picture"]) == np.asarray(image)).all()
    for network, found in zip(open_networks([str(run) for run in runs]), answer["networks"], strict=True):
        probabilities = network.explainer.probabilities(image)
        told = {row["name"]: row["probability"] for row in found["classes"]}
        assert told == pytest.approx(dict(zip(CLASSES, probabilities.tolist(), strict=True)))
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert found["map"]["target"] == answer["networks"][0]["classes"][0]["name"]
        assert decode(found["map"]["picture"]).shape == (80, 120, 3)
    ours, peer = answer["networks"]
    gates = read_gates(open_networks([str(runs[0])])[0].explainer, image)
    assert [(row["stage"], row["block"]) for row in ours["gates"]["spatial"]] == [
        (gate.stage, gate.index) for gate in gates.spatial
    ]
    for row, gate in zip(ours["gates"]["channel"], gates.channel, strict=True):
        assert sum(row["counts"]) == row["channels"] == gate.values.size
        assert row["mean"] == pytest.approx(float(gate.values.mean()), abs=1e-6)
    assert peer["gates"]["spatial"] == peer["gates"]["channel"] == []


def test_stage_and_class_of_maps(server: PageServer) -> None:
    _, photo = ask(server, "POST", "/api/photos?name=a.png&stage=2", photo_bytes())
    assert [own["map"]["stage"] for own in photo["networks"]] == [2, 2]
    status, answer = ask(server, "GET", f"/api/photos/{photo['photo']}/maps?stage=3&target=church")
    assert status == 200
    assert [(row["stage"], row["target"]) for row in answer["maps"]] == [(3, "church")] * 2
    _, other = ask(server, "GET", f"/api/photos/{photo['photo']}/maps?stage=1&target=church")
    assert other["maps"][0]["picture"] != answer["maps"][0]["picture"]
    _, absent = ask(server, "GET", f"/api/photos/{photo['photo']}/maps?stage=9")
    assert all("no stage 9" in row["error"] for row in absent["maps"])


def test_attention_follows_the_place(server: PageServer, runs: tuple[Path, Path]) -> None:
    _, photo = ask(server, "POST", "/api/photos", photo_bytes())
    path = f"/api/photos/{photo['photo']}/attention"
    _, first = ask(server, "GET", f"{path}?x=0.3&y=0.2")
    _, second = ask(server, "GET", f"{path}?x=0.7&y=0.9")
    image = Image.open(io.BytesIO(photo_bytes())).convert("RGB")
    expected = read_gates(open_networks([str(runs[0])])[0].explainer, image).attention_from((0.3 * 120, 0.2 * 80))
    ours, peer = first["attention"]
    for block, (gate, weights) in zip(ours["blocks"], expected, strict=True):
        assert (block["stage"], block["block"], len(block["heads"])) == (gate.stage, gate.index, weights.shape[0])
        assert block["max"] == pytest.approx(float(weights.mean(0).max()), abs=1e-6)
    assert peer["blocks"] == []
    assert ours["blocks"][0]["picture"] != second["attention"][0]["blocks"][0]["picture"]
    # the left end is cropped away before the network; that is no failure of the others
    status, outside = ask(server, "GET", f"{path}?x=0.01&y=0.5")
    assert status == 200
    assert "does not see the point" in outside["attention"][0]["error"]
    # the very edge belongs to the photograph
    assert "error" not in ask(server, "GET", f"{path}?x=0.5&y=1")[1]["attention"][0]
    assert ask(server, "GET", f"{path}?x=1.5&y=0")[0] == 422
    for query in ("", "?x=a&y=1", "?x=nan&y=0", "?x=1e999&y=0"):
        assert ask(server, "GET", path + query)[0] in (400, 422)


def test_speed(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [
        {name: value.clone() for name, value in network.explainer.model.state_dict().items()}
        for network in server.viewer.networks
    ]
    measure = ui_answers.measure_folding
    monkeypatch.setattr(ui_answers, "measure_folding", lambda *args: measure(*args, seconds=0.1))
    status, answer = ask(server, "POST", "/api/speed")
    assert status == 200
    assert [(row["network"], row["form"]) for row in answer["rows"]] == [
        (name, form) for name in ("tiny", "peer") for form in ("unfolded", "folded")
    ]
    assert answer["rows"][0]["ratio"] == 1
    assert all(0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] and row["rounds"] >= 7 for row in answer["rows"])
    assert answer["sizes"] == {"tiny": [64, 64], "peer": [64, 64]}
    for network, state in zip(server.viewer.networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.explainer.model.state_dict().items())


def test_other_kinds_of_networks(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A model name, a folded checkpoint and an exported file, each with what it cannot show told."""
    from partialnet.checkpoint import load

    load(runs[0]).fold().save(tmp_path / "folded")
    main(["export", str(runs[0]), "--format", "onnx", "-o", str(tmp_path / "net.onnx")])
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
    finally:
        viewer.close()


def test_names_tell_networks_apart(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "tiny")
    names = [network.name for network in open_networks([str(runs[0]), str(tmp_path / "tiny"), str(runs[0])])]
    assert names == ["tiny", str(tmp_path / "tiny")]


def test_size_of_the_input(runs: tuple[Path, Path]) -> None:
    (network,) = open_networks([str(runs[0])], img_size=128)
    gates = read_gates(network.explainer, Image.open(io.BytesIO(photo_bytes())).convert("RGB"))
    assert gates.attention[0].values.shape[1:3] == (4, 4)


def test_photos_are_forgotten_in_order(server: PageServer) -> None:
    keys = [
        ask(server, "POST", "/api/photos", photo_bytes(seed))[1]["photo"] for seed in range(ui_answers.MAX_PHOTOS + 1)
    ]
    assert len(set(keys)) == len(keys)
    assert [ask(server, "GET", f"/api/photos/{key}/maps")[0] for key in (keys[0], keys[1])] == [410, 200]


# ---- what may go wrong


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", photo_bytes()[:300], b"\x00" * 5000]
)
def test_bad_file_gets_a_sentence(server: PageServer, content: bytes) -> None:
    status, answer = ask(server, "POST", "/api/photos?name=notes.jpg", content)
    assert status == 422
    assert "notes.jpg" in answer["error"]
    assert "\n" not in answer["error"]
    assert ask(server, "POST", "/api/photos", photo_bytes())[0] == 200


def test_too_large_a_file(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_server, "MAX_UPLOAD", 2**20)
    status, answer = ask(server, "POST", "/api/photos", b"x" * (3 * 2**20))
    assert status == 413
    assert "1 MB" in answer["error"]


def test_announced_size_is_refused_before_it_is_read(server: PageServer) -> None:
    """Nothing is allocated for what a header only claims."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(
            f"POST /api/photos HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {10**15}\r\n\r\n".encode()
        )
        connection.shutdown(socket.SHUT_WR)
        assert b" 413 " in connection.makefile("rb").readline()


def test_too_many_pixels(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_answers, "MAX_PIXELS", 120 * 80 - 1)
    status, answer = ask(server, "POST", "/api/photos", photo_bytes())
    assert status == 422
    assert "120×80 pixels" in answer["error"]


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "²", "9" * 30])
def test_nonsense_length(server: PageServer, length: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        head = f"POST /api/photos HTTP/1.0\r\nHost: localhost:{server.port}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 411 " in connection.makefile("rb").readline()


def test_upload_that_breaks_off(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        head = f"POST /api/photos HTTP/1.0\r\nHost: localhost:{server.port}\r\nContent-Length: 9000\r\n\r\n"
        connection.sendall(head.encode() + photo_bytes()[:100])
        connection.shutdown(socket.SHUT_WR)
        assert b" 400 " in connection.makefile("rb").readline()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "", "0.0.0.0:{port}"])
def test_other_names_of_this_machine_are_refused(server: PageServer, host: str) -> None:
    """DNS rebinding: a strange name that leads here."""
    headers = {"Host": host.format(port=server.port)}
    for method, path, body in (
        ("GET", "/", None),
        ("GET", "/api/networks", None),
        ("POST", "/api/photos", b"x" * 10**6),
    ):
        status, content, _ = request(server, method, path, body, headers)
        assert status == 403
        assert b"tiny" not in content


def test_other_sites_are_refused(server: PageServer) -> None:
    for origin in ("https://evil.example", "null", f"https://127.0.0.1:{server.port}", "http://127.0.0.1:1"):
        assert request(server, "POST", "/api/photos", photo_bytes(), {"Origin": origin})[0] == 403
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert request(server, "POST", "/api/photos", photo_bytes(), own)[0] == 200
    assert request(server, "GET", "/", None, {"Host": f"LOCALHOST:{server.port}"})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/server.py", "/page.html", "/page.js/",
        "/..%2fserver.py", "/api", "/api/photos", "/api/photos/../networks", "/api/photos/x/y", "/favicon.ico",
        "http://[", "*", "/api/photos/" + "a" * 65 + "/maps",
    ],
)  # fmt: skip
def test_unknown_addresses(server: PageServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert b" 404 " in answer.splitlines()[0]
    assert b"root:" not in answer
    assert b"import" not in answer


def test_other_methods_are_refused(server: PageServer) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert request(server, method, "/")[0] == 501
    assert ask(server, "POST", "/api/networks", b"")[0] == 404
    assert ask(server, "GET", "/api/photos/none/maps")[0] == 410


def test_files_load_nothing_from_elsewhere(server: PageServer) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, content, headers = request(server, "GET", path)
        assert status == 200
        assert headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        # the namespace of SVG is a name, nothing is loaded from it
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", "").replace("://127.0.0.1", "")


def test_listens_on_this_machine_alone(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.port}/"


def test_many_at_once_get_their_own_answers(server: PageServer) -> None:
    """Hooks and gradients of one question do not enter another's."""
    contents = [photo_bytes(seed) for seed in range(6)]

    def classes(content: bytes) -> Any:
        answer = ask(server, "POST", "/api/photos", content)[1]
        return [(own["classes"], own["map"]["picture"], own["gates"]) for own in answer["networks"]]

    alone = [classes(content) for content in contents]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(classes, contents))
    assert together == alone
    assert len({json.dumps(answer) for answer in alone}) == len(contents)


def test_too_many_questions(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_answers, "MAX_WAITING", 1)
    viewer = Viewer(open_networks([str(runs[0])]))
    server = PageServer(viewer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        viewer._places.acquire()
        status, answer = ask(server, "GET", "/api/networks")
        assert (status, "busy" in answer["error"]) == (503, True)
        viewer._places.release()
        assert ask(server, "GET", "/api/networks")[0] == 200
    finally:
        server.shutdown()
        server.server_close()
        viewer.close()


def test_failure_is_told_and_survived(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nand many more lines")

    with monkeypatch.context() as broken:
        broken.setattr(Explainer, "probabilities", fail)
        status, answer = ask(server, "POST", "/api/photos", photo_bytes())
    assert (status, answer["error"]) == (500, "That did not work: out of memory")
    assert ask(server, "POST", "/api/photos", photo_bytes())[0] == 200


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


# ---- the command


def start(*args: Any, cwd: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("DISPLAY", None)
    return subprocess.Popen(
        [sys.executable, "-m", "partialnet", "ui", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment,
        # what runs in the background of a shell ignores the interrupt, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def test_command_serves_and_ends(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """runs/demo by default; Ctrl-C is the way to end it, not a failure."""
    shutil.copytree(runs[0], tmp_path / "runs" / "demo")
    process = start("--no-open", cwd=tmp_path)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Showing demo at http://127.0.0.1:"), process.stderr and process.stderr.read()
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/api/networks")
        assert json.loads(connection.getresponse().read())["networks"][0]["name"] == "demo"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out.strip(), err) == (0, "The page is closed.", "")


def test_command_without_anything_to_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["ui", "--no-open"])
    assert end.value.code == 2
    assert "`partialnet demo`" in capsys.readouterr().err


def test_port_in_use(runs: tuple[Path, Path], server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["ui", str(runs[0]), "--no-open", "--port", str(server.port)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"Port {server.port} is in use" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EACCES])
def test_reasons_for_a_port(number: int) -> None:
    from partialnet.cli.ui import _why_not

    assert "any free one" in _why_not(OSError(number, os.strerror(number)), 80)


def test_sources_that_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        open_networks([str(tmp_path / "nothing")])


# ---- in a browser

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if not BROWSER or not DRIVER:
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,900",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait(browser: Any, condition: Any, seconds: float = 60) -> Any:
    """What the condition gives once it holds; an element that the page replaces while it is asked does not yet."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StaleElementReferenceException):
            if value := condition():
                return value
        assert time.monotonic() < end, browser.find_element("tag name", "body").text
        time.sleep(0.05)


def find(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


@pytest.fixture
def page(browser: Any, server: PageServer) -> Any:
    browser.get(server.url)
    wait(browser, lambda: find(browser, "body[data-ready]"))
    return browser


def upload(page: Any, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    find(page, "#file")[0].send_keys(str(path))


def pictures(page: Any, selector: str) -> list[str]:
    return page.execute_script("return [...document.querySelectorAll(arguments[0])].map(i => i.src)", selector)


def test_photo_in_the_browser(page: Any, tmp_path: Path) -> None:
    assert [element.text for element in find(page, "h2")][:2] == ["tiny", "peer"]
    upload(page, tmp_path / "rose.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    assert find(page, "#photo")[0].get_attribute("alt") == "rose.png, 120×80 pixels"
    for index in (0, 1):
        names = [element.text for element in find(page, f"#classes-{index} .name")]
        assert sorted(names) == sorted(CLASSES)  # also the one that looks like HTML
        (shown,) = find(page, f"#map-{index} figure img")
        assert shown.get_property("naturalWidth") == 120
        assert "stage 4" in find(page, f"#map-{index} figcaption")[0].text
    assert len(find(page, "#spatial-0 .stage")) == 4
    assert len(find(page, "#channel-0 svg")) == 4
    assert "no gates" in find(page, "#attention-1")[0].text
    assert not find(page, "#spatial-1 img, #channel-1 svg, img:not([alt])")
    # nothing failed to load, no style or script was refused
    assert page.get_log("browser") == []


def test_stage_class_and_place_in_the_browser(page: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    find(page, "#stages input[value='3']")[0].click()
    wait(page, lambda: "stage 3" in find(page, "#map-1 figcaption")[0].text)
    last = find(page, "#classes-0 li:last-child button")[0]
    last.click()
    wait(page, lambda: find(page, "#classes-0 li:last-child button[aria-pressed=true]"))
    name = last.find_element("css selector", ".name").text
    assert all(name in element.text for element in find(page, ".map figcaption"))
    # the photograph: click, then the arrow keys
    before = pictures(page, "#attention-0 .blocks > figure > img")
    place = find(page, "#place")[0]
    across, down = -int(0.2 * place.size["width"]), -int(0.4 * place.size["height"])
    ActionChains(page).move_to_element_with_offset(place, across, down).click().perform()
    clicked = wait(page, lambda: (now := pictures(page, "#attention-0 .blocks > figure > img")) != before and now)
    place.send_keys("\ue015" * 12)  # the arrow down
    wait(page, lambda: pictures(page, "#attention-0 .blocks > figure > img") not in (before, clicked))
    assert find(page, "#error:not([hidden])") == []


def test_bad_file_in_the_browser(page: Any, tmp_path: Path) -> None:
    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#map-0 figure img"))
    upload(page, tmp_path / "notes.jpg", b"no picture")
    (error,) = wait(page, lambda: find(page, "#error:not([hidden])"))
    assert error.text == "'notes.jpg' is not an image."
    assert error.get_attribute("role") == "alert"
    # what was shown stays, and the next good one takes its place
    assert find(page, "#map-0 figure img")
    upload(page, tmp_path / "b.png", photo_bytes(1))
    wait(page, lambda: find(page, "#photo")[0].get_attribute("alt").startswith("b.png"))
    assert not find(page, "#error:not([hidden])")


def test_speed_in_the_browser(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = ui_answers.measure_folding
    monkeypatch.setattr(ui_answers, "measure_folding", lambda *args: measure(*args, seconds=0.1))
    find(page, "#measure")[0].click()
    wait(page, lambda: len(find(page, "#timings tbody tr")) == 4)
    assert "quartiles" in find(page, "#timings")[0].text


def test_narrow_and_dark(page: Any, tmp_path: Path) -> None:
    """On a phone nothing sticks out, and the colours follow the system's."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    )
    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    colors = []
    for scheme in ("light", "dark"):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        colors.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colors[0] != colors[1]
