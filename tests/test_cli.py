"""The commands as people run them: what they print and write, and what a mistake looks like."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import resource
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import randomize_parameters
from PIL import Image
from stored_networks import released_layout

import partialnet.demo
from partialnet.checkpoint import create_checkpoint, load
from partialnet.cli import main
from partialnet.cli.main import cli
from partialnet.cli.settings import run_folder as default_run_folder
from partialnet.complexity import PAPER
from partialnet.data import LabelledImages
from partialnet.data.sources import open_data
from partialnet.demo import DemoResult, demo_config, run_demo
from partialnet.prediction import Classifier
from partialnet.training.config import TrainConfig

CLASSES = ("cat", "dog", "Übergröße")


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; an exception that a user would see as a traceback fails the test."""

    def run(*args: Any) -> Result:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in args])
        except SystemExit as error:
            code = error.code
        return Result(code, *capsys.readouterr())

    return run


def process(*args: Any, cwd: Path | None = None) -> Result:
    """Run a command in a process of its own."""
    arguments = [sys.executable, "-m", "partialnet", *map(str, args)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=cwd, timeout=600)  # cores may be shared
    return Result(done.returncode, done.stdout, done.stderr)


def assert_mistake(result: Result, *parts: str) -> None:
    """Exit code 2, nothing on stdout, and on stderr one sentence, or click's hint at the usage."""
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    if lines[0].startswith("Usage:"):
        assert sum(line.startswith("Error: ") for line in lines) == 1
        assert len(lines) <= 4
    else:
        assert len(lines) == 1
        assert lines[0].startswith("partialnet: ")
    for part in parts:
        assert part in result.err


