"""A training run as a whole: its folder, what it says, and that it is neither overwritten nor turned into another."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from training_runs import CONFIG, FINISHED, Train, metrics, newest_state, tensors, write_photos

from partialnet.checkpoint import load
from partialnet.data.sources import open_data
from partialnet.detection.config import DetectionConfig
from partialnet.errors import UserError
from partialnet.training.batches import Batch, eval_loader
from partialnet.training.continuation import describe_run, differences
from partialnet.training.engine import is_trained
from partialnet.training.machine import fastest_convolutions
from partialnet.training.run import ClassifierRun, TrainResult, train


def test_run_folder(finished_run: TrainResult) -> None:
    names = {path.name for path in finished_run.folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "config.yaml", "metrics.csv", "last", "state", "tensorboard"}
    assert not [name for name in names if name.startswith(".")]
    assert all(path.exists() for path in finished_run.files)
    assert finished_run.checkpoint == finished_run.files[0]
    assert len(list((finished_run.folder / "state").iterdir())) == 2
    assert list((finished_run.folder / "tensorboard").glob("events.*"))


def test_metrics(finished_run: TrainResult) -> None:
    rows = metrics(finished_run.folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert max(row["val_accuracy"] for row in rows) == pytest.approx(finished_run.accuracy, abs=1e-6)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert finished_run.accuracy == 1  # colours are easy
    for row in rows:
        # 3 classes of 11 images, 4 batches of 8
        assert row["images_per_second"] * row["seconds"] == pytest.approx(32, rel=1e-3)


def test_convolutions_are_tried_out_on_a_gpu(
    colour_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def fit(*arguments: Any) -> NoReturn:
        seen.append(torch.backends.cudnn.benchmark)
        raise UserError("enough")

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr("partialnet.training.engine._fit", fit)
    with pytest.raises(UserError, match="enough"):
        train(CONFIG, str(colour_photos), tmp_path / "run")
    assert seen == [True]
    assert not torch.backends.cudnn.benchmark
    with fastest_convolutions(DetectionConfig()):  # whose images come in many sizes
        assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with fastest_convolutions(CONFIG):
        assert not torch.backends.cudnn.benchmark


def test_metrics_are_those_of_the_checkpoint(finished_run: TrainResult, colour_photos: Path) -> None:
    data = open_data(str(colour_photos), CONFIG.val_share, CONFIG.seed)
    checkpoint, row = load(finished_run.folder / "last"), metrics(finished_run.folder)[-1]
    (batch,) = eval_loader(data.validation, CONFIG, checkpoint.input_config)
    logits = checkpoint.model(batch.images)
    assert F.cross_entropy(logits, batch.labels).item() == pytest.approx(row["val_loss"], rel=1e-4)
    assert (logits.argmax(1) == batch.labels).float().mean().item() == pytest.approx(row["val_accuracy"], abs=1e-5)


def test_checkpoint_says_how_it_was_made(finished_run: TrainResult) -> None:
    checkpoint = load(finished_run.folder)
    assert checkpoint.class_names == ("blue", "green", "red")
    assert checkpoint.input_config["input_size"] == [3, 32, 32]
    assert checkpoint.training["config"]["seed"] == 3
    assert checkpoint.training["config"]["ema"] == 0.5
    assert checkpoint.training["val_accuracy"] == finished_run.accuracy


def test_average_is_kept(finished_run: TrainResult) -> None:
    state = newest_state(finished_run.folder)
    last = tensors(finished_run.folder / "last" / "model.safetensors")
    assert all(torch.equal(last[name], state["ema"][name]) for name in last)
    assert not torch.equal(last["classifier.weight"], state["state_dict"]["network.classifier.weight"])


def test_same_seed_same_weights(train_tiny: Train) -> None:
    settings = {"mixup": 0.2, "drop_path_rate": 0.3, "random_sizes": (32, 40)}
    first, second, other = (train_tiny(name, seed=seed, **settings) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    a, b, c = (tensors(result.checkpoint) for result in (first, second, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["classifier.weight"], c["classifier.weight"])


def test_what_is_told(train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_tiny(lr_scaling="linear", lr=1.0, lr_batch=1024, accumulate=2)
    told = capsys.readouterr().err
    assert "33 training and 3 validation images of 3 classes" in told
    assert "Learning rate 0.0156 = 1 × (16 / 1024); effective batch 16 (8 images × 2 batches added up)." in told
    assert re.search(r"epoch 1/1  loss .* \(best\)  lr", told)


@pytest.mark.parametrize("name", ["curves", "confusion", "first_batch", "worst_mistakes"])
def test_pictures(name: str, finished_run: TrainResult) -> None:
    path = finished_run.folder / f"{name}.png"
    assert path in finished_run.files
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 5


# -- what there is stays -----------------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(finished_run: TrainResult, colour_photos: Path) -> None:
    before = finished_run.checkpoint.read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(CONFIG, str(colour_photos), finished_run.folder)
    assert finished_run.checkpoint.read_bytes() == before


def test_a_run_does_not_become_another(finished_run: TrainResult, colour_photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ema was 0\.5 and is 0\.6; lr was 0\.003 and is 0\.1"):
        train(replace(FINISHED, ema=0.6, lr=0.1, workers=1), str(colour_photos), finished_run.folder, resume=True)
    with pytest.raises(
        UserError, match=r"like this: epochs was 4 and is 8\. .* another folder\."
    ):  # and not the warm-up that followed
        train(replace(FINISHED, epochs=8, warmup_epochs=2), str(colour_photos), finished_run.folder, resume=True)
    other = write_photos(tmp_path / "other", 13)
    with pytest.raises(UserError, match="number of training images"):
        train(FINISHED, str(other), finished_run.folder, resume=True)


def test_settings_that_only_one_of_two_versions_has_make_another_run() -> None:
    before = describe_run(("train",), CONFIG, {}, 1)
    assert differences(before, CONFIG, {}) == []
    del before["config"]["lr"]
    before["config"]["of_old"] = 1
    assert differences(before, CONFIG, {}) == ["lr was None and is 0.003", "of_old was 1 and is None"]


def test_a_run_continues_on_the_same_images_only(
    finished_run: TrainResult, colour_photos: Path, tmp_path: Path
) -> None:
    """As what is held out follows from the names, other ones would let it learn what it held out."""
    kind, moved = ClassifierRun(), shutil.copytree(colour_photos, tmp_path / "moved")
    assert is_trained(kind, FINISHED, kind.open_data(str(moved), FINISHED), finished_run.folder)
    image = next(moved.rglob("*.png"))
    image.rename(image.with_stem("another"))
    with pytest.raises(UserError, match="like this: image names of the data differs"):
        is_trained(kind, FINISHED, kind.open_data(str(moved), FINISHED), finished_run.folder)


def test_a_finished_run_stays_as_it_is(finished_run: TrainResult, colour_photos: Path) -> None:
    before = tensors(finished_run.checkpoint), metrics(finished_run.folder)
    config = replace(FINISHED, workers=1, save_minutes=3.0)
    again = train(config, str(colour_photos), finished_run.folder, resume=True)
    assert again.accuracy == finished_run.accuracy
    assert metrics(finished_run.folder) == before[1]
    assert all(torch.equal(before[0][name], tensor) for name, tensor in tensors(again.checkpoint).items())


def test_no_step_waits_for_its_batch(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch goes to a GPU while that still works on the one before."""
    to, waits = Batch.to, []

    def noted(batch: Batch, device: torch.device, non_blocking: bool = False) -> Batch:
        waits.append(not non_blocking)
        return to(batch, device, non_blocking)

    monkeypatch.setattr(Batch, "to", noted)
    train_tiny(epochs=1)
    assert waits
    assert not any(waits)


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu(precision: str, train_tiny: Train) -> None:
    """Half precision learns, and a run continues with its gradient scaler."""
    settings = {"device": "cuda", "precision": precision, "epochs": 4, "workers": 1, "ema": 0.5}
    result = train_tiny(**settings)
    assert result.accuracy == 1
    max((result.folder / "state").iterdir()).unlink()
    again = train_tiny(**settings, resume=True)
    assert again.accuracy == 1
    assert [row["epoch"] for row in metrics(again.folder)] == [1, 2, 3, 4]
