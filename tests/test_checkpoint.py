"""Checkpoints come back bit for bit, under their names, folded or not."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from stored_networks import NAMES, TINY, assert_bitwise_equal, assert_refused, forbid_network, logits, tiny

from partialnet.checkpoint import create_checkpoint, load
from partialnet.checkpoint.stored_network import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_tensors,
    read_network,
    serialize_network,
)
from partialnet.errors import UserError
from partialnet.models import PartialNet

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


def test_saving_again_gives_the_same(own_run: Path, tmp_path: Path) -> None:
    """All but the order of the header's entries, which the safetensors library shuffles."""
    load(own_run).save(tmp_path / "again")
    assert (tmp_path / "again" / CONFIG_NAME).read_bytes() == (own_run / CONFIG_NAME).read_bytes()
    contents = []
    for folder in (own_run, tmp_path / "again"):
        content = (folder / WEIGHTS_NAME).read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        contents.append((json.loads(content[8:end]), content[end:]))
    assert contents[0] == contents[1]


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_layer_with_two_names_is_stored(dtype: torch.dtype | None, tmp_path: Path) -> None:
    def twice() -> torch.nn.ModuleDict:
        layer = torch.nn.Linear(3, 3)
        return torch.nn.ModuleDict({"first": layer, "again": layer, "other": torch.nn.Linear(3, 3)})

    model, loaded, path = twice(), twice(), tmp_path / WEIGHTS_NAME
    path.write_bytes(serialize_network(model, {}, dtype))
    load_tensors(loaded, read_network(path, "classification").tensors, path)
    expected = {name: tensor if dtype is None else tensor.half().float() for name, tensor in model.state_dict().items()}
    assert_bitwise_equal(loaded.state_dict(), expected)
    assert loaded["first"] is loaded["again"]


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


def test_file_alone_is_enough(own_run: Path, tmp_path: Path) -> None:
    expected = load(own_run)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(own_run / WEIGHTS_NAME, tmp_path / "elsewhere" / "renamed.safetensors")
    shutil.rmtree(own_run)
    loaded = load(moved)
    assert_bitwise_equal(loaded.model.state_dict(), expected.model.state_dict())
    assert (loaded.class_names, loaded.input_config) == (expected.class_names, expected.input_config)


def test_timm_reads_the_own_run(own_run: Path) -> None:
    model = timm.create_model(f"local-dir:{own_run}", pretrained=True).eval()
    assert torch.equal(logits(model), logits(load(own_run).model))
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
        ("patrialnet_t0", "partialnet_t0"),
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
    assert_refused(name, hint)


def test_folder_without_checkpoint(tmp_path: Path) -> None:
    assert_refused(tmp_path, str(tmp_path), WEIGHTS_NAME)


def test_refused_arguments() -> None:
    with pytest.raises(UserError, match="embed_dimension"):
        create_checkpoint("partialnet_t0", embed_dimension=32)
    with pytest.raises(UserError, match="split_ratio=2"):
        create_checkpoint("partialnet_t0", split_ratio=2)


@pytest.mark.parametrize(
    ("img_size", "runtime"),
    [(None, None), ((64, 64), None), ((64, 64), "torch"), ((64, 64), "onnxruntime"), ((64, 64), "openvino")],
)
def test_folded_network_saves_and_loads(img_size: Any, runtime: Any, tmp_path: Path, randomize: Randomize) -> None:
    original = tiny(randomize)
    original.fold(img_size, runtime).save(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.folded, loaded.runtime) == (img_size or True, runtime)
    torch.testing.assert_close(logits(loaded.model), logits(original.model), rtol=1e-4, atol=1e-5)
