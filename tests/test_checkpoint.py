"""Checkpoints come back bit for bit, survive a killed process, and a bad or hostile file gives one sentence."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import pickle
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from conftest import Randomize
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

import partialnet
from partialnet.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Checkpoint, create_checkpoint, load
from partialnet.errors import UserError
from partialnet.files import write_atomically
from partialnet.models import PartialNet

#: A PartialNet of a tenth of a million parameters
TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 2, 1], "head_hidden_size": 24, "num_classes": 3}
NAMES = ("Straße", "猫 🐈", 'a "quoted" name')


def tiny(randomize: Randomize, **model_args: Any) -> Checkpoint:
    checkpoint = create_checkpoint("partialnet_t0", NAMES, **{**TINY, **model_args})
    randomize(checkpoint.model)
    checkpoint.input_config |= {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    checkpoint.input_config |= {"crop_pct": 0.95, "interpolation": "bilinear"}
    return checkpoint


@pytest.fixture
def run_folder(tmp_path: Path, randomize: Randomize) -> Path:
    tiny(randomize).save(tmp_path / "run")
    return tmp_path / "run"


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(torch.arange(2 * 3 * 64 * 64).reshape(2, 3, 64, 64).mul(0.37).sin())


def assert_bitwise_equal(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the configuration in a file's header."""
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["partialnet"])
    changed = change(config)
    text = json.dumps(config if changed is None else changed)
    path.write_bytes(safetensors.torch.save(safetensors.torch.load_file(path), {"format": "pt", "partialnet": text}))


def assert_one_sentence(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message


# -- writing and reading ---------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path, randomize: Randomize) -> None:
    saved = tiny(randomize)
    path = saved.save(tmp_path / "some" / "new" / "run")
    assert path == tmp_path / "some" / "new" / "run" / WEIGHTS_NAME
    assert sorted(file.name for file in path.parent.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    for source in (path.parent, path, str(path)):
        loaded = load(source)
        assert_bitwise_equal(loaded.model.state_dict(), saved.model.state_dict())
        assert torch.equal(logits(loaded.model), logits(saved.model))
        assert loaded.architecture == "partialnet_t0"
        assert loaded.model_args == TINY
        assert loaded.class_names == NAMES
        assert loaded.input_config == saved.input_config
        assert not loaded.model.training


def test_saving_again_gives_the_same(run_folder: Path, tmp_path: Path) -> None:
    """All but the order of the header's entries, which the safetensors library shuffles."""
    load(run_folder).save(tmp_path / "again")
    assert (tmp_path / "again" / CONFIG_NAME).read_bytes() == (run_folder / CONFIG_NAME).read_bytes()
    contents = []
    for folder in (run_folder, tmp_path / "again"):
        content = (folder / WEIGHTS_NAME).read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        contents.append((json.loads(content[8:end]), content[end:]))
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    "model_args",
    [
        {"mixers": [{"name": "pat_ch", "attention": "srm"}, "conv", "pat_ch", {"name": "pat_sf", "num_heads": 2}]},
        {"split_ratio": [0.5, 0.25, 0.25, 0.25, 0.125], "mlp_ratio": 3.0, "act_layer": "relu"},
        {"mlp_attention": {"attention_scope": "full"}, "in_chans": 1, "global_pool": "max"},
        {"num_classes": 0},
    ],
)
def test_round_trip_of_arguments(model_args: dict[str, Any], tmp_path: Path, randomize: Randomize) -> None:
    saved = create_checkpoint("partialnet_t2", (), **{**TINY, **model_args})
    randomize(saved.model)
    saved.save(tmp_path)
    loaded = load(tmp_path)
    assert_bitwise_equal(loaded.model.state_dict(), saved.model.state_dict())
    images = torch.randn(2, model_args.get("in_chans", 3), 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), saved.model(images))
    assert loaded.class_names == ()


