"""Checkpoints of timm's training script and of the authors are read as they are."""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from stored_networks import assert_bitwise_equal, assert_refused, logits, released_backbone, released_layout
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

import partialnet
from partialnet.checkpoint import load

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
    assert_refused(tmp_path / "last.pth.tar", expected)


# -- the authors' files ----------------------------------------------------------------------------------------------


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
    with caplog.at_level(logging.INFO, "partialnet.checkpoint.foreign"):
        checkpoint = load(path)
    assert torch.equal(logits(checkpoint.model), logits(model))
    assert f"{len(state)} tensors loaded" in caplog.text
    assert "criterion.weight" in caplog.text


def test_released_backbone(tmp_path: Path, randomize: Randomize) -> None:
    model = randomize(timm.create_model("partialnet_t0", depths=(1, 1, 2, 1), out_norms=True)).eval()
    torch.save({"state_dict": released_backbone(model)}, tmp_path / "backbone.pth")
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
        assert_refused(path, str(path))


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
        assert_refused(path)


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
    assert_refused(path, str(path), "neither a PartialNet")


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
        assert_refused(path)
