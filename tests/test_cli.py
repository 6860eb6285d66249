"""All commands alike: in a process of their own, with mistakes, help and versions."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import safetensors.torch
import timm
import torch
from commands import NUM_PHOTOS, Command, Result, assert_mistake, process

import partialnet.demo
from partialnet.checkpoint import create_checkpoint
from partialnet_cli.group import Subcommand
from partialnet_cli.main import cli, main
from partialnet_cli.runs import run_folder as default_run_folder


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


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_is_closed(
    closed: str, run_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As by ``>&-``: Python has None in its place."""
    monkeypatch.setattr(sys, closed, None)
    main(["predict", str(run_folder), str(photos), "--json", str(tmp_path / "answers.jsonl")])
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == NUM_PHOTOS
    assert getattr(sys, closed).name == os.devnull


def test_an_encoding_that_lacks_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a file that Windows writes."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="latin-1"))
    main(["info", "test_resnet"])
    sys.stdout.flush()
    assert "160×160" in printed.getvalue().decode("latin-1")
    assert rb"multiply\u2013adds" in printed.getvalue()


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
    assert first.startswith(f"partialnet: {str(run_folder / 'model.safetensors')!r} is not a JPEG, PNG,")
    assert last == "partialnet: 1 of 1 images could not be classified."
    assert_mistake(command("predict", run_folder, run_folder), "holds no image")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", ""],
        ["train", "photos", "--plan", ""],
        ["train", "digits", "--weights="],
        ["detect", "train", "photos", "--output", ""],
        ["predict", "", "photos"],
        ["ui", ""],
    ],
)
def test_empty_arguments(arguments: list[str], command: Command) -> None:
    """As of a variable that a script forgot to set; as a path it would be the current folder."""
    assert_mistake(command(*arguments), "An argument is empty", "not set")


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
    ("model_args", "part"), [({"num_classes": 0}, "no classes"), ({"num_classes": 2, "in_chans": 1}, "of 1 channel;")]
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
        (["info"], "SOURCE"),
        (["explain"], "SOURCE"),
        (["export"], "SOURCE"),
        (["predict"], "SOURCE"),
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


def test_help_needs_no_pytorch() -> None:
    # a module that is None cannot be imported
    code = "import sys; sys.modules['torch'] = None; from partialnet_cli import main; main(sys.argv[1:])"
    for arguments, begin in ((["--help"], "Usage: partialnet"), (["--version"], "partialnet, version"), ([], "Usage")):
        process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert (process.stdout + process.stderr).startswith(begin)


def subcommands(group: click.Group = cli, *, names: tuple[str, ...] = ()) -> list[list[str]]:
    """All that can be called, groups aside."""
    found = []
    for name, subcommand in group.commands.items():
        assert isinstance(subcommand, Subcommand)
        command = subcommand.load()
        assert command.name == name
        if isinstance(command, click.Group):
            found += subcommands(command, names=(*names, name))
        else:
            found.append([*names, name])
    return found


@pytest.mark.parametrize("arguments", subcommands(), ids=" ".join)
def test_every_command_has_an_example(arguments: list[str], command: Command) -> None:
    result = command(*arguments, "--help")
    assert result.code == 0
    assert max(len(line) for line in result.out.splitlines()) <= 100
    assert re.search(rf"Examples?: partialnet {' '.join(arguments)}", " ".join(result.out.split()))


@pytest.mark.parametrize("arguments", subcommands(), ids=" ".join)
def test_a_network_is_called_and_described_alike_in_every_command(arguments: list[str], command: Command) -> None:
    text = " ".join(command(*arguments, "--help").out.split())
    usage = text.partition("[OPTIONS]")[2].partition(" Example")[0]
    assert not re.match(r" \[?(MODEL|CHECKPOINT|RUN|NETWORK)\b", usage)
    if re.match(r" \[?SOURCE\b", usage):
        kinds = "a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors,"
        if arguments[0] == "detect":
            kinds = "a detector's run folder"
        assert f"SOURCE is {kinds}" in text


def test_version(command: Command) -> None:
    result = command("--version")
    assert (result.code, result.out) == (0, f"partialnet, version {partialnet.__version__}\n")


def test_the_next_command_imports_too(tmp_path: Path, command: Command) -> None:
    own = tmp_path / "own_nets_of_a_user.py"
    own.write_text("import partialnet\n")
    result = command("--import", own, "convert", "resnet10t", "--select", "layer3", "-o", tmp_path / "converted")
    assert f"Next: partialnet --import {own} train DATA --model {tmp_path}/converted" in result.out


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["train"], "runs/DATA-MODEL"),
        (["search"], "runs/DATA-MODEL-search"),
        (["detect", "train"], "runs/DATA-MODEL-detector"),
    ],
)
def test_help_names_the_run_folder(arguments: list[str], folder: str, command: Command) -> None:
    text = "".join(command(*arguments, "--help").out.split())  # also where a line ends within it
    assert f"Runfolder.[default:{folder}]" in text


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
