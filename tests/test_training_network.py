"""Which network is trained, and the weights that it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import Train, tensors, write_photos

from partialnet.checkpoint import load
from partialnet.errors import UserError
from partialnet.training.run import TrainResult


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_any_timm_model(model: str, train_tiny: Train) -> None:
    result = train_tiny(model=model, model_args={}, img_size=64)
    checkpoint = load(result.folder)
    assert checkpoint.architecture == model
    assert checkpoint.model(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_weights_of_another_run(
    finished_run: TrainResult, train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train_tiny(weights=str(finished_run.folder), lr=0.0, weight_decay=0.0, freeze_backbone=True)
    before, after = tensors(finished_run.checkpoint), tensors(result.checkpoint)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert f"Weights: {len(before)} of {len(before)} tensors" in capsys.readouterr().err


def test_weights_for_other_classes(
    finished_run: TrainResult, train_tiny: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photos(tmp_path / "others", 6)
    (data / "red").rename(data / "rot")
    result = train_tiny(data=data, weights=str(finished_run.folder), freeze_backbone=True)
    told = capsys.readouterr().err
    assert "The head is new" in told
    assert "classifier.weight" in told
    before, after = tensors(finished_run.checkpoint), tensors(result.checkpoint)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # statistics of the frozen layers stay, too
    assert changed == {"classifier.weight", "classifier.bias"}


def test_weights_of_another_network(finished_run: TrainResult, train_tiny: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"None of the .* choose --model partialnet_t0"):
        train_tiny(weights=str(finished_run.folder), model="test_resnet", model_args={})
    assert not (tmp_path / "run").exists()


def test_a_name_is_no_weights(train_tiny: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'partialnet_t0', the name of an untrained network"):
        train_tiny(weights="partialnet_t0")
    assert not (tmp_path / "run").exists()
