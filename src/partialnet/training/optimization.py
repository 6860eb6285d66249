"""Optimiser, learning rate and its schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from partialnet.errors import UserError

from .config import RunConfig

#: Learning rate of the first step of a warm-up, as a share of the highest.
WARMUP_START = 1e-3

#: Optimisers that PyTorch can run as one pass over the parameters, on CPUs and GPUs.
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def scaled_lr(config: RunConfig, world_size: int, num_images: int, num_batches: int) -> tuple[float, str]:
    """Highest learning rate for the effective batch, and how it came about, in words.

    Args:
        config: The learning rate, the batch that it is meant for, and the batch that is wanted.
        world_size: Number of training processes.
        num_images: Images of an epoch, which may be fewer than the batch that is wanted.
        num_batches: Batches of an epoch in each process, which may be fewer than are to be added up.
    """
    images, added = min(config.batch_size, num_images // world_size), min(config.accumulate, num_batches)
    batch = images * added * world_size
    factors = [f"{images} images"]
    if added > 1:
        factors.append(f"{added} batches added up")
    if world_size > 1:
        factors.append(f"{world_size} processes")
    size = f"effective batch {batch}" + (f" ({' × '.join(factors)})" if len(factors) > 1 else "")
    if config.lr_scaling == "none":
        return config.lr, f"Learning rate {config.lr:.3g}, whatever the batch; {size}."
    ratio = batch / config.lr_batch
    lr = config.lr * (math.sqrt(ratio) if config.lr_scaling == "sqrt" else ratio)
    law = "√" if config.lr_scaling == "sqrt" else ""
    return lr, f"Learning rate {lr:.3g} = {config.lr:g} × {law}({batch} / {config.lr_batch}); {size}."


def create_optimizer(network: nn.Module, config: RunConfig, lr: float) -> torch.optim.Optimizer:
    """timm's optimiser; norms and biases do not decay, and with ``layer_decay`` earlier layers learn more slowly.

    PyTorch's own are fused, one pass over the parameters, which takes AdamW a quarter of the time on one core.

    Args:
        network: What is trained.
        config: The optimiser, and how weights decay.
        lr: Highest learning rate.

    Raises:
        UserError: timm refuses it, as for an optimiser whose library is not installed.
    """
    options: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay, "layer_decay": config.layer_decay}
    try:
        # with fp16, gradients would stay scaled until the step, and be clipped so
        if config.precision != "fp16" and get_optimizer_class(config.optimizer, bind_defaults=False) in FUSED:
            options["fused"] = True
        return create_optimizer_v2(network, config.optimizer, **options)
    except (AssertionError, ImportError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"The optimiser {config.optimizer!r} cannot be used: {error}") from error


def create_schedule(
    optimizer: torch.optim.Optimizer, config: RunConfig, lr: float, updates_per_epoch: int
) -> Scheduler:
    """timm's schedule, a function of the number of updates.

    After a linear warm-up, the schedule that was asked for takes the rest of the epochs; ``decay_epochs`` count from
    its beginning. "poly" falls linearly.

    Args:
        optimizer: Whose learning rate it sets.
        config: The schedule, and its epochs.
        lr: Highest learning rate.
        updates_per_epoch: Changes of the weights in an epoch.
    """
    # timm's annotations say whole epochs, its arithmetic takes parts, too
    epochs: Any = config.epochs - config.warmup_epochs
    warmup_epochs: Any = config.warmup_epochs
    decay_epochs: Any = list(config.decay_epochs)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=epochs,
        decay_epochs=decay_epochs[0] if decay_epochs else 1,  # which only schedules with steps look at
        decay_milestones=decay_epochs,
        decay_rate=1.0 if config.schedule == "poly" else config.decay_rate,  # to timm, a polynomial's exponent
        min_lr=lr * config.min_lr_ratio,
        warmup_lr=lr * WARMUP_START,
        warmup_epochs=warmup_epochs,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    assert schedule is not None
    return schedule