def test_round_trip_of_another_network_of_timm(tmp_path: Path, randomize: Randomize) -> None:
    saved = create_checkpoint("resnet10t", ("a", "b"), num_classes=2)
    randomize(saved.model)
    saved.save(tmp_path)
    assert torch.equal(logits(load(tmp_path).model), logits(saved.model))


def test_channels_last_network(tmp_path: Path, randomize: Randomize) -> None:
    saved = tiny(randomize)
    expected = {name: tensor.clone() for name, tensor in saved.model.state_dict().items()}
    saved.model.to(memory_format=torch.channels_last)
    saved.save(tmp_path)
    assert_bitwise_equal(load(tmp_path).model.state_dict(), expected)


def test_file_alone_is_enough(run_folder: Path, tmp_path: Path) -> None:
    expected = load(run_folder)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(run_folder / WEIGHTS_NAME, tmp_path / "elsewhere" / "renamed.safetensors")
    shutil.rmtree(run_folder)
    loaded = load(moved)
    assert_bitwise_equal(loaded.model.state_dict(), expected.model.state_dict())
    assert (loaded.class_names, loaded.input_config) == (expected.class_names, expected.input_config)


def test_timm_reads_the_run_folder(run_folder: Path) -> None:
    model = timm.create_model(f"local-dir:{run_folder}", pretrained=True).eval()
    assert torch.equal(logits(model), logits(load(run_folder).model))
    assert model.num_classes == 3
    assert model.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    assert tuple(timm.data.resolve_data_config(model=model)["input_size"]) == (3, 64, 64)


def test_we_read_a_file_that_timm_wrote(tmp_path: Path, randomize: Randomize) -> None:
    """timm's file has no header of ours; the configuration beside it is used."""
    model = randomize(timm.create_model("partialnet_t0", num_classes=2)).eval()
    model_config = {"label_names": ["cat", "dog"]}
    timm.models.save_for_hf(model, tmp_path, model_config=model_config, safe_serialization=True)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.class_names == ("cat", "dog")


FRESH_PROCESS = """
import hashlib, sys, timm, torch
torch.set_num_threads(1)
import partialnet
from partialnet.checkpoint import load

images = torch.arange(2 * 3 * 64 * 64).reshape(2, 3, 64, 64).mul(0.37).sin()
with torch.no_grad():
    for model in (load(sys.argv[1]).model, timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()):
        print(hashlib.sha256(model(images).numpy().tobytes()).hexdigest())
"""


def test_fresh_process_gives_the_same_bits(tmp_path: Path, randomize: Randomize) -> None:
    saved = tiny(randomize)
    saved.save(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [hashlib.sha256(logits(saved.model).numpy().tobytes()).hexdigest()] * 2


# -- names, and what is no checkpoint --------------------------------------------------------------------------------


def test_model_name_gives_an_untrained_network() -> None:
    checkpoint = load("partialnet_t0")
    assert isinstance(checkpoint.model, PartialNet)
    assert checkpoint.architecture == "partialnet_t0"
    assert not checkpoint.model.training
    assert checkpoint.input_config["input_size"] == [3, 224, 224]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("partialnet_t9", "partialnet_t0"),
        ("partialnet", "partialnet_s"),
        ("nothing_like_this", "no such file or folder"),
        ("no/such/folder", "'no/such/folder'"),
        ("missing.safetensors", "'missing.safetensors'"),
        ("missing.pth", "'missing.pth'"),
        ("hf-hub:someone/model", "hf-hub"),
        ("local-dir:somewhere", "local-dir"),
        ("https://example.org/model.safetensors", "https"),
        ("", ""),
        ("[", ""),
        ("x\0y", ""),
    ],
)
def test_unknown_source(name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forbid_network(monkeypatch)
    with pytest.raises(UserError) as error:
        load(name)
    assert_one_sentence(error, hint)


def test_folder_without_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert_one_sentence(error, str(tmp_path), WEIGHTS_NAME)


def test_refused_arguments() -> None:
    with pytest.raises(UserError, match="embed_dimension"):
        create_checkpoint("partialnet_t0", embed_dimension=32)
    with pytest.raises(UserError, match="split_ratio=2"):
        create_checkpoint("partialnet_t0", split_ratio=2)


# -- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 2000, 0.25, 0.5, 0.9, -1000, -1])
def test_truncated_safetensors(length: float, run_folder: Path) -> None:
    path = run_folder / WEIGHTS_NAME
    content = path.read_bytes()
    cut = int(length * len(content)) if isinstance(length, float) else length
    path.write_bytes(content[:cut])
    with pytest.raises(UserError) as error:
        load(run_folder)
    assert_one_sentence(error, str(path))


def test_bytes_behind_the_end(run_folder: Path) -> None:
    path = run_folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, str(path))


