"""What ``partialnet train`` shows: help, names of run folders, the next commands; the training itself is replaced."""

from __future__ import annotations

import shutil
import types
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from partialnet.training import run as engine
from partialnet.training.config import TrainConfig
from partialnet.training.settings import settings_of
from partialnet_cli.main import main

Calls = list[tuple[TrainConfig, str, Path, bool]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made: Calls = []

    def train(config: TrainConfig, data: str, folder: Path, resume: bool = False) -> Any:
        made.append((config, data, folder, resume))
        files = (folder / "model.safetensors", folder / "curves.png")
        return types.SimpleNamespace(folder=folder, accuracy=0.875, num_val=8, files=files, epochs=1)

    monkeypatch.setattr(engine, "train", train)
    return made


def test_help_has_groups_and_pairs_of_flags(command: Command) -> None:
    code, out, _ = command("train", "--help")
    assert code == 0
    for setting in settings_of(TrainConfig).values():
        assert f"\n{setting.metadata['group']}:\n" in out
    assert "--sync-bn / --no-sync-bn" in out
    assert "partialnet train photos/" in out


def test_an_option_at_its_default_still_replaces(command: Command, calls: Calls) -> None:
    default = TrainConfig().lr
    assert command("train", "digits", "--lr", str(default), "--no-compile")[0] == 0
    assert calls[0][0].lr == default


@pytest.mark.parametrize(
    ("data", "recipe", "folder"),
    [
        ("digits", "digits", "digits-resnet18"),
        ("my photos/", "small", "my-photos-resnet18"),
        ("torchvision:CIFAR10", "small", "CIFAR10-resnet18"),
        ("hfds/ethz/food101", "small", "food101-resnet18"),
    ],
)
def test_defaults(data: str, recipe: str, folder: str, command: Command, calls: Calls) -> None:
    code, _, err = command("train", data, "--model", "resnet18")
    assert code == 0
    assert f"Recipe {recipe}, resnet18" in err
    assert calls[0][1:] == (data, Path("runs") / folder, False)


def test_ending(command: Command, calls: Calls) -> None:
    code, out, _ = command("train", "my photos", "-o", "out dir", "--resume")
    assert code == 0
    assert calls[0][2:] == (Path("out dir"), True)
    assert "Accuracy 87.5% on 8 held-out images" in out
    assert str(Path("out dir/model.safetensors")) in out
    for line in ("partialnet predict 'out dir' IMAGE…", "partialnet export 'out dir'"):
        assert line in out


def test_next_is_an_evaluation_of_held_out_images_only(command: Command, calls: Calls, tmp_path: Path) -> None:
    divided, whole = tmp_path / "divided", tmp_path / "whole"
    for folder in (divided / "train" / "cat", divided / "val" / "cat", whole / "cat"):
        folder.mkdir(parents=True)
    assert f"partialnet eval run {divided}" in command("train", str(divided), "-o", "run")[1]
    for data in ("digits", "torchvision:CIFAR10", str(whole)):
        assert "partialnet eval" not in command("train", data, "-o", "run")[1]


def test_a_file_can_name_the_recipe(command: Command, calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: cifar10\nlr: 5e-4\n")
    code, _, err = command("train", "photos", "--config", str(path))
    assert code == 0
    assert "Recipe cifar10" in err
    assert (calls[0][0].img_size, calls[0][0].lr) == (32, 5e-4)


def test_the_model_may_be_a_checkpoint(
    command: Command, calls: Calls, tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = run_folder / "model.safetensors"
    assert command("train", "photos", "--model", str(checkpoint))[0] == 0
    assert (calls[0][0].model, calls[0][0].weights) == ("partialnet_t0", str(checkpoint))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").touch()  # a name all the same
    assert command("train", "photos", "--model", "resnet18")[0] == 0
    (tmp_path / "net.onnx").touch()
    code, _, err = command("train", "photos", "--model", "net.onnx")
    assert code == 2
    assert "'net.onnx' is an exported file" in err


def test_a_folder_named_like_a_model(
    command: Command, calls: Calls, tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "resnet18"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: resnet18\n")
    same_run = ("--config", "resnet18/config.yaml", "-o", "resnet18", "--resume")
    assert command("train", "photos", *same_run)[0] == 0
    assert command("train", "photos", "--model", "resnet18")[0] == 0  # the folder has no network yet
    shutil.copytree(run_folder, folder, dirs_exist_ok=True)
    assert command("train", "photos", *same_run)[0] == 0
    assert command("train", "photos", "--model", "resnet18", "-o", str(folder), "--resume")[0] == 0
    assert [(config.model, config.weights) for config, *_ in calls] == 4 * [("resnet18", None)]
    assert command("train", "photos", "--model", "resnet18", "-o", "other")[0] == 0
    assert (calls[-1][0].model, calls[-1][0].weights) == ("partialnet_t0", "resnet18")


def test_mistake_in_a_file_names_the_file(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1\nlr_bach: 3\n")
    code, _, err = command("train", "photos", "--config", str(path))
    assert code == 2
    assert "learning_rate" in err
    assert "mine.yaml" in err


def test_batches_of_one_image_are_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch-size", "1", "--workers", "0", "--device", "cpu", "-o", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits", *options])
    assert stop.value.code == 2
    assert "cannot learn from batches of one image" in capsys.readouterr().err.splitlines()[-1]
