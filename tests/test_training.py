"""Training: what each setting does, what a run leaves, and what stops it."""

from __future__ import annotations

import csv
import errno
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import partialnet.training.states
from partialnet.checkpoint import create_checkpoint, load
from partialnet.data.sources import open_data
from partialnet.errors import UserError
from partialnet.training import pictures
from partialnet.training.batches import eval_loader
from partialnet.training.classifier import ClassifierTask
from partialnet.training.config import TrainConfig
from partialnet.training.finite import FiniteCheck
from partialnet.training.keeper import RunKeeper
from partialnet.training.optimization import create_optimizer, create_schedule, scaled_lr
from partialnet.training.run import TrainResult, train
from partialnet.training.signals import StopSignals
from partialnet.training.states import StateFiles
from partialnet.training.teacher import Teacher, distillation_loss

TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1]}
CONFIG = TrainConfig(
    model_args=TINY,
    img_size=32,
    epochs=1,
    batch_size=8,
    warmup_epochs=0,
    lr=3e-3,
    lr_scaling="none",
    workers=0,
    device="cpu",
    precision="fp32",
    threads=1,
    seed=3,
)
Train = Callable[..., TrainResult]


def write_images(root: Path, count: int) -> Path:
    """Noisy blue, green and red images, 40×48, ``count`` of each."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 120, (40, 48, 3))
            pixels[..., 2 - channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos", 12)


@pytest.fixture
def run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train on the photos with some settings changed, without pictures, which take as long as these trainings."""
    monkeypatch.setattr(pictures, "draw_first_batch", lambda *arguments: None)
    monkeypatch.setattr(pictures, "draw_results", lambda *arguments: None)

    def run(folder: str = "run", data: Path = photos, resume: bool = False, **settings: Any) -> TrainResult:
        return train(replace(CONFIG, **settings), str(data), tmp_path / folder, resume)

    return run


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of four epochs with an average of the weights."""
    config = replace(CONFIG, epochs=4, warmup_epochs=1, ema=0.5, drop_path_rate=0.1)
    return train(config, str(photos), tmp_path_factory.mktemp("finished") / "run")


def tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def newest_state(folder: Path) -> dict[str, Any]:
    state = StateFiles(folder / "state", print).newest()
    assert state is not None
    return state.content


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_run_folder(finished: TrainResult) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "config.yaml", "metrics.csv", "last", "state", "tensorboard"}
    assert not [name for name in names if name.startswith(".")]
    assert all(path.exists() for path in finished.files)
    assert finished.checkpoint == finished.files[0]
    assert len(list((finished.folder / "state").iterdir())) == 2
    assert list((finished.folder / "tensorboard").glob("events.*"))


def test_metrics(finished: TrainResult) -> None:
    rows = metrics(finished.folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert max(row["val_accuracy"] for row in rows) == pytest.approx(finished.accuracy, abs=1e-6)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert finished.accuracy == 1  # colours are easy
    for row in rows:
        # 3 classes of 11 images, 4 batches of 8
        assert row["images_per_second"] * row["seconds"] == pytest.approx(32, rel=1e-3)


def test_metrics_are_those_of_the_checkpoint(finished: TrainResult, photos: Path) -> None:
    data = open_data(str(photos), CONFIG.val_share, CONFIG.seed)
    for folder, row in ((finished.folder / "last", metrics(finished.folder)[-1]),):
        checkpoint = load(folder)
        (batch,) = eval_loader(data.validation, CONFIG, checkpoint.input_config)
        logits = checkpoint.model(batch.images)
        assert F.cross_entropy(logits, batch.labels).item() == pytest.approx(row["val_loss"], rel=1e-4)
        assert (logits.argmax(1) == batch.labels).float().mean().item() == pytest.approx(row["val_accuracy"], abs=1e-5)


def test_checkpoint_says_how_it_was_made(finished: TrainResult) -> None:
    checkpoint = load(finished.folder)
    assert checkpoint.class_names == ("blue", "green", "red")
    assert checkpoint.input_config["input_size"] == [3, 32, 32]
    assert checkpoint.training["config"]["seed"] == 3
    assert checkpoint.training["config"]["ema"] == 0.5
    assert checkpoint.training["val_accuracy"] == finished.accuracy


def test_average_is_kept(finished: TrainResult) -> None:
    state = newest_state(finished.folder)
    last = tensors(finished.folder / "last" / "model.safetensors")
    assert all(torch.equal(last[name], state["ema"][name]) for name in last)
    assert not torch.equal(last["classifier.weight"], state["state_dict"]["network.classifier.weight"])


def test_same_seed_same_weights(run: Train) -> None:
    settings = {"mixup": 0.2, "drop_path_rate": 0.3, "random_sizes": (32, 40)}
    first, second, other = (run(name, seed=seed, **settings) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    a, b, c = (tensors(result.checkpoint) for result in (first, second, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["classifier.weight"], c["classifier.weight"])


def test_what_is_told(run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run(lr_scaling="linear", lr=1.0, lr_batch=1024, accumulate=2)
    told = capsys.readouterr().err
    assert "33 training and 3 validation images of 3 classes" in told
    assert "Learning rate 0.0156 = 1 × (16 / 1024); effective batch 16 (8 images × 2 batches added up)." in told
    assert "epoch 1/1  loss" in told


@pytest.mark.parametrize("name", ["curves", "confusion", "first_batch", "worst_mistakes"])
def test_pictures(name: str, finished: TrainResult) -> None:
    path = finished.folder / f"{name}.png"
    assert path in finished.files
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 5


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_any_timm_model(model: str, run: Train) -> None:
    result = run(model=model, model_args={}, img_size=64)
    checkpoint = load(result.folder)
    assert checkpoint.architecture == model
    assert checkpoint.model(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_weights_of_another_run(finished: TrainResult, run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(weights=str(finished.folder), lr=0.0, weight_decay=0.0, freeze_backbone=True)
    before, after = tensors(finished.checkpoint), tensors(result.checkpoint)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert f"Weights: {len(before)} of {len(before)} tensors" in capsys.readouterr().err


def test_weights_for_other_classes(
    finished: TrainResult, run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "others", 6)
    (data / "red").rename(data / "rot")
    result = run(data=data, weights=str(finished.folder), freeze_backbone=True)
    told = capsys.readouterr().err
    assert "The head is new" in told
    assert "classifier.weight" in told
    before, after = tensors(finished.checkpoint), tensors(result.checkpoint)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # statistics of the frozen layers stay, too
    assert changed == {"classifier.weight", "classifier.bias"}


def test_weights_of_another_network(finished: TrainResult, run: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"None of the .* choose --model partialnet_t0"):
        run(weights=str(finished.folder), model="test_resnet", model_args={})
    assert not (tmp_path / "run").exists()


def test_a_name_is_no_weights(run: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'partialnet_t0', the name of an untrained network"):
        run(weights="partialnet_t0")
    assert not (tmp_path / "run").exists()


# -- optimisation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "expected"), [("linear", 0.4 * 96 / 1024), ("sqrt", 0.4 * math.sqrt(96 / 1024)), ("none", 0.4)]
)
def test_scaled_lr(scaling: str, expected: float) -> None:
    config = replace(CONFIG, lr=0.4, lr_batch=1024, batch_size=16, accumulate=3, lr_scaling=scaling)
    assert scaled_lr(config, world_size=2)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", lambda t: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * t))),
        ("step", lambda t: 0.2 ** int(9 * t / 2)),
        ("multistep", lambda t: 1.0 if 9 * t < 1.9 else 0.2 if 2 <= 9 * t < 6.9 else 0.04 if 9 * t >= 7 else math.nan),
        ("poly", lambda t: 0.01 + 0.99 * (1 - t)),
    ],
)
def test_schedules(schedule: str, expected: Callable[[float], float]) -> None:
    config = replace(CONFIG, schedule=schedule, epochs=10, warmup_epochs=1.0, optimizer="sgd", min_lr_ratio=0.01)
    config = replace(config, decay_rate=0.2, decay_epochs=(2.0, 7.0))
    optimizer = create_optimizer(nn.Linear(2, 2), config, 2.0)
    scheduler = create_schedule(optimizer, config, 2.0, updates_per_epoch=20)
    for update in (0, 5, 10, 19):
        scheduler.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * (1e-3 + (1 - 1e-3) * update / 20))
    for update in range(20, 200, 7):
        scheduler.step_update(update)
        if not math.isnan(wanted := expected((update - 20) / 180)):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * wanted), update


@pytest.mark.parametrize(("optimizer", "fused"), [("adamw", True), ("sgd", True), ("lamb", False)])
def test_optimisers_of_pytorch_are_fused(optimizer: str, fused: bool) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    for precision, expected in (("auto", fused), ("fp16", False)):
        created = create_optimizer(nn.Linear(2, 2), replace(config, precision=precision), 1.0)
        assert bool(created.defaults.get("fused")) == expected


def test_schedule_without_steps_needs_no_epochs_for_them() -> None:
    config = replace(CONFIG, schedule="cosine", decay_epochs=(), epochs=4, warmup_epochs=1.0)
    optimizer = create_optimizer(nn.Linear(2, 2), config, 2.0)
    create_schedule(optimizer, config, 2.0, updates_per_epoch=5).step_update(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0)


def test_everything_is_on_the_device_before_a_stopped_epoch_is_finished(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks come before the task's own hook, and a GPU's network is validated there."""
    order = []

    def bring(task: ClassifierTask) -> None:
        order.append("brought")
        task.progress.validated = False  # as of a run that stopped before the validation
        task.progress.sums += 1

    finish = RunKeeper._finish_epoch
    monkeypatch.setattr(ClassifierTask, "bring_to_device", bring)
    monkeypatch.setattr(RunKeeper, "_finish_epoch", lambda *a, **k: (order.append("finished"), finish(*a, **k))[1])
    run("run", epochs=1)
    assert order == ["brought", "finished", "finished"]


