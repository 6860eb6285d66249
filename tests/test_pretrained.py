"""timm's pretrained weights as a start and as a teacher, out of caches that are made here."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from conftest import Randomize
from safetensors.torch import save_file
from torch import Tensor
from training_runs import Train

from partialnet.checkpoint.pretrained import load_pretrained
from partialnet.detection.checkpoint import create_detector
from partialnet.detection.weights import load_weights
from partialnet.errors import UserError
from partialnet.training.teacher import load_teacher


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no network."""

    def refuse(*arguments: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def fetched_from_the_hub(caches: Path, name: str, randomize: Randomize) -> dict[str, Tensor]:
    """Weights where Hugging Face's library keeps what it has fetched."""
    config: Any = timm.get_pretrained_cfg(name)
    folder = caches / "hub" / f"models--{config.hf_hub_id.replace('/', '--')}"
    tensors = randomize(timm.create_model(name)).state_dict()
    for path in (folder / "refs", folder / "snapshots" / "0123"):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    save_file(tensors, folder / "snapshots" / "0123" / "model.safetensors")
    return tensors


@pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k"])
def test_weights_of_the_hub(name: str, caches: Path, randomize: Randomize) -> None:
    expected = fetched_from_the_hub(caches, name, randomize)
    checkpoint = load_pretrained(name)
    assert not checkpoint.model.training
    assert all(tensor.equal(expected[key]) for key, tensor in checkpoint.model.state_dict().items())
    assert tuple(checkpoint.input_config["input_size"]) == (3, 160, 160)


def test_weights_of_an_address(caches: Path, randomize: Randomize) -> None:
    config: Any = timm.get_pretrained_cfg("resnet10t")
    expected = randomize(timm.create_model("resnet10t")).state_dict()
    (caches / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    path = caches / "torch" / "hub" / "checkpoints" / Path(config.url).name
    torch.save(expected, path)
    loaded = load_pretrained("resnet10t").model.state_dict()
    assert all(tensor.equal(expected[key]) for key, tensor in loaded.items())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained("resnet10t")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_resnet", "weights of 'test_resnet' are not on this machine; fetch them once where there is a network"),
        ("partialnet_t0", "no pretrained weights of 'partialnet_t0', the name of an untrained network"),
    ],
)
def test_weights_that_are_not_here(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_pretrained(name)


def test_a_classifier_starts_from_them(
    caches: Path, randomize: Randomize, train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched_from_the_hub(caches, "test_resnet", randomize)
    train_tiny(model="test_resnet", model_args={}, weights="test_resnet", img_size=64)
    told = capsys.readouterr().err
    assert "tensors from test_resnet (test_resnet). The head is new: 3 classes here, 1000 others there." in told


def test_a_backbone_starts_from_them(caches: Path, randomize: Randomize) -> None:
    expected = fetched_from_the_hub(caches, "test_resnet", randomize)
    detector = create_detector("test_resnet", {1: "square"}, pyramid_channels=16, img_size=(64, 64))
    report = load_weights(detector, "test_resnet")
    own: Any = detector.model.backbone
    own = own.maps.body.state_dict()
    assert f"Weights: {len(own)} of {len(own)} tensors of the backbone from test_resnet" in report
    assert all(tensor.equal(expected[key]) for key, tensor in own.items())


def test_they_teach(caches: Path, randomize: Randomize) -> None:
    fetched_from_the_hub(caches, "test_resnet", randomize)
    normalisation = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    teacher = load_teacher("test_resnet", [f"class {index}" for index in range(1000)], normalisation)
    assert teacher(torch.rand(2, 3, 64, 64)).shape == (2, 1000)
