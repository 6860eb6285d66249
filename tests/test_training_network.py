"""Which network is trained, and the weights that it starts from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import Train, metrics, tensors, write_photos

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
    learnt = before["classifier.weight"].numel() + before["classifier.bias"].numel()
    assert re.search(rf"{learnt:,} of \S+ M parameters are trained", told)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # statistics of the frozen layers stay, too
    assert changed == {"classifier.weight", "classifier.bias"}


def test_images_are_prepared_as_for_the_weights(
    finished_run: TrainResult, train_tiny: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load(finished_run.folder)
    wanted = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    other.input_config |= wanted
    other.save(tmp_path / "other")
    settings = {"teacher": str(finished_run.folder), "epochs": 2}
    train_tiny(weights=str(tmp_path / "other"), **settings)
    told = "Images are prepared as for those weights: mean 0.1, 0.2, 0.3, std 0.4, 0.5, 0.6, interpolation bilinear."
    assert told in capsys.readouterr().err
    run = tmp_path / "run"
    whole, rows = tensors(run / "last" / "model.safetensors"), metrics(run)
    for path in run.glob("state/*-epoch-2-*"):
        path.unlink()  # as if it had been killed in its last epoch
    shutil.rmtree(tmp_path / "other")
    train_tiny(weights=str(tmp_path / "other"), resume=True, **settings)
    for folder in (run, run / "last"):
        assert {name: load(folder).input_config[name] for name in wanted} == wanted
    assert [row["val_loss"] for row in metrics(run)] == [row["val_loss"] for row in rows]
    again = tensors(run / "last" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_weights_of_another_network(finished_run: TrainResult, train_tiny: Train, tmp_path: Path) -> None:
    weights = str(finished_run.folder)
    with pytest.raises(UserError, match=rf"None of the .* is a partialnet_t0; choose --model {re.escape(weights)}, or"):
        train_tiny(weights=weights, model="test_resnet", model_args={})
    assert not (tmp_path / "run").exists()


def test_a_name_is_no_weights(train_tiny: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'partialnet_t0', the name of an untrained network"):
        train_tiny(weights="partialnet_t0")
    assert not (tmp_path / "run").exists()
