"""Settings, networks and images that a training run refuses, in a sentence; before it writes anything, where it can."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Train, tensors, write_photos

from partialnet.data.sources import open_data
from partialnet.errors import UserError
from partialnet.training.finite import FiniteCheck


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "partialnet_t9", "model_args": {}}, "no model 'partialnet_t9'.*partialnet_t"),
        ({"optimizer": "adamww"}, "no optimiser named 'adamww'.*adamw"),
        ({"warmup_epochs": 1.0}, "warmup_epochs=1 must be less than epochs=1"),
        ({"weights": "nowhere/run"}, "nowhere/run"),
        ({"teacher": "resnet50"}, "not on this machine"),
        ({"teacher": "partialnet_t0"}, "no pretrained weights"),
        ({"device": "cuda"}, "no GPU"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"mixup": 0.1, "batch_size": 7}, "even"),
        ({"model_args": {"depth": 3}}, "depth"),
        ({"model_args": {"name": "resnet18"}}, "unexpected keyword argument 'name'"),
        ({"model": "test_resnet", "model_args": {"act_layer": "foo"}}, "there is no 'foo'"),
        ({"model": "resnet18.bogus", "model_args": {}}, r"resnet18 has no weights named 'bogus'; there are .*a1_in1k"),
        ({"teacher": "resnet50.bogus"}, "resnet50 has no weights named 'bogus'"),
        (
            {"model": "vit_tiny_patch16_224", "model_args": {}, "random_sizes": (32, 48)},
            r"images of 48×48 pixels: Input height",
        ),
        ({"model": "inception_v3", "model_args": {}}, "cannot be trained on images of 32×32 pixels: .*Kernel size"),
        ({"model": "test_resnet", "model_args": {"in_chans": 1}}, "3 channels, but test_resnet is built for 1"),
        ({"model": "test_vit", "model_args": {"global_pool": ""}}, r"its output is \(1, \d+, 3\), not one number"),
        ({"optimizer": "adahessian"}, "needs second derivatives"),
    ],
    ids=str,
)
def test_mistakes(settings: dict[str, Any], message: str, train_tiny: Train, tmp_path: Path) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        train_tiny(**settings)
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_are_read_only_are_told_before_the_training(train_tiny: Train, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "last" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    kept.chmod(0o444)
    with pytest.raises(UserError, match=r"last/model.safetensors' cannot be written: it is read-only\."):
        train_tiny("kept")
    assert list(kept.parent.parent.iterdir()) == [kept.parent]


def test_broken_images_are_listed(train_tiny: Train, tmp_path: Path) -> None:
    data = write_photos(tmp_path / "data", 12)
    sound = {name: (data / name).read_bytes() for name in ("red/03.png", "blue/07.png")}
    for name, content in sound.items():
        (data / name).write_bytes(content[:300])
    result = train_tiny(data=data, max_unreadable_share=0.1, batch_size=4, seed=1)
    assert (result.folder / "unreadable_images.txt").read_text() == "blue/07.png\nred/03.png\n"
    with pytest.raises(
        UserError, match=r"2 of 36 images cannot be read.*max_unreadable_share=0\.05.*unreadable_images\.txt"
    ):
        train_tiny("strict", data=data, max_unreadable_share=0.05, batch_size=4, seed=1)
    assert (tmp_path / "strict" / "unreadable_images.txt").read_text() == "blue/07.png\nred/03.png\n"
    for name, content in sound.items():
        (data / name).write_bytes(content)
    train_tiny("strict", data=data, max_unreadable_share=0.05, batch_size=4, seed=1)
    assert not (tmp_path / "strict" / "unreadable_images.txt").exists()


def test_infinite_loss_stops(train_tiny: Train, colour_photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is NaN or infinite in epoch \d, batch \d.*Images: \w+/\d\d\.png") as caught:
        train_tiny(epochs=3, optimizer="sgd", lr=1e20, schedule="step", warmup_epochs=2.9)
    named = str(caught.value).partition("Images: ")[2].rstrip(".").split(", ")
    assert len(named) == 8
    assert all((colour_photos / name).is_file() for name in named)
    for path in (tmp_path / "run").glob("**/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in tensors(path).values())


def test_finite_check_names_the_images_of_the_spoilt_loss(colour_photos: Path) -> None:
    images = open_data(str(colour_photos)).train
    check = FiniteCheck()
    check.note_loss(torch.tensor(1.0), torch.tensor([0, 1]))
    check.note_loss(torch.tensor(math.nan), torch.tensor([5, 20]))
    check.note_step(torch.tensor(math.nan), "epoch 1, batch 2")
    with pytest.raises(UserError) as caught:
        check.check(images, wait=True)
    assert f"Images: {images.name(5)}, {images.name(20)}." in str(caught.value)
    check.note_loss(torch.tensor(1.0), torch.tensor([0, 1]))
    check.note_step(torch.tensor(math.nan), "epoch 1, batch 3")
    with pytest.raises(UserError, match=r"The gradient is NaN .* The losses of this process were finite\.$"):
        check.check(images, wait=True, world_size=2)
    check.note_loss(torch.tensor(1.0), torch.tensor([0, 1]))
    check.note_step(torch.tensor(2.0), "epoch 1, batch 4")
    check.check(images, wait=True)
