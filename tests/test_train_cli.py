"""``partialnet train``: its options and files of settings, and what it shows; the training itself is replaced."""

from __future__ import annotations

import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command, assert_mistake

from partialnet.errors import RunInterrupted
from partialnet.training import run as engine
from partialnet.training.config import TrainConfig
from partialnet.training.recipes import load_recipe
from partialnet.training.settings import settings_of

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


def test_help_has_all_settings_in_groups_and_pairs_of_flags(command: Command) -> None:
    code, out, _ = command("train", "--help")
    assert code == 0
    for name, setting in settings_of(TrainConfig).items():
        assert f"--{name.replace('_', '-')}" in out
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
        ("tables/labels.csv", "small", "labels-resnet18"),
    ],
)
def test_defaults(data: str, recipe: str, folder: str, command: Command, calls: Calls) -> None:
    code, _, err = command("train", data, "--model", "resnet18")
    assert code == 0
    assert f"Recipe {recipe}, resnet18" in err
    assert calls[0][0] == load_recipe(recipe, model="resnet18")
    assert calls[0][1:] == (data, Path("runs") / folder, False)


def test_ending(command: Command, calls: Calls) -> None:
    code, out, _ = command("train", "my photos", "-o", "out dir", "--resume")
    assert code == 0
    assert calls[0][2:] == (Path("out dir"), True)
    assert "Accuracy 87.5% on 8 held-out images" in out
    assert str(Path("out dir/model.safetensors")) in out
    for line in ("partialnet predict 'out dir' IMAGES", "partialnet export 'out dir'"):
        assert line in out


def test_next_is_an_evaluation_of_held_out_images_only(command: Command, calls: Calls, tmp_path: Path) -> None:
    divided, whole = tmp_path / "divided", tmp_path / "whole"
    for folder in (divided / "train" / "cat", divided / "val" / "cat", whole / "cat"):
        folder.mkdir(parents=True)
    for data in ("digits", "torchvision:CIFAR10", "wds/shards", str(divided)):
        assert f"partialnet eval run {data}" in command("train", data, "-o", "run")[1]
    assert "partialnet eval" not in command("train", str(whole), "-o", "run")[1]


def test_options_replace_the_file_and_the_file_the_recipe(command: Command, calls: Calls, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nbatch_size: 5\nmodel_args: {drop_rate: 0.1, depths: [1, 1, 1, 1]}\n")
    options = ("--batch-size", "9", "--model-args", "drop_rate=0.2", "--no-channels-last", "--clip-grad", "none")
    options += ("--learning-rate", "0.125")
    assert command("train", "photos", "--recipe", "finetune", "--config", file, *options).code == 0
    config = calls[0][0]
    assert (config.epochs, config.batch_size, config.channels_last, config.clip_grad) == (7, 9, False, None)
    assert config.lr == 0.125
    assert config.model_args == {"drop_rate": 0.2, "depths": [1, 1, 1, 1]}
    assert config.layer_decay == load_recipe("finetune").layer_decay


def test_the_option_replaces_the_recipe_of_the_file(command: Command, calls: Calls, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: finetune\nepochs: 7\n")
    for option, recipe in (([], "finetune"), (["--recipe", "small"], "small")):
        assert f"Recipe {recipe}" in command("train", "photos", "--config", file, *option).err
        assert calls[-1][0] == load_recipe(recipe, epochs=7)


def test_the_file_and_the_options_are_checked_together(command: Command, calls: Calls, tmp_path: Path) -> None:
    file = tmp_path / "frozen.yaml"
    file.write_text("freeze_backbone: true\n")
    command("train", "photos", "--config", file, "--weights", "runs/other")
    assert (calls[0][0].freeze_backbone, calls[0][0].weights) == (True, "runs/other")
    assert_mistake(command("train", "photos", "--config", file), "give weights")
    assert len(calls) == 1


def test_printed_configuration_can_be_used(command: Command, calls: Calls, tmp_path: Path) -> None:
    printed = command("train", "--recipe", "imagenet", "--model", "partialnet_s", "--lr", "3e-3", "--print-config")
    assert not calls
    (tmp_path / "printed.yaml").write_text(printed.out)
    command("train", "photos", "--config", tmp_path / "printed.yaml")
    assert calls[0][0] == load_recipe("imagenet", model="partialnet_s", lr=3e-3)


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


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(engine, "train", fail)


def test_interruption_says_resume_me(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").touch()
    fail_with(RunInterrupted("Stopped.", ("train", "my photos", "--resume")), monkeypatch)
    code, _, err = command("--import", "own.py", "train", "photos")
    assert code == 75
    assert err.endswith("partialnet: Stopped. Continue with: partialnet --import own.py train 'my photos' --resume\n")


def test_too_little_memory_on_a_gpu_is_one_sentence(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(torch.OutOfMemoryError("CUDA out of memory."), monkeypatch)
    code, _, err = command("train", "photos")
    assert code == 2
    assert "smaller batch size" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "table of files and classes as CSV, digits, torchvision:NAME, hfds/NAME or wds/FOLDER."),
        (["search"], "table of files and classes as CSV"),
        (["detect", "train"], "a folder in the COCO, YOLO or Pascal VOC format"),
    ],
)
def test_missing_data_is_told_with_all_kinds_of_it(arguments: list[str], message: str, command: Command) -> None:
    assert_mistake(command(*arguments), "Missing argument 'DATA': ", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--epoch", "3"], "--epochs"),
        (["photos", "--lr", "fast"], "lr is 'fast'"),
        (["photos", "--recipe", "imagnet"], "Did you mean imagenet"),
        (["photos", "--config", "missing.yaml"], "There is no configuration file 'missing.yaml'"),
        (["photos", "--model-args", "depth"], "should be KEY=VALUE"),
        (["photos", "--model-args", "depth=[1"], "cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, command: Command, calls: Calls) -> None:
    assert_mistake(command("train", *arguments), message)
    assert not calls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [", "is not a YAML file"),
        ("epoch: 3", "mean epochs"),
        ("learning_rate: 1\nlr_bach: 3\n", "Did you mean lr?"),
        ("init_from: run\n", "Did you mean weights?"),
    ],
)
def test_mistakes_in_files_are_one_sentence(
    text: str, message: str, command: Command, calls: Calls, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    assert_mistake(command("train", "photos", "--config", tmp_path / "wrong.yaml"), message, "wrong.yaml")
    assert not calls


def test_batches_of_one_image_are_refused_in_a_sentence(tmp_path: Path, command: Command) -> None:
    options = ("--batch-size", "1", "--workers", "0", "--device", "cpu", "-o", tmp_path / "run")
    code, _, err = command("train", "digits", *options)
    assert code == 2
    assert "cannot learn from batches of one image" in err.splitlines()[-1]