@pytest.mark.parametrize("seed", range(8))
def test_corrupt_header(seed: int, run_folder: Path) -> None:
    """Some bytes of the header changed: a sentence, or, where the change is harmless, the same network."""
    path = run_folder / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    expected = load(path).model.state_dict()
    draw = random.Random(seed)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(25):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 3])):
            changed[draw.randrange(end)] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            loaded = load(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert_bitwise_equal(loaded.model.state_dict(), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".bin", ""])
def test_random_bytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    for seed in range(300):
        draw = random.Random(seed)
        path.write_bytes(draw.randbytes(draw.choice([1, 2, 8, 100, 5000])))
        with pytest.raises(UserError) as error:
            load(path)
        assert_one_sentence(error, str(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".jpg"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"This is a text, not a checkpoint.\n",
        b'{"architecture": "partialnet_t0"}',
        b"\x80",
        b"\x80\x02",
        b"\x80\x02}q\x00.",
        b"\x80\x04\x95" + bytes(20),
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\x7fELF" + bytes(100),
    ],
)
def test_file_of_another_kind(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, str(path))


def test_weights_of_another_network(run_folder: Path, tmp_path: Path) -> None:
    """The header says partialnet_t0, the tensors are ResNet's, or of another width."""
    with safetensors.safe_open(run_folder / WEIGHTS_NAME, "pt") as file:
        metadata = file.metadata()
    for model in (timm.create_model("resnet10t"), timm.create_model("partialnet_t0"), nn.Linear(2, 2)):
        path = tmp_path / "alien.safetensors"
        safetensors.torch.save_file(model.state_dict(), path, metadata)
        with pytest.raises(UserError) as error:
            load(path)
        assert_one_sentence(error, str(path), "do not fit")


def test_safetensors_without_configuration(tmp_path: Path) -> None:
    path = tmp_path / "alien.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), path)
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, str(path), CONFIG_NAME)


def without_architecture(config: dict[str, Any]) -> None:
    del config["architecture"]