def test_layer_decay() -> None:
    network = create_checkpoint("partialnet_t0", num_classes=3, **TINY).model
    config = replace(CONFIG, layer_decay=0.5, epochs=4)
    optimizer = create_optimizer(network, config, 1.0)
    create_schedule(optimizer, config, 1.0, 5).step_update(0)
    lr_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = [
        lr_of[id(dict(network.named_parameters())[name])] for name in ("patch_embed.proj.weight", "classifier.weight")
    ]
    assert rates[1] == pytest.approx(1.0)
    assert rates[0] <= 0.5**4


def test_norms_and_biases_do_not_decay() -> None:
    network = create_checkpoint("partialnet_t0", num_classes=3, **TINY).model
    optimizer = create_optimizer(network, CONFIG, 1.0)
    for group in optimizer.param_groups:
        assert not group["weight_decay"] or all(p.ndim > 1 for p in group["params"])


def test_accumulation_equals_a_larger_batch(run: Train) -> None:
    settings = {"model": "test_vit", "model_args": {}, "img_size": 64, "optimizer": "sgd", "lr": 0.1}
    whole = run("whole", batch_size=8, **settings)
    parts = run("parts", batch_size=4, accumulate=2, **settings)
    a, b = tensors(whole.checkpoint), tensors(parts.checkpoint)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_clipping(run: Train) -> None:
    # SGD with Nesterov's momentum of 0.9 moves by 1.9 times the gradient in its first step
    settings = {"batch_size": 33, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
    start = tensors(run("start", **{**settings, "lr": 0.0}).checkpoint)
    end = tensors(run("end", clip_grad=0.01, **settings).checkpoint)
    learnt = [name for name in start if "running" not in name and "num_batches" not in name]
    moved = math.sqrt(sum((end[name] - start[name]).double().square().sum().item() for name in learnt))
    assert moved == pytest.approx(1.9 * 0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"channels_last": False}], ids=str)
