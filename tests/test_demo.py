"""``partialnet demo``: what it writes, and where."""

from __future__ import annotations

import csv
import json
import re
import resource
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import Command, assert_mistake, process
from PIL import Image
from training_runs import TINY
from warm_processes import WarmProcesses

import partialnet.demo
from partialnet.checkpoint import load
from partialnet.data import LabelledImages
from partialnet.data.sources import open_data
from partialnet.demo import demo_config, run_demo
from partialnet.prediction import Classifier
from partialnet.training.config import TrainConfig
from partialnet.training.run import TrainResult


def short_config(seed: int = 0) -> TrainConfig:
    return replace(demo_config(seed), model_args=TINY, epochs=1, warmup_epochs=0.5, img_size=32, batch_size=256)


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    return open_data("digits").validation


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "run", short_config())


def test_demo_writes_what_it_says(short_demo: TrainResult) -> None:
    names = {"model.safetensors", "config.json", "metrics.csv", "curves.png", "predictions.png", "confusion.png"}
    assert {path.name for path in short_demo.files} >= {*names, "samples"}
    assert {path.name for path in short_demo.folder.iterdir()} == {path.name for path in short_demo.files} | {"state"}
    assert short_demo.checkpoint == short_demo.files[0]
    assert short_demo.num_val == 360


@pytest.mark.parametrize("name", ["curves.png", "predictions.png", "confusion.png"])
def test_demo_pictures(name: str, short_demo: TrainResult) -> None:
    with Image.open(short_demo.folder / name) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width >= 500
        assert image.height >= 300
        assert len(image.convert("RGB").resize((200, 200)).getcolors(40000) or []) > 50  # something is drawn


def test_demo_metrics(short_demo: TrainResult) -> None:
    with (short_demo.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    values = {name: float(value) for name, value in rows[0].items()}
    assert values["epoch"] == 1
    assert 0 < values["train_loss"] < 20
    assert 0 <= values["train_accuracy"] <= 1
    assert values["val_accuracy"] == pytest.approx(short_demo.accuracy, abs=1e-5)
    assert values["seconds"] > 0


def test_demo_checkpoint(short_demo: TrainResult, digits: LabelledImages) -> None:
    """The stored network, loaded anew, has the accuracy that was told."""
    checkpoint = load(short_demo.folder)
    assert checkpoint.class_names == tuple("0123456789")
    classifier = Classifier(checkpoint)
    images = classifier.prepare(digits.read(index) for index in range(len(digits)))
    right = classifier.run(images).argmax(1) == torch.from_numpy(digits.labels)
    assert right.float().mean().item() == pytest.approx(short_demo.accuracy)


def test_demo_samples_are_predicted(short_demo: TrainResult, digits: LabelledImages, command: Command) -> None:
    samples = sorted((short_demo.folder / "samples").iterdir())
    names = [f"{index:02d}_is_{label}.png" for index, label in enumerate(digits.labels[:20])]
    assert [path.name for path in samples] == names
    for index, path in enumerate(samples):
        with Image.open(path) as stored:
            assert (np.asarray(stored) == np.asarray(digits.read(index))).all()
    result = command("predict", short_demo.folder, short_demo.folder / "samples", "--json", "-", "--topk", 1)
    assert result.code == 0
    shown = [json.loads(line)["classes"][0]["class"] for line in result.out.splitlines()]
    classifier = Classifier(load(short_demo.folder))
    predicted = classifier.run(classifier.prepare(digits.read(index) for index in range(20))).argmax(1)
    assert shown == [str(index) for index in predicted.tolist()]


@pytest.mark.usefixtures("without_pictures")
def test_demo_is_reproducible(short_demo: TrainResult, tmp_path: Path) -> None:
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
    assert re.search(
        r"^Accuracy \d+\.\d% on 360 held-out images, in the epoch that does best on them", result.out, re.M
    )
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

    def pretend(folder: Path, config: TrainConfig) -> TrainResult:
        folder.mkdir(parents=True)
        (folder / "metrics.csv").touch()
        chosen.append(folder)
        return TrainResult(folder, (), 1, 1.0, 40)

    monkeypatch.setattr(partialnet.demo, "run_demo", pretend)
    for _ in range(3):
        assert command("demo").code == 0
    assert chosen == [Path("runs/demo"), Path("runs/demo-2"), Path("runs/demo-3")]


@pytest.mark.slow
def test_demo_for_real(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README promises, from the command to the classified samples."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = process("demo", "-o", "run", cwd=tmp_path)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before  # of computing, however busy the machine
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    accuracy = re.search(
        r"^Accuracy (\d+\.\d)% on 360 held-out images, in the epoch that does best on them", result.out, re.M
    )
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert seconds < 180
    monkeypatch.chdir(tmp_path)
    predicted = command("predict", "run", "run/samples", "--json", "-", "-k", 1)
    rows = [json.loads(line) for line in predicted.out.splitlines()]
    right = [Path(row["image"]).stem.endswith(f"_is_{row['classes'][0]['class']}") for row in rows]
    assert len(right) == 20
    assert sum(right) >= 18


def test_interrupted_demo(tmp_path: Path, warm_processes: WarmProcesses) -> None:
    """Ctrl-C during training ends with one sentence, which says how to continue, and an exit code that says so."""
    process = warm_processes.start("demo", "-o", "run", cwd=tmp_path, out=tmp_path / "out")
    process.wait_until(lambda: "training:" in process.err)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 75, process.err
    assert "Traceback" not in process.err
    assert process.out == ""
    assert "Continue with: partialnet train digits --config run/config.yaml -o run --resume" in process.err
    assert list((tmp_path / "run" / "state").glob("*.pt"))


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


def test_demo_takes_an_empty_folder_again(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)

    def interrupted(folder: Path, config: TrainConfig) -> TrainResult:
        (folder / "metrics.csv").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(partialnet.demo, "run_demo", interrupted)
    assert command("demo").code != 0
    assert not (tmp_path / "runs" / "demo").exists()
