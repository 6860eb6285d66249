"""Where a run computes: devices, processes, precision and threads, as Lightning wants them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO

from partialnet.errors import UserError

from .config import RunConfig
from .launch import Launch, find_launch

#: By this torchrun and Lightning tell a process its number of threads; PyTorch follows it from its start.
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    Attributes:
        accelerator: Lightning's name of the devices.
        precision: Lightning's name of the arithmetic.
        launch: The processes.
    """

    accelerator: str
    precision: str
    launch: Launch


def find_machine(config: RunConfig) -> Machine:
    """The devices of ``config``, or those that torchrun or SLURM has started processes for.

    Raises:
        UserError: This machine lacks the device, or the device the precision.
    """
    accelerator = _accelerator(config)
    launch = _launch(config, accelerator)
    return Machine(accelerator, _precision(config, accelerator), launch)


def create_trainer(
    config: RunConfig, machine: Machine, states: CheckpointIO, callbacks: list[L.Callback], loggers: list[Logger]
) -> L.Trainer:
    """Lightning's trainer.

    Args:
        config: How long to train.
        machine: Where to compute.
        states: How states are written and read.
        callbacks: What it calls besides the task.
        loggers: Where the metrics go.
    """
    launch = machine.launch
    return L.Trainer(
        accelerator=machine.accelerator,
        devices=launch.devices,
        num_nodes=launch.num_nodes,
        plugins=[states, launch.environment],
        strategy="ddp" if launch.world_size > 1 else "auto",
        precision=machine.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        accumulate_grad_batches=config.accumulate,
        callbacks=callbacks,
        logger=loggers,
        # ours: batches for each process, validation that can be interrupted, states, one bar
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def threads(config: RunConfig, processes: int) -> Iterator[None]:
    """Run with the threads that ``config`` asks for, else those that the launcher gives, else a share of the cores.

    Args:
        config: The number of threads.
        processes: Training processes on this machine.
    """
    before, given = torch.get_num_threads(), os.environ.get(_THREADS)
    number = config.threads or (before if given else max(1, before // processes))
    torch.set_num_threads(number)
    # without the variable Lightning would divide the cores itself, and so would the processes that it starts
    os.environ[_THREADS] = str(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        del os.environ[_THREADS]
        if given is not None:
            os.environ[_THREADS] = given


@contextmanager
def fastest_convolutions(config: RunConfig) -> Iterator[None]:
    """Let cuDNN try out which of its convolutions is the fastest for each size of images, where there are few sizes.

    Not where PyTorch is to be deterministic, as the choice may be another one in the next run.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    cudnn.benchmark = before or (config.has_few_sizes and not deterministic)
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's start-up notes about devices and workers off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _accelerator(config: RunConfig) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here; device=auto takes one where there is one.")
    return "gpu" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def _launch(config: RunConfig, accelerator: str) -> Launch:
    available = torch.cuda.device_count() if accelerator == "gpu" else None
    launch = find_launch(config.devices or available or 1, config.num_nodes)
    if available is not None and launch.devices > available:
        raise UserError(f"Each machine is to run {launch.devices} processes, but this one sees {available} GPUs.")
    return launch


def _precision(config: RunConfig, accelerator: str) -> str:
    if config.precision == "fp16" and accelerator == "cpu":
        raise UserError("precision=fp16 needs a GPU; bf16 works on the CPU, too.")
    if config.precision == "auto":
        has_bf16 = accelerator == "gpu" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if has_bf16 else "32-true"
    return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[config.precision]