def test_precision_and_layout(settings: dict[str, Any], run: Train) -> None:
    plain, other = metrics(run("plain").folder), metrics(run("other", **settings).folder)
    assert other[0]["train_loss"] == pytest.approx(plain[0]["train_loss"], rel=0.05)


# -- distillation ------------------------------------------------------------------------------------------------------


def test_teacher_sees_its_own_normalisation() -> None:
    checkpoint = create_checkpoint("test_resnet", num_classes=3)
    checkpoint.input_config |= {"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    pixels = torch.rand(2, 3, 64, 64)

    def normalised(mean: list[float], std: list[float]) -> Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    student = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    answer = Teacher(checkpoint, student)(normalised(**student))
    expected = checkpoint.model(normalised([0.1, 0.2, 0.3], [0.9, 0.8, 0.7]))
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)


def test_distillation_loss() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    p, q = ([math.exp(v / 2) for v in row] for row in ([3.0, 0.0], [1.0, 2.0]))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    expected = 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_from_a_run(finished: TrainResult, run: Train) -> None:
    plain, taught = run("plain"), run("taught", teacher=str(finished.folder))
    assert metrics(plain.folder)[0]["train_loss"] != metrics(taught.folder)[0]["train_loss"]
    names = set(load(taught.folder).model.state_dict())
    assert names == set(load(plain.folder).model.state_dict())


