"""Learning rates, schedules, groups of parameters, and what one step does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import CONFIG, TINY, Train, metrics, tensors

from partialnet.checkpoint import create_checkpoint
from partialnet.training.optimization import create_optimizer, create_schedule, scaled_lr


@pytest.mark.parametrize(
    ("scaling", "expected"), [("linear", 0.4 * 96 / 1024), ("sqrt", 0.4 * math.sqrt(96 / 1024)), ("none", 0.4)]
)
def test_scaled_lr(scaling: str, expected: float) -> None:
    config = replace(CONFIG, lr=0.4, lr_batch=1024, batch_size=16, accumulate=3, lr_scaling=scaling)
    assert scaled_lr(config, world_size=2, num_images=1000, num_batches=31)[0] == pytest.approx(expected)


def test_scaled_lr_of_an_epoch_shorter_than_a_step() -> None:
    config = replace(CONFIG, lr=0.4, lr_batch=1024, batch_size=256, accumulate=3, lr_scaling="linear")
    lr, told = scaled_lr(config, world_size=2, num_images=100, num_batches=1)
    assert lr == pytest.approx(0.4 * 100 / 1024)
    assert "effective batch 100 (50 images × 2 processes)" in told


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


def test_schedule_without_steps_needs_no_epochs_for_them() -> None:
    config = replace(CONFIG, schedule="cosine", decay_epochs=(), epochs=4, warmup_epochs=1.0)
    optimizer = create_optimizer(nn.Linear(2, 2), config, 2.0)
    create_schedule(optimizer, config, 2.0, updates_per_epoch=5).step_update(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0)


@pytest.mark.parametrize(("optimizer", "fused"), [("adamw", True), ("sgd", True), ("lamb", False)])
def test_optimisers_of_pytorch_are_fused(optimizer: str, fused: bool) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    for precision, expected in (("auto", fused), ("fp16", False)):
        created = create_optimizer(nn.Linear(2, 2), replace(config, precision=precision), 1.0)
        assert bool(created.defaults.get("fused")) == expected


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


# -- what a step does --------------------------------------------------------------------------------------------------


def test_accumulation_equals_a_larger_batch(train_tiny: Train) -> None:
    settings = {"model": "test_vit", "model_args": {}, "img_size": 64, "optimizer": "sgd", "lr": 0.1}
    whole = train_tiny("whole", batch_size=8, **settings)
    parts = train_tiny("parts", batch_size=4, accumulate=2, **settings)
    a, b = tensors(whole.checkpoint), tensors(parts.checkpoint)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_the_last_step_of_an_epoch_is_a_mean_too(train_tiny: Train) -> None:
    settings = {"model": "test_vit", "model_args": {}, "img_size": 64, "optimizer": "sgd", "lr": 0.1}
    whole = train_tiny("whole", batch_size=8, accumulate=4, **settings)
    fewer = train_tiny("fewer", batch_size=8, accumulate=8, **settings)  # an epoch has four batches
    a, b = tensors(whole.checkpoint), tensors(fewer.checkpoint)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)


def test_clipping(train_tiny: Train) -> None:
    # SGD with Nesterov's momentum of 0.9 moves by 1.9 times the gradient in its first step
    settings = {"batch_size": 33, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
    start = tensors(train_tiny("start", **{**settings, "lr": 0.0}).checkpoint)
    end = tensors(train_tiny("end", clip_grad=0.01, **settings).checkpoint)
    learnt = [name for name in start if "running" not in name and "num_batches" not in name]
    moved = math.sqrt(sum((end[name] - start[name]).double().square().sum().item() for name in learnt))
    assert moved == pytest.approx(1.9 * 0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"channels_last": False}], ids=str)
def test_precision_and_layout(settings: dict[str, Any], train_tiny: Train) -> None:
    plain, other = metrics(train_tiny("plain").folder), metrics(train_tiny("other", **settings).folder)
    assert other[0]["train_loss"] == pytest.approx(plain[0]["train_loss"], rel=0.05)
