"""A damaged or hostile checkpoint gives one sentence, and nothing in it is run."""

from __future__ import annotations

import argparse
import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from conftest import Randomize
from stored_networks import (
    assert_bitwise_equal,
    assert_one_sentence,
    assert_refused,
    edit_header,
    forbid_network,
    released_layout,
    tiny,
)
from torch import nn

from partialnet.checkpoint import load
from partialnet.checkpoint.stored_network import CONFIG_NAME, WEIGHTS_NAME
from partialnet.detection.checkpoint import load_detector
from partialnet.errors import UserError

# -- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 2000, 0.25, 0.5, 0.9, -1000, -1])
def test_truncated_safetensors(length: float, own_run: Path) -> None:
    path = own_run / WEIGHTS_NAME
    content = path.read_bytes()
    cut = int(length * len(content)) if isinstance(length, float) else length
    path.write_bytes(content[:cut])
    assert_refused(own_run, str(path))


def test_bytes_behind_the_end(own_run: Path) -> None:
    path = own_run / WEIGHTS_NAME
    path.write_bytes(path.read_bytes() + b"more")
    assert_refused(path, str(path))


@pytest.mark.parametrize("seed", range(8))
def test_corrupt_header(seed: int, own_run: Path) -> None:
    """Some bytes of the header changed: a sentence, or, where the change is harmless, the same network."""
    path = own_run / WEIGHTS_NAME
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
        assert_refused(path, str(path))


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
    assert_refused(path, str(path))


def test_text_is_told_without_the_readers_own_words(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("text\n")
    with pytest.raises(UserError, match=r"note\.txt' is damaged or not a checkpoint\.$"):
        load(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_told_without_the_readers_advice(tmp_path: Path) -> None:
    """PyTorch's message goes on to advise ``weights_only=False``, which would run the code in the file."""
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), tmp_path / "script.pt")
    with pytest.raises(UserError, match=r"script\.pt' is damaged or not a checkpoint: .*TorchScript") as error:
        load(tmp_path / "script.pt")
    assert_one_sentence(error)
    assert "likely succeed" not in str(error.value)


def test_configuration_without_preprocessing(own_run: Path, tmp_path: Path) -> None:
    """As of a folder that was written by hand."""
    content = (own_run / WEIGHTS_NAME).read_bytes()
    (tmp_path / WEIGHTS_NAME).write_bytes(content)
    edit_header(tmp_path / WEIGHTS_NAME, lambda config: {"architecture": "partialnet_t0", "num_classes": 3})
    with pytest.raises(UserError, match="cannot be used: it has no 'pretrained_cfg'"):
        load(tmp_path)


def test_weights_of_another_network(own_run: Path, tmp_path: Path) -> None:
    """The header says partialnet_t0, the tensors are ResNet's, or of another width."""
    with safetensors.safe_open(own_run / WEIGHTS_NAME, "pt") as file:
        metadata = file.metadata()
    for model in (timm.create_model("resnet10t"), timm.create_model("partialnet_t0"), nn.Linear(2, 2)):
        path = tmp_path / "alien.safetensors"
        safetensors.torch.save_file(model.state_dict(), path, metadata)
        assert_refused(path, str(path), "do not fit")


def test_safetensors_without_configuration(tmp_path: Path) -> None:
    path = tmp_path / "alien.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), path)
    assert_refused(path, str(path), CONFIG_NAME)


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
def test_corrupt_configuration(change: str, own_run: Path) -> None:
    """Whoever edits a configuration by hand is told what is wrong with it when the checkpoint is loaded."""
    edit_header(own_run / WEIGHTS_NAME, CORRUPTIONS[change])
    assert_refused(own_run)


# -- hostile files ---------------------------------------------------------------------------------------------------


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
    changes: dict[str, Any], place: str, own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    marker = tmp_path / "marker"
    torch.save(Evil(marker), tmp_path / "evil.pth")
    text = json.dumps(changes).replace("EVIL", str(tmp_path / "evil.pth")).replace("FOLDER", str(own_run))
    changes = json.loads(text)

    def change(config: dict[str, Any]) -> None:
        config["model_args"] |= changes.get("model_args", {})
        config |= {key: value for key, value in changes.items() if key != "model_args"}

    edit_header(own_run / WEIGHTS_NAME, change)
    if place == "config.json":
        with safetensors.safe_open(own_run / WEIGHTS_NAME, "pt") as file:
            (own_run / CONFIG_NAME).write_text(file.metadata()["partialnet"])
        safetensors.torch.save_file(
            safetensors.torch.load_file(own_run / WEIGHTS_NAME), own_run / WEIGHTS_NAME, {"format": "pt"}
        )
    assert_refused(own_run)
    assert not marker.exists()


def test_places_to_download_from_are_ignored(own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_network(monkeypatch)
    torch.save(Evil(tmp_path / "marker"), tmp_path / "evil.pth")
    edit_header(
        own_run / WEIGHTS_NAME,
        lambda config: config["pretrained_cfg"].update(
            file=str(tmp_path / "evil.pth"), url="https://example.org/evil.pth", hf_hub_id="someone/evil"
        ),
    )
    assert load(own_run).architecture == "partialnet_t0"
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


# -- the wrong file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [load, load_detector])
def test_the_weights_of_an_exported_file(opened: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_text("<net/>")
    (tmp_path / "net.bin").write_bytes(bytes(100))
    with pytest.raises(UserError) as error:
        opened(tmp_path / "net.bin")
    assert_one_sentence(error, str(tmp_path / "net.bin"), f"{str(tmp_path / 'net.xml')!r}; give that one")