# -- mistakes are told before anything is written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "partialnet_t9", "model_args": {}}, "no model 'partialnet_t9'.*partialnet_t"),
        ({"optimizer": "adamww"}, "no optimiser named 'adamww'.*adamw"),
        ({"warmup_epochs": 1.0}, "warmup_epochs=1 must be less than epochs=1"),
        ({"weights": "nowhere/run"}, "nowhere/run"),
        ({"teacher": "resnet50"}, "not on this machine"),
        ({"teacher": "partialnet_t0"}, "not on this machine"),
        ({"device": "cuda"}, "no GPU"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"mixup": 0.1, "batch_size": 7}, "even"),
        ({"model_args": {"depth": 3}}, "depth"),
    ],
    ids=str,
)
def test_mistakes(settings: dict[str, Any], message: str, run: Train, tmp_path: Path) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        run(**settings)
    assert not (tmp_path / "run").exists()


def test_teacher_of_other_classes(run: Train, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    create_checkpoint("test_resnet", num_classes=5).save(folder)
    with pytest.raises(UserError, match="5 classes"):
        run(teacher=str(folder))


def test_a_run_is_not_overwritten(finished: TrainResult, photos: Path) -> None:
    before = finished.checkpoint.read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(CONFIG, str(photos), finished.folder)
    assert finished.checkpoint.read_bytes() == before


def test_a_run_does_not_become_another(finished: TrainResult, photos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=4, warmup_epochs=1, ema=0.5, drop_path_rate=0.1)
    with pytest.raises(UserError, match=r"ema was 0\.5 and is 0\.6; lr was 0\.003 and is 0\.1"):
        train(replace(config, ema=0.6, lr=0.1, workers=1), str(photos), finished.folder, resume=True)
    with pytest.raises(UserError, match=r"like this: epochs was 4 and is 8\."):  # and not the warm-up that followed
        train(replace(config, epochs=8, warmup_epochs=2), str(photos), finished.folder, resume=True)
    other = write_images(tmp_path / "other", 13)
    with pytest.raises(UserError, match="number of training images"):
        train(config, str(other), finished.folder, resume=True)


def test_a_finished_run_stays_as_it_is(finished: TrainResult, photos: Path) -> None:
    before = tensors(finished.checkpoint), metrics(finished.folder)
    config = replace(CONFIG, epochs=4, warmup_epochs=1, ema=0.5, drop_path_rate=0.1, workers=1, save_minutes=3.0)
    again = train(config, str(photos), finished.folder, resume=True)
    assert again.accuracy == finished.accuracy
    assert metrics(finished.folder) == before[1]
    assert all(torch.equal(before[0][name], tensor) for name, tensor in tensors(again.checkpoint).items())


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


def test_broken_images_are_listed(run: Train, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 12)
    sound = {name: (data / name).read_bytes() for name in ("red/03.png", "blue/07.png")}
    for name, content in sound.items():
        (data / name).write_bytes(content[:300])
    result = run(data=data, max_broken_share=0.1, batch_size=4, seed=1)
    assert (result.folder / "broken_images.txt").read_text() == "blue/07.png\nred/03.png\n"
    with pytest.raises(UserError, match=r"2 of 36 images cannot be read.*max_broken_share=0\.05.*broken_images\.txt"):
        run("strict", data=data, max_broken_share=0.05, batch_size=4, seed=1)
    assert (tmp_path / "strict" / "broken_images.txt").read_text() == "blue/07.png\nred/03.png\n"
    for name, content in sound.items():
        (data / name).write_bytes(content)
    run("strict", data=data, max_broken_share=0.05, batch_size=4, seed=1)
    assert not (tmp_path / "strict" / "broken_images.txt").exists()


def test_infinite_loss_stops(run: Train, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is NaN or infinite in epoch \d, batch \d.*Images: \w+/\d\d\.png") as caught:
        run(epochs=3, optimizer="sgd", lr=1e20, schedule="step", warmup_epochs=2.9)
    named = str(caught.value).partition("Images: ")[2].rstrip(".").split(", ")
    assert len(named) == 8
    assert all((photos / name).is_file() for name in named)
    for path in (tmp_path / "run").glob("**/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in tensors(path).values())


def test_finite_check_names_the_images_of_the_spoilt_loss(photos: Path) -> None:
    images = open_data(str(photos)).train
    check = FiniteCheck()
    check.note_loss(torch.tensor(1.0), torch.tensor([0, 1]))
    check.note_loss(torch.tensor(math.nan), torch.tensor([5, 20]))
    check.note_step(torch.tensor(math.nan), "epoch 1, batch 2")
    with pytest.raises(UserError) as caught:
        check.check(images, wait=True)
    assert f"Images: {images.name(5)}, {images.name(20)}." in str(caught.value)
    check.note_loss(torch.tensor(1.0), torch.tensor([0, 1]))
    check.note_step(torch.tensor(2.0), "epoch 1, batch 4")
    check.check(images, wait=True)


def test_full_disk(run: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write = partialnet.training.states.write_atomically
    written: list[Path] = []

    def fills_up(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write(path, content)

    monkeypatch.setattr(partialnet.training.states, "write_atomically", fills_up)
    result = run(epochs=4)
    told = capsys.readouterr().err
    assert "cannot be written (No space left on device)" in told
    assert str(written[-1]) in told
    assert [path.name for path in (result.folder / "state").iterdir()] == [written[-1].name]
    assert result.epochs == 4


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_state(damage: str, run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(epochs=3)
    whole = tensors(result.folder / "last" / "model.safetensors")
    newest = max((result.folder / "state").iterdir())
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    capsys.readouterr()
    again = run(epochs=3, resume=True)
    told = capsys.readouterr().err
    assert f"{newest.name}' is damaged" in told
    assert "Continuing after 2 epochs" in told
    assert all(torch.equal(whole[n], t) for n, t in tensors(again.folder / "last" / "model.safetensors").items())
    assert len(list((again.folder / "state").iterdir())) == 2


def test_only_damaged_states(run: Train) -> None:
    result = run(epochs=2)
    for path in (result.folder / "state").iterdir():
        path.write_bytes(b"nothing")
    before = result.checkpoint.read_bytes()
    with pytest.raises(UserError, match="None of the states"):
        run(epochs=2, resume=True)
    assert result.checkpoint.read_bytes() == before


def test_lost_states_do_not_cost_the_run(run: Train) -> None:
    """Nothing is trained anew over a run whose states somebody has deleted."""
    result = run(epochs=2)
    shutil.rmtree(result.folder / "state")
    before = result.checkpoint.read_bytes()
    with pytest.raises(UserError, match="no state to continue from"):
        run(epochs=2, resume=True)
    assert result.checkpoint.read_bytes() == before


def test_continuing_without_the_weights_it_began_with(run: Train, tmp_path: Path) -> None:
    first = run("first")
    second = run("second", epochs=2, weights=str(first.folder))
    max((second.folder / "state").iterdir()).unlink()
    expected = tensors(second.folder / "last" / "model.safetensors")
    first.folder.rename(tmp_path / "elsewhere")
    again = run("second", epochs=2, weights=str(first.folder), resume=True)
    assert all(torch.equal(t, expected[n]) for n, t in tensors(again.folder / "last" / "model.safetensors").items())


def test_states_hold_no_code(finished: TrainResult) -> None:
    for path in (finished.folder / "state").iterdir():
        torch.load(path, weights_only=True)


def test_signals_are_noted_and_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu(precision: str, run: Train) -> None:
    """Half precision learns, and a run continues with its gradient scaler."""
    settings = {"device": "cuda", "precision": precision, "epochs": 4, "workers": 1, "ema": 0.5}
    result = run(**settings)
    assert result.accuracy == 1
    max((result.folder / "state").iterdir()).unlink()
    again = run(**settings, resume=True)
    assert again.accuracy == 1
    assert [row["epoch"] for row in metrics(again.folder)] == [1, 2, 3, 4]