def pretrained(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["pretrained_cfg"].update(changes)


def top(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(changes)


CORRUPTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda config: [],
    "a text": lambda config: "text",
    "empty": lambda config: {},
    "no architecture": without_architecture,
    "architecture of a wrong type": top(architecture=5),
    "architecture missing": top(architecture=None),
    "architecture unknown": top(architecture="no_such_network"),
    "arguments of a wrong type": top(model_args=[1]),
    "depths of a wrong type": top(model_args={"depths": "many"}),
    "negative width": top(model_args={"embed_dim": -4}),
    "classes of a wrong type": top(num_classes="three"),
    "no input configuration": top(pretrained_cfg=None),
    "class names of a wrong type": top(label_names=5),
    "too few class names": top(label_names=["only", "two"]),
    "class names that are no names": top(label_names=["one", 2, None]),
    "input size one number": pretrained(input_size=64),
    "input size without channels": pretrained(input_size=[64, 64]),
    "input size zero": pretrained(input_size=[3, 0, 0]),
    "mean of a wrong type": pretrained(mean="grey"),
    "deviation zero": pretrained(std=[0, 0, 0]),
    "interpolation unknown": pretrained(interpolation="magic"),
    "crop of a wrong type": pretrained(crop_pct="all"),
}


@pytest.mark.parametrize("change", CORRUPTIONS)
def test_corrupt_configuration(change: str, run_folder: Path) -> None:
    """Whoever edits a configuration by hand is told what is wrong with it when the checkpoint is loaded."""
    edit_header(run_folder / WEIGHTS_NAME, CORRUPTIONS[change])
    with pytest.raises(UserError) as error:
        load(run_folder)
    assert_one_sentence(error)


# -- hostile files ---------------------------------------------------------------------------------------------------


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"checkpoint_path": "EVIL"}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"pretrained_cfg": {"file": "EVIL"}}},
        {"model_args": {"pretrained": True, "pretrained_cfg": {"file": "EVIL", "custom_load": False}}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "EVIL"}}},
        {"model_args": {"cache_dir": "/tmp"}},
        {"model_args": {"model_name": "resnet18"}},
        {"architecture": "hf-hub:someone/evil"},
        {"architecture": "hf_hub:someone/evil"},
        {"architecture": "timm/resnet10t.c3_in1k"},
        {"architecture": "local-dir:FOLDER"},
        {"architecture": "https://example.org/evil.pth"},
        {"architecture": "../evil"},
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["header", "config.json"])
def test_configuration_that_would_load_something(
    changes: dict[str, Any], place: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    marker = tmp_path / "marker"
    torch.save(Evil(marker), tmp_path / "evil.pth")
    text = json.dumps(changes).replace("EVIL", str(tmp_path / "evil.pth")).replace("FOLDER", str(run_folder))
    changes = json.loads(text)

    def change(config: dict[str, Any]) -> None:
        config["model_args"] |= changes.get("model_args", {})
        config |= {key: value for key, value in changes.items() if key != "model_args"}

    edit_header(run_folder / WEIGHTS_NAME, change)
    if place == "config.json":
        with safetensors.safe_open(run_folder / WEIGHTS_NAME, "pt") as file:
            (run_folder / CONFIG_NAME).write_text(file.metadata()["partialnet"])
        safetensors.torch.save_file(
            safetensors.torch.load_file(run_folder / WEIGHTS_NAME), run_folder / WEIGHTS_NAME, {"format": "pt"}
        )
    with pytest.raises(UserError) as error:
        load(run_folder)
    assert_one_sentence(error)
    assert not marker.exists()


def test_places_to_download_from_are_ignored(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_network(monkeypatch)
    torch.save(Evil(tmp_path / "marker"), tmp_path / "evil.pth")
    edit_header(
        run_folder / WEIGHTS_NAME,
        lambda config: config["pretrained_cfg"].update(
            file=str(tmp_path / "evil.pth"), url="https://example.org/evil.pth", hf_hub_id="someone/evil"
        ),
    )
    assert load(run_folder).architecture == "partialnet_t0"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors", ""])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "in a namespace", "beside real weights"])
def test_malicious_pickle(form: str, suffix: str, tmp_path: Path, randomize: Randomize) -> None:
    marker, path = tmp_path / "marker", tmp_path / f"evil{suffix}"
    evil: Any = Evil(marker)
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        content: Any = {"state_dict": evil}
        if form == "in a namespace":
            content = {"hyper_parameters": argparse.Namespace(lr=evil), "state_dict": {}}
        if form == "beside real weights":
            content = {"state_dict": released_layout(tiny(randomize).model), "epoch": evil}
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    assert not marker.exists()
    allowed = torch.serialization.get_safe_globals()
    with pytest.raises(UserError) as error:
        load(path)
    assert not marker.exists()
    assert_one_sentence(error, str(path))
    assert set(torch.serialization.get_safe_globals()) == set(allowed)  # a list of a set, in no order
    # the trap is one: an unpickler that trusts the file springs it
    trusting = path.rename(tmp_path / "evil.bin")
    (pickle.loads(trusting.read_bytes()) if form == "plain pickle" else torch.load(trusting, weights_only=False))
    assert marker.exists()


# -- files of timm's training script ---------------------------------------------------------------------------------


def timm_training_file(folder: Path, model: nn.Module, options: dict[str, Any]) -> Path:
    """What timm's own saver writes, with an average of the weights that differs from them."""
    averaged = ModelEmaV3(model)
    with torch.no_grad():
        for parameter in averaged.module.parameters():
            parameter.mul_(1.1)
    saver = CheckpointSaver(
        model,
        torch.optim.AdamW(model.parameters()),
        args=argparse.Namespace(**options),
        model_ema=averaged,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(epoch=3, metric=70.0)
    model.load_state_dict(averaged.module.state_dict())
    return folder / "model_best.pth.tar"


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("partialnet_t0", {"num_classes": 3}, {"num_classes": None, "img_size": 96, "model_kwargs": {}}),
        ("test_resnet.r160_in1k", {"num_classes": 3, "in_chans": 1, "global_pool": "max"}, {"gp": "max"}),
        ("test_vit", {"num_classes": 4, "img_size": 96}, {"img_size": 96, "num_classes": 4, "gp": None}),
    ],
)
def test_timm_training_file(
    name: str, arguments: dict[str, Any], options: dict[str, Any], tmp_path: Path, randomize: Randomize
) -> None:
    model = randomize(timm.create_model(name, **arguments))
    channels = arguments.get("in_chans", 3)
    given = {"model": name, "mean": [0.4] * channels, "crop_pct": 0.8, **options}
    path = timm_training_file(tmp_path, model, given)
    loaded = load(path)
    images = torch.rand(2, channels, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model.eval()(images), rtol=0, atol=0)
    size = [channels, *[options.get("img_size", 160)] * 2]
    assert list(loaded.input_config["mean"]) == [0.4] * channels
    assert (list(loaded.input_config["input_size"]), loaded.input_config["crop_pct"]) == (size, 0.8)
    loaded.save(tmp_path / "run")
    assert load(tmp_path / "run").architecture == name.partition(".")[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arch": "hf_hub:someone/evil"}, "neither a PartialNet"),
        ({"arch": "resnet18"}, "do not fit"),
        ({"args": argparse.Namespace(model_kwargs={"checkpoint_path": "evil.pth"})}, "checkpoint_path"),
        ({"args": argparse.Namespace(mean=["red"])}, "mean"),
        ({"args": argparse.Namespace(input_size=7)}, "options"),
    ],
)
def test_misleading_timm_training_file(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    torch.save({"arch": "test_resnet", "state_dict": model.state_dict(), **changes}, tmp_path / "last.pth.tar")
    with pytest.raises(UserError) as error:
        load(tmp_path / "last.pth.tar")
    assert_one_sentence(error, expected)


# -- the authors' files ----------------------------------------------------------------------------------------------


def released_layout(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Our weights under the authors' names, written down from their code: the inverse of what we load."""
    names = {
        "mixer.conv": "spatial_mixing.partial_conv3",
        "mixer.attn.gate_norm": "spatial_mixing.attn.bn",
        "mixer.attn.qkv": "spatial_mixing.attn.qkv",
        "mixer.attn.proj": "spatial_mixing.attn.proj",
        "mixer.attn.norm": "spatial_mixing.norm",
        "mlp.fc1": "mlp.0",
        "mlp.norm": "mlp.1",
        "mlp.fc2": "mlp.3",
        "mlp_attention.conv": "mlp.4.conv",
        "mlp_attention.conv_norm": "mlp.4.norm2",
        "mlp_attention.attn.conv": "mlp.4.conv_attn",
        "mlp_attention.attn.norm": "mlp.4.norm",
    }
    renamed = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        layer, leaf = ".".join(parts[4:-1]), parts[-1]
        if parts[0] == "out_norms":
            name = f"norm{2 * int(parts[1])}.{leaf}"
        elif parts[0] == "conv_head":
            name = f"avgpool_pre_head.1.{leaf}"
        elif parts[0] == "classifier":
            name = f"head.{leaf}"
        elif parts[0] == "stages" and parts[2] == "downsample":
            name = f"stages.{2 * int(parts[1]) - 1}.{parts[3]}.{leaf}"
        elif parts[0] == "stages":
            block = f"stages.{2 * int(parts[1])}.blocks.{parts[3]}"
            if layer == "mixer.attn" and leaf == "weight":
                channels = tensor.shape[0]  # a convolution over the pair (mean, std)
                tensor = torch.stack((tensor[:, :channels], tensor[:, channels:]), 2)[:, :, None]
                name = f"{block}.spatial_mixing.attn.cfc1.weight"
            elif layer == "mixer.attn.position_bias":
                name = f"{block}.spatial_mixing.attn.rpe_k.lookup_table_bias"
            else:
                name = f"{block}.{names[layer]}.{leaf}"
        renamed[prefix + name] = tensor.clone()
    return renamed


@pytest.fixture
def released(randomize: Randomize) -> tuple[nn.Module, dict[str, Tensor]]:
    model = timm.create_model("partialnet_t0", num_classes=5, depths=(1, 2, 3, 1), head_hidden_size=64).eval()
    randomize(model)
    return model, released_layout(model)


def lightning_checkpoint(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    return {
        "epoch": 299,
        "global_step": 375300,
        "pytorch-lightning_version": "1.6.5",
        "state_dict": {f"model.{name}": tensor for name, tensor in state_dict.items()},
        "callbacks": {"ModelCheckpoint": {"monitor": "val_acc1", "best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 299, "_last_lr": [1e-5]}],
        "hparams_name": "hparams",
        "hyper_parameters": {"hparams": argparse.Namespace(model_name="partialnet", lr=0.001, depths=[1, 2, 8, 2])},
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state},
        lambda state: {"state_dict_ema": state, "state_dict": {name: 0 * tensor for name, tensor in state.items()}},
        lambda state: {"model_ema": state, "model": {name: 0 * tensor for name, tensor in state.items()}},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module.model.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1, out=None, sizes=[1, 2])},
        lightning_checkpoint,
    ],
    ids=[
        "bare",
        "model",
        "state_dict",
        "ema",
        "model_ema",
        "nested",
        "module",
        "module.model",
        "compiled",
        "args",
        "ckpt",
    ],
)
def test_released_file(
    wrap: Callable[[dict[str, Tensor]], Any],
    legacy: bool,
    released: tuple[nn.Module, dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    model, state = released
    path = tmp_path / "released.pth"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=not legacy)
    loaded = partialnet.load_released(path)
    assert not loaded.training
    assert_bitwise_equal(loaded.state_dict(), model.state_dict())
    assert torch.equal(logits(loaded), logits(model))


def test_released_lightning_file(
    released: tuple[nn.Module, dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, state = released
    path = tmp_path / "epoch=299.ckpt"
    torch.save(lightning_checkpoint({**state, "criterion.weight": torch.ones(5)}), path)
    with caplog.at_level(logging.INFO, "partialnet.checkpoint"):
        checkpoint = load(path)
    assert torch.equal(logits(checkpoint.model), logits(model))
    assert f"{len(state)} tensors loaded" in caplog.text
    assert "criterion.weight" in caplog.text


def test_released_backbone(tmp_path: Path, randomize: Randomize) -> None:
    model = randomize(timm.create_model("partialnet_t0", depths=(1, 1, 2, 1), out_norms=True)).eval()
    state = {
        name: tensor for name, tensor in released_layout(model).items() if not name.startswith(("avgpool", "head"))
    }
    torch.save({"state_dict": state}, tmp_path / "backbone.pth")
    features = partialnet.load_released(tmp_path / "backbone.pth")(torch.ones(1, 3, 64, 64))
    expected = model.forward_intermediates(torch.ones(1, 3, 64, 64), norm=True, intermediates_only=True)
    assert [feature.shape[1] for feature in features] == [32, 64, 128, 256]
    for feature, right in zip(features, expected, strict=True):
        assert torch.equal(feature, right)


def test_released_file_becomes_a_run_folder(released: tuple[nn.Module, dict[str, Tensor]], tmp_path: Path) -> None:
    """Convert once, then use everything that works with our own checkpoints."""
    model, state = released
    torch.save(state, tmp_path / "released.pth")
    load(tmp_path / "released.pth").save(tmp_path / "run")
    assert torch.equal(logits(load(tmp_path / "run").model), logits(model))
    timms = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    assert torch.equal(logits(timms), logits(model))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_released_file(legacy: bool, tmp_path: Path, released: tuple[nn.Module, dict[str, Tensor]]) -> None:
    path = tmp_path / "released.pth"
    torch.save({"state_dict": released[1]}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    draw = random.Random(0)
    lengths = [*range(0, 200, 3), *(draw.randrange(len(content)) for _ in range(40)), len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as error:
            load(path)
        assert_one_sentence(error, str(path))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_damaged_released_file(legacy: bool, tmp_path: Path) -> None:
    """Bytes changed anywhere: one sentence, whatever torch's reader makes of them."""
    state = {"stages.0.blocks.0.spatial_mixing.partial_conv3.weight": torch.ones(4, 4, 3, 3), "x": torch.ones(3)}
    path = tmp_path / "released.pth"
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 4])):
            changed[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(changed)
        with pytest.raises(UserError) as error:
            load(path)
        assert_one_sentence(error)


def test_text_is_told_without_the_readers_own_words(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("text\n")
    with pytest.raises(UserError, match=r"note\.txt' is damaged or no checkpoint\.$"):
        load(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: timm.create_model("resnet10t").state_dict(), id="ResNet"),
        pytest.param(lambda: {"state_dict": timm.create_model("mobilenetv3_small_050").state_dict()}, id="MobileNet"),
        pytest.param(dict, id="empty"),
        pytest.param(lambda: {"state_dict": {}}, id="empty state dict"),
        pytest.param(lambda: torch.ones(3), id="a tensor"),
        pytest.param(lambda: [1, 2, 3], id="a list"),
        pytest.param(lambda: "text", id="a text"),
        pytest.param(lambda: {"state_dict": {"model": {"state_dict": 5}}}, id="a number"),
        pytest.param(lambda: {1: torch.ones(2)}, id="numbered"),
    ],
)
def test_alien_file(content: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "alien.pth"
    torch.save(content(), path)
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, str(path), "neither a PartialNet")


@pytest.mark.parametrize("seed", range(3))
def test_released_file_with_tensors_of_wrong_shape(
    seed: int, released: tuple[nn.Module, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Any tensor of any shape: one sentence, not a message from deep within torch."""
    path = tmp_path / "released.pth"
    draw = random.Random(seed)
    for name in draw.sample([name for name, tensor in released[1].items() if tensor.ndim > 1], 12):
        tensor = released[1][name]
        shape = draw.choice([tensor.shape[1:], (*tensor.shape, 1), (tensor.shape[0] + 1, *tensor.shape[1:]), (), (0,)])
        torch.save({**released[1], name: torch.zeros(shape)}, path)
        with pytest.raises(UserError) as error:
            load(path)
        assert_one_sentence(error)


def test_released_file_that_lacks_a_tensor(released: tuple[nn.Module, dict[str, Tensor]], tmp_path: Path) -> None:
    path = tmp_path / "released.pth"
    draw = random.Random(0)
    for name in draw.sample(sorted(released[1]), 15):
        if name.startswith("head."):
            continue
        torch.save({key: tensor for key, tensor in released[1].items() if key != name}, path)
        with pytest.raises(UserError) as error:
            load(path)
        assert_one_sentence(error)


# -- writing in one step ---------------------------------------------------------------------------------------------


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second, longer", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_written_file_has_usual_permissions(mask: int, tmp_path: Path) -> None:
    """Those of a file made by open(), so that others can read a run folder; a temporary file's are stricter."""
    previous = os.umask(mask)
    try:
        write_atomically(tmp_path / "ours", b"")
        (tmp_path / "usual").write_bytes(b"")
        assert os.umask(mask) == mask
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "usual")}
    assert modes == {0o666 & ~mask}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_write_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, call, fail)
    if call == "replace":
        monkeypatch.setattr(Path, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_failing_save_leaves_the_old_checkpoint(
    run_folder: Path, randomize: Randomize, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = {file.name: file.read_bytes() for file in run_folder.iterdir()}
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        tiny(randomize).save(run_folder)
    assert {file.name: file.read_bytes() for file in run_folder.iterdir()} == before


def test_interrupt_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


#: For each line it reads, a child process that saves over and over until it is killed. Every save has one number in
#: all its tensors and in its class names.
WRITER = """
import itertools, os, sys
import torch
torch.set_num_threads(1)
from partialnet.checkpoint import Checkpoint, create_checkpoint

network = create_checkpoint("partialnet_t0", num_classes=2)

def save(value):
    for tensor in network.model.state_dict().values():
        tensor.fill_(value)
    names = (str(value),) * 2
    Checkpoint(network.model, "partialnet_t0", network.model_args, names, network.input_config).save(sys.argv[1])

save(0)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        for value in itertools.count(int(line)):
            save(value % 1000)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    """SIGKILL at random moments: the file is always a whole one, of a single save."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    draw, seen, cut_short = random.Random(0), set(), 0
    try:
        assert writer.stdout.readline() == "ready\n"
        for kill in range(80):
            if kill >= 10 and cut_short:
                break  # a kill that falls into the writing of a file is a matter of luck
            writer.stdin.write(f"{100 * kill + 1}\n")
            child = int(writer.stdout.readline())
            time.sleep(draw.uniform(0.05, 0.3))
            os.kill(child, signal.SIGKILL)
            assert writer.stdout.readline() == "ended\n"
            checkpoint = load(tmp_path)
            values = {float(tensor.double().min()) for tensor in checkpoint.model.state_dict().values()}
            values |= {float(tensor.double().max()) for tensor in checkpoint.model.state_dict().values()}
            values |= {float(name) for name in checkpoint.class_names}
            assert len(values) == 1
            seen |= values
            unfinished = [file for file in tmp_path.iterdir() if file.name not in (WEIGHTS_NAME, CONFIG_NAME)]
            cut_short += bool(unfinished)
            for file in unfinished:
                file.unlink()
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) > 3  # it did save
    assert cut_short  # and was killed in the middle of it


@pytest.mark.parametrize("img_size", [None, (64, 64)])
def test_folded_network_saves_and_loads(img_size, tmp_path):
    original = create_checkpoint("partialnet_t0", num_classes=4)
    path = original.fold(img_size).save(tmp_path)
    loaded = load(path)
    assert loaded.folded == (img_size or True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), original.model(images), rtol=1e-4, atol=1e-6)


def test_mistyped_model_name_gets_near_ones():
    with pytest.raises(UserError, match="partialnet_t0"):
        load("patrialnet_t0")


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_form_for_a_runtime_saves_and_loads(runtime: Any, tmp_path: Path, randomize: Randomize) -> None:
    folded = tiny(randomize).fold((64, 64), runtime)
    folded.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.runtime == runtime
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), folded.model(images), rtol=1e-5, atol=1e-5)