# -- things to run the commands on -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network for 64×64 images of three classes."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    checkpoint = create_checkpoint(
        "partialnet_t0", CLASSES, num_classes=3, embed_dim=16, depths=[1, 1, 2, 1], head_hidden_size=24
    )
    torch.manual_seed(0)
    randomize_parameters(checkpoint.model)
    checkpoint.input_config |= {"input_size": [3, 64, 64], "crop_pct": 1.0}
    checkpoint.save(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images of every kind, in a nested folder, beside a text that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("LA").save(folder / "la.png")
    Image.fromarray(np.dstack((noise, noise[:, :, :1]))).save(folder / "rgba.png")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.tif")
    Image.fromarray(noise[:, :, 0] / np.float32(255)).save(folder / "float.tif")
    rgb.save(folder / "moving.gif", save_all=True, append_images=[rgb.rotate(90)])
    (folder / "more" / "names with spaces").mkdir(parents=True)
    Image.new("RGB", (1, 1), "red").save(folder / "more" / "pixel.png")
    Image.new("RGB", (3000, 1), "red").save(folder / "more" / "wide.bmp")
    Image.new("RGB", (1, 3000), "red").save(folder / "more" / "high.webp")
    rgb.save(folder / "more" / "names with spaces" / "ümläut 猫.PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


NUM_PHOTOS = 15


@pytest.fixture
def broken(tmp_path: Path, photos: Path) -> Path:
    """Six images that cannot be read among two that can."""
    folder = tmp_path / "broken"
    folder.mkdir()
    jpeg = (photos / "turned.jpg").read_bytes()
    (folder / "a_good.jpg").write_bytes(jpeg)
    (folder / "b_truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "c_empty.png").touch()
    (folder / "d_text.jpg").write_text("This is a text.")
    tiff = (photos / "deep.tif").read_bytes()
    (folder / "e_truncated.tif").write_bytes(tiff[: len(tiff) // 2])
    (folder / "f_start.tif").write_bytes(tiff[:60])
    bomb = bytearray((photos / "grey.png").read_bytes())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    (folder / "g_bomb.png").write_bytes(bomb)
    (folder / "h_good.png").write_bytes((photos / "grey.png").read_bytes())
    return folder


# -- info ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["partialnet_t0", "partialnet_s"])  # all six: test_complexity.py
def test_info_of_a_variant(name: str, command: Command) -> None:
    result = command("info", name, "--json", "-")
    assert (result.code, result.err) == (0, "")
    data = json.loads(result.out)
    assert data["architecture"] == name
    complexity, paper = data["complexity"], data["paper"]
    assert (paper["params_m"], paper["macs_g"]) == PAPER[name]
    assert paper["params_deviation"] == pytest.approx(complexity["training"]["params_m"] / paper["params_m"] - 1)
    assert paper["macs_deviation"] == pytest.approx(complexity["folded"]["macs_g"] / paper["macs_g"] - 1)
    assert abs(paper["params_deviation"]) < 0.005
    assert abs(paper["macs_deviation"]) < 0.01


def test_info_as_text(command: Command) -> None:
    result = command("info", "partialnet_t0")
    assert (result.code, result.err) == (0, "")
    assert "partialnet_t0, 1000 classes, for 224×224 images" in result.out
    rows = {line.split()[0]: line.split() for line in result.out.splitlines() if line.strip()}
    assert rows["total"][1:] == ["4.292", rows["total"][2], "0.2595", rows["total"][4]]
    assert rows["paper"][-2:] == ["4.3", "0.25"]
    assert re.fullmatch(r"-0\.2%", rows["deviation"][1])
    assert max(len(line) for line in result.out.splitlines()) <= 100


def test_info_for_another_size(command: Command) -> None:
    data = json.loads(command("info", "partialnet_t0", "--img-size", 64, "--json", "-").out)
    assert data["complexity"]["input_size"] == [3, 64, 64]
    assert data["paper"] is None  # the paper's figures are for 224
    assert "Table 9" not in command("info", "partialnet_t0", "--img-size", 64).out


@pytest.mark.parametrize("source", ["folder", "file"])
def test_info_of_a_checkpoint(source: str, run_folder: Path, command: Command) -> None:
    path = run_folder if source == "folder" else run_folder / "model.safetensors"
    data = json.loads(command("info", path, "--json", "-").out)
    assert data["class_names"] == list(CLASSES)
    assert data["model_args"]["embed_dim"] == 16
    assert data["complexity"]["input_size"] == [3, 64, 64]
    assert data["paper"] is None
    text = command("info", path).out
    assert "3 classes (cat, dog, Übergröße)" in text
    assert "embed_dim = 16" in text
    assert f"partialnet predict {path}" in text


def test_info_of_another_network(command: Command) -> None:
    result = command("info", "resnet18")
    assert result.code == 0
    assert "11.690" in result.out


# -- predict ---------------------------------------------------------------------------------------------------------


def test_predict_every_kind_of_image(run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder, photos, "--json", "-")
    assert (result.code, result.err) == (0, "")
    rows = [json.loads(line) for line in result.out.splitlines()]
    images = [str(path) for path in sorted(photos.rglob("*")) if path.is_file() and path.suffix != ".txt"]
    assert [row["image"] for row in rows] == images
    assert len(rows) == NUM_PHOTOS
    for row in rows:
        assert sorted(entry["class"] for entry in row["classes"]) == sorted(CLASSES)
        probabilities = [entry["probability"] for entry in row["classes"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_predict_gives_what_the_network_gives(run_folder: Path, photos: Path, command: Command) -> None:
    """Preprocessing by hand: shorter side to 64, centre 64×64, ImageNet's mean and deviation."""
    image = Image.new("RGB", (64, 64))
    image.putdata([(x * 4 % 256, y * 4 % 256, (x + y) % 256) for y in range(64) for x in range(64)])
    path = photos.parent / "exact.png"
    image.save(path)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = load(run_folder).model(((pixels - mean[:, None, None]) / std[:, None, None])[None]).softmax(1)[0]
    row = json.loads(command("predict", run_folder, path, "--json", "-").out)
    got = {entry["class"]: entry["probability"] for entry in row["classes"]}
    assert [got[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_nothing(batch_size: int, run_folder: Path, photos: Path, command: Command) -> None:
    def probabilities(result: Result) -> list[list[float]]:
        return [[e["probability"] for e in json.loads(line)["classes"]] for line in result.out.splitlines()]

    expected = probabilities(command("predict", run_folder, photos, "--json", "-"))
    got = probabilities(command("predict", run_folder, photos, "--json", "-", "--batch-size", batch_size))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_predict_as_text(run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder / "model.safetensors", photos / "grey.png", photos / "more" / "pixel.png")
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()
    assert first.startswith(f"{photos / 'grey.png'}   ")
    assert second.startswith(f"{photos / 'more' / 'pixel.png'}   ")
    assert len(re.findall(r"(cat|dog|Übergröße) \d+\.\d%", first)) == 3


@pytest.mark.parametrize(("topk", "shown"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_topk(topk: int, shown: int, run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder, photos / "grey.png", "--topk", topk, "--json", "-")
    assert len(json.loads(result.out)["classes"]) == shown
    assert command("predict", run_folder, photos / "grey.png", "-k", topk).out.count("%") == shown


def test_predict_by_pattern(run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder, f"{photos}/*.tif", f"{photos}/**/*.PNG", "--json", "-", "-k", 1)
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == [
        "deep.tif",
        "float.tif",
        "ümläut 猫.PNG",
    ]


def test_broken_images_among_good_ones(run_folder: Path, broken: Path, command: Command) -> None:
    result = command("predict", run_folder, broken, "--json", "-")
    assert result.code == 2
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == ["a_good.jpg", "h_good.png"]
    lines = result.err.splitlines()
    assert all(line.startswith("partialnet: ") for line in lines)
    for line, letter in zip(lines[:-1], "bcdefg", strict=True):
        assert f"/{letter}_" in line
    assert lines[-1] == "partialnet: 6 of 8 images could not be read."


def test_all_images_broken(run_folder: Path, broken: Path, command: Command) -> None:
    result = command("predict", run_folder, broken / "c_empty.png", broken / "d_text.jpg")
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 3


def test_predict_with_a_released_checkpoint(tmp_path: Path, photos: Path, command: Command) -> None:
    model = timm.create_model("partialnet_t0", num_classes=4, depths=(1, 1, 1, 1), head_hidden_size=16)
    torch.save({"state_dict": released_layout(model)}, tmp_path / "released.pth")
    result = command("predict", tmp_path / "released.pth", photos / "grey.png", "--json", "-")
    assert result.code == 0
    classes = {entry["class"] for entry in json.loads(result.out)["classes"]}
    assert classes == {f"class {index}" for index in range(4)}
    data = json.loads(command("info", tmp_path / "released.pth", "--json", "-").out)
    assert "tensors loaded" in data["report"]


# -- demo ------------------------------------------------------------------------------------------------------------


def short_config(seed: int = 0) -> TrainConfig:
    return replace(demo_config(seed), epochs=1, warmup_epochs=0.5, img_size=32)


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    return open_data("digits").validation


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "run", short_config())


def test_demo_writes_what_it_says(short_demo: DemoResult) -> None:
    names = {"model.safetensors", "config.json", "metrics.csv", "curves.png", "predictions.png", "confusion.png"}
    assert {path.name for path in short_demo.files} >= {*names, "samples"}
    assert {path.name for path in short_demo.folder.iterdir()} == {path.name for path in short_demo.files} | {"state"}
    assert short_demo.checkpoint == short_demo.files[0]
    assert short_demo.num_test == 360


@pytest.mark.parametrize("name", ["curves.png", "predictions.png", "confusion.png"])
def test_demo_pictures(name: str, short_demo: DemoResult) -> None:
    with Image.open(short_demo.folder / name) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width >= 500
        assert image.height >= 300
        assert len(image.convert("RGB").resize((200, 200)).getcolors(40000) or []) > 50  # something is drawn


def test_demo_metrics(short_demo: DemoResult) -> None:
    with (short_demo.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    values = {name: float(value) for name, value in rows[0].items()}
    assert values["epoch"] == 1
    assert 0 < values["train_loss"] < 20
    assert 0 <= values["train_accuracy"] <= 1
    assert values["val_accuracy"] == pytest.approx(short_demo.accuracy, abs=1e-5)
    assert values["seconds"] > 0


def test_demo_checkpoint(short_demo: DemoResult, digits: LabelledImages) -> None:
    """The stored network, loaded anew, has the accuracy that was told."""
    checkpoint = load(short_demo.folder)
    assert checkpoint.class_names == tuple("0123456789")
    images = [digits.read(index) for index in range(len(digits))]
    right = Classifier(checkpoint).logits(images).argmax(1) == torch.from_numpy(digits.labels)
    assert right.float().mean().item() == pytest.approx(short_demo.accuracy)


def test_demo_samples_are_predicted(short_demo: DemoResult, digits: LabelledImages, command: Command) -> None:
    samples = sorted((short_demo.folder / "samples").iterdir())
    names = [f"{index:02d}_is_{label}.png" for index, label in enumerate(digits.labels[:20])]
    assert [path.name for path in samples] == names
    for index, path in enumerate(samples):
        with Image.open(path) as stored:
            assert (np.asarray(stored) == np.asarray(digits.read(index))).all()
    result = command("predict", short_demo.folder, short_demo.folder / "samples", "--json", "-", "--topk", 1)
    assert result.code == 0
    shown = [json.loads(line)["classes"][0]["class"] for line in result.out.splitlines()]
    predicted = Classifier(load(short_demo.folder)).logits([digits.read(index) for index in range(20)]).argmax(1)
    assert shown == [str(index) for index in predicted.tolist()]


def test_demo_is_reproducible(short_demo: DemoResult, tmp_path: Path) -> None:
    again = run_demo(tmp_path / "run", short_config())
    first, second = (safetensors.torch.load_file(result.checkpoint) for result in (short_demo, again))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture
def quick_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make ``partialnet demo`` short, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(partialnet.demo, "demo_config", short_config)
    return tmp_path


def test_demo_command(quick_demo: Path, command: Command) -> None:
    """Also with a space in the folder's name: the printed command can be pasted."""
    result = command("demo", "--output", "my runs/demo", "--seed", 3)
    assert result.code == 0
    assert "Traceback" not in result.err
    assert re.search(r"^Test accuracy \d+\.\d% on 360 images", result.out, re.M)
    for name in ("model.safetensors", "config.json", "metrics.csv", "curves.png", "predictions.png", "confusion.png"):
        assert f"  my runs/demo/{name}\n" in result.out
        assert (quick_demo / "my runs" / "demo" / name).is_file()
    following = re.search(r"^Next: partialnet (.*)$", result.out, re.M)
    assert following is not None
    second = command(*shlex.split(following[1]))
    assert second.code == 0
    assert len(second.out.splitlines()) == 20


def test_demo_chooses_a_free_folder(quick_demo: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Path] = []

    def pretend(folder: Path, config: TrainConfig) -> DemoResult:
        folder.mkdir(parents=True)
        (folder / "metrics.csv").touch()
        chosen.append(folder)
        return DemoResult(folder, folder / "model.safetensors", (), 1.0, 40)

    monkeypatch.setattr(partialnet.demo, "run_demo", pretend)
    for _ in range(3):
        assert command("demo").code == 0
    assert chosen == [Path("runs/demo"), Path("runs/demo-2"), Path("runs/demo-3")]


@pytest.mark.slow
def test_demo_for_real(tmp_path: Path) -> None:
    """What the README promises, from the command to the classified samples."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = process("demo", "-o", "run", cwd=tmp_path)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before  # of computing, however busy the machine
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    accuracy = re.search(r"^Test accuracy (\d+\.\d)% on 360 images", result.out, re.M)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert seconds < 180
    predicted = process("predict", "run", "run/samples", "--json", "-", "-k", 1, cwd=tmp_path)
    rows = [json.loads(line) for line in predicted.out.splitlines()]
    right = [Path(row["image"]).stem.endswith(f"_is_{row['classes'][0]['class']}") for row in rows]
    assert len(right) == 20
    assert sum(right) >= 18


# -- a process of its own --------------------------------------------------------------------------------------------


def test_process_predicts_quietly(run_folder: Path, photos: Path) -> None:
    """Nothing but the results on stdout, nothing at all on stderr."""
    result = process("predict", run_folder, photos, "--json", "-", "-k", 1)
    assert (result.code, result.err) == (0, "")
    assert len([json.loads(line) for line in result.out.splitlines()]) == NUM_PHOTOS


def test_process_with_broken_images(run_folder: Path, broken: Path) -> None:
    """Warnings of libraries about a broken file must not stand between our sentences."""
    result = process("predict", run_folder, broken, "--json", "-")
    assert result.code == 2
    assert len([json.loads(line) for line in result.out.splitlines()]) == 2
    assert "Traceback" not in result.err
    assert [line for line in result.err.splitlines() if not line.startswith("partialnet: ")] == []


def test_installed_command_with_a_mistake(tmp_path: Path, photos: Path) -> None:
    """The script that pip installs, given a pickle: one sentence, and no warning of torch's reader before it."""
    script = Path(sys.executable).with_name("partialnet")
    if not script.exists():
        pytest.skip("partialnet is not installed beside this Python")
    (tmp_path / "list.pth").write_bytes(pickle.dumps([1, 2, 3], protocol=4))
    done = subprocess.run(
        [script, "predict", tmp_path / "list.pth", photos / "grey.png"], capture_output=True, text=True, timeout=120
    )
    assert_mistake(Result(done.returncode, done.stdout, done.stderr), "list.pth")


def test_reader_that_goes_away(run_folder: Path, photos: Path) -> None:
    """As in ``partialnet predict … | head -1``."""
    arguments = [sys.executable, "-m", "partialnet", "predict", str(run_folder), str(photos)]
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    error = running.stderr.read()
    running.stderr.close()
    assert running.wait(60) == 1
    assert error == ""


def test_interrupted_demo(tmp_path: Path) -> None:
    """Ctrl-C during training ends with one sentence, which says how to continue, and an exit code that says so."""
    running = subprocess.Popen(
        [sys.executable, "-m", "partialnet", "demo", "-o", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a shell's background job ignores
    )
    assert running.stderr is not None
    told, deadline = b"", time.monotonic() + 60
    try:
        while b"training:" not in told and time.monotonic() < deadline:
            if select.select([running.stderr], [], [], 1)[0]:
                told += os.read(running.stderr.fileno(), 10000)
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert b"Traceback" not in error
    assert running.returncode == 75
    assert out == b""
    assert b"Continue with: partialnet train digits --config run/config.yaml -o run --resume" in error
    assert list((tmp_path / "run" / "state").glob("*.pt"))


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_missing_checkpoint(photos: Path, tmp_path: Path, command: Command) -> None:
    for name in ("missing.safetensors", "missing.pth", "missing/run"):
        assert_mistake(command("predict", tmp_path / name, photos), f"{name}'")
        assert_mistake(command("info", tmp_path / name), f"{name}'")


def test_missing_images(run_folder: Path, tmp_path: Path, command: Command) -> None:
    assert_mistake(command("predict", run_folder, tmp_path / "missing.jpg"), "missing.jpg'")
    assert_mistake(command("predict", run_folder, tmp_path / "missing"), "missing'")
    assert_mistake(command("predict", run_folder, tmp_path / "*.jpg"), "*.jpg'")


def test_empty_folder(run_folder: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    assert_mistake(command("predict", run_folder, tmp_path), str(tmp_path), "holds no image")
    assert_mistake(command("predict", tmp_path, photos), str(tmp_path), "model.safetensors")
    assert_mistake(command("info", tmp_path), str(tmp_path), "model.safetensors")


@pytest.mark.parametrize("suffix", [".txt", ".safetensors", ".pth", ".ckpt", ""])
def test_text_as_checkpoint(suffix: str, photos: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_text("These are notes.\n")
    assert_mistake(command("predict", path, photos), str(path))
    assert_mistake(command("info", path), str(path))


def test_image_as_checkpoint(photos: Path, command: Command) -> None:
    for name in ("grey.png", "turned.jpg", "deep.tif", "moving.gif"):
        assert_mistake(command("predict", photos / name, photos), name)
        assert_mistake(command("info", photos / name), name)


def test_checkpoint_as_image(run_folder: Path, command: Command) -> None:
    result = command("predict", run_folder, run_folder / "model.safetensors")
    assert (result.code, result.out) == (2, "")
    first, last = result.err.splitlines()
    assert first == f"partialnet: {str(run_folder / 'model.safetensors')!r} is not an image."
    assert last == "partialnet: 1 of 1 images could not be read."
    assert_mistake(command("predict", run_folder, run_folder), "holds no image")


def test_swapped_arguments(run_folder: Path, photos: Path, command: Command) -> None:
    assert_mistake(command("predict", photos / "grey.png", run_folder))


def test_alien_checkpoint(photos: Path, tmp_path: Path, command: Command) -> None:
    model = timm.create_model("resnet10t")
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "resnet.safetensors")
    for name in ("resnet.pth", "resnet.safetensors"):
        assert_mistake(command("predict", tmp_path / name, photos), name)
        assert_mistake(command("info", tmp_path / name), name)


def test_damaged_checkpoint(run_folder: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    content = (run_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert_mistake(command("predict", tmp_path, photos), "damaged")
    assert_mistake(command("info", tmp_path), "damaged")


@pytest.mark.parametrize(
    ("model_args", "part"), [({"num_classes": 0}, "no classes"), ({"num_classes": 2, "in_chans": 1}, "1 channels")]
)
def test_network_that_cannot_classify_photos(
    model_args: dict[str, int], part: str, photos: Path, tmp_path: Path, command: Command
) -> None:
    create_checkpoint("partialnet_t0", embed_dim=16, depths=[1, 1, 1, 1], **model_args).save(tmp_path)
    assert_mistake(command("predict", tmp_path, photos), part)
    assert command("info", tmp_path).code == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("partialnet_t9", "partialnet_t0"), ("partialnet-t0", "partialnet_t0"), ("unknown", "")],
)
def test_unknown_model_name(name: str, hint: str, photos: Path, command: Command) -> None:
    assert_mistake(command("info", name), name, hint)
    assert_mistake(command("predict", name, photos), name, hint)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("predcit", "predict"), ("inof", "info"), ("dmeo", "demo"), ("Predict", "predict"), ("pred", "predict")],
)
def test_mistyped_command(typed: str, meant: str, command: Command) -> None:
    assert_mistake(command(typed), f"There is no command {typed!r}", f"Did you mean {meant}?")


def test_unknown_command(command: Command) -> None:
    assert_mistake(command("xyz"), "There is no command 'xyz'", "demo", "info", "predict")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["info"], "MODEL"),
        (["predict"], "CHECKPOINT"),
        (["predict", "run"], "IMAGES"),
        (["predict", "run", "image", "--topk", "0"], "--topk"),
        (["predict", "run", "image", "--topk", "many"], "many"),
        (["predict", "run", "image", "-b", "0"], "--batch-size"),
        (["predict", "run", "image", "--jsn"], "--json"),
        (["info", "partialnet_t0", "--img-size", "8"], "--img-size"),
        (["info", "a", "b"], "b"),
        (["demo", "--seed", "x"], "--seed"),
        (["--verbose", "info"], "--verbose"),
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], part: str, command: Command) -> None:
    assert_mistake(command(*arguments), part)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["detect", "-h"]], ids=" ".join)
def test_help(arguments: list[str], command: Command) -> None:
    result = command(*arguments)
    assert result.code == (0 if arguments else 2)
    text = result.out + result.err
    assert text.startswith("Usage: partialnet")
    assert max(len(line) for line in text.splitlines()) <= 100


def subcommands() -> list[list[str]]:
    """All that can be called, groups aside."""
    groups = {name: one for name, one in cli.commands.items() if isinstance(one, click.Group)}
    nested = [[group, name] for group, one in groups.items() for name in one.commands]
    return [[name] for name in cli.commands if name not in groups] + nested


@pytest.mark.parametrize("arguments", subcommands(), ids=" ".join)
def test_every_command_has_an_example(arguments: list[str], command: Command) -> None:
    result = command(*arguments, "--help")
    assert result.code == 0
    assert max(len(line) for line in result.out.splitlines()) <= 100
    assert re.search(rf"Examples?: partialnet {' '.join(arguments)}", " ".join(result.out.split()))


def test_version(command: Command) -> None:
    result = command("--version")
    assert (result.code, result.out) == (0, f"partialnet, version {partialnet.__version__}\n")


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    }


@pytest.mark.parametrize("content", ["notes.txt", ".hidden", "model.safetensors", "folder/file"])
def test_demo_into_a_folder_in_use(content: str, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "used"
    (folder / content).parent.mkdir(parents=True)
    (folder / content).write_text("precious")
    before = listing(tmp_path)
    assert_mistake(command("demo", "-o", folder), str(folder), "not empty")
    assert listing(tmp_path) == before


def test_demo_where_a_file_is(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    assert_mistake(command("demo", "-o", path), str(path))
    result = command("demo", "-o", path / "below")
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    assert path.read_text() == "precious"


def test_a_model_name_does_not_predict(command: Command, tmp_path: Path):
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    result = command("predict", "partialnet_t0", tmp_path / "photo.png")
    assert result.code == 2
    assert "untrained" in result.err
    assert result.out == ""


def test_demo_takes_an_empty_folder_again(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)

    def interrupted(folder: Path, config: TrainConfig) -> DemoResult:
        (folder / "metrics.csv").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(partialnet.demo, "run_demo", interrupted)
    assert command("demo").code != 0
    assert not (tmp_path / "runs" / "demo").exists()


def test_json_goes_to_a_file_beside_the_text(run_folder: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    printed = command("predict", run_folder, photos, "--json", "-")
    written = command("predict", run_folder, photos, "--json", tmp_path / "answers.jsonl")
    assert (tmp_path / "answers.jsonl").read_text() == printed.out
    assert f"Written: {tmp_path}/answers.jsonl" in written.out
    assert str(photos / "grey.png") in written.out


def test_json_of_a_network_in_a_file(tmp_path: Path, command: Command) -> None:
    result = command("info", "partialnet_t0", "--json", tmp_path / "t0.json")
    assert json.loads((tmp_path / "t0.json").read_text())["architecture"] == "partialnet_t0"
    assert "deviation" in result.out


def test_json_into_no_folder(run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder, photos, "--json", "nowhere/answers.jsonl")
    assert (result.code, result.out) == (2, "")
    assert "no folder 'nowhere'" in result.err


def test_predict_takes_a_device(run_folder: Path, photos: Path, command: Command) -> None:
    assert command("predict", run_folder, photos, "--device", "cpu").code == 0
    result = command("predict", run_folder, photos, "--device", "gpu7")
    assert (result.code, "'gpu7'" in result.err) == (2, True)


def test_the_next_command_imports_too(tmp_path: Path, command: Command) -> None:
    own = tmp_path / "own_nets_of_a_user.py"
    own.write_text("import partialnet\n")
    result = command("--import", own, "convert", "resnet10t", "--select", "layer3", "-o", tmp_path / "converted")
    assert f"Next: partialnet --import {own} train DATA --model {tmp_path}/converted" in result.out


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        ("photos/", "partialnet_t0", "photos-partialnet_t0"),
        ("torchvision:CIFAR10", "torchvision:resnet18", "CIFAR10-resnet18"),
        ("a/b c/", "runs/other", "b-c-other"),
        ("/", "resnet18", "images-resnet18"),
    ],
)
def test_default_run_folder(data: str, name: str, expected: str) -> None:
    assert default_run_folder(None, data, name) == Path("runs") / expected
