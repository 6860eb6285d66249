"""Where a run computes: devices, processes, precision, threads and loggers, as Lightning wants them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy

from ..errors import UserError
from .config import RunConfig


def create_trainer(config: RunConfig, **options: Any) -> L.Trainer:
    """A trainer for the devices of ``config``, or for those that torchrun has started processes for.

    Raises:
        UserError: This machine lacks the device, or the device the precision.
    """
    accelerator = _accelerator(config)
    devices, num_nodes = _processes(config, accelerator)
    distributed = devices * num_nodes > 1
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=DDPStrategy() if distributed else "auto",
        precision=_precision(config, accelerator),  # type: ignore[arg-type]
        max_epochs=config.epochs,
        accumulate_grad_batches=config.accumulate,
        # ours: batches for each process, validation that can be interrupted, states, one bar
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def create_loggers(config: RunConfig, folder: Path, first_epoch: int) -> list[Logger]:
    """TensorBoard and what else is asked for; epochs from ``first_epoch`` on replace those logged before.

    Raises:
        UserError: The library of a logger is not installed.
    """
    # an empty version puts the events right into RUN/tensorboard
    found: list[Logger] = [
        TensorBoardLogger(folder, name="tensorboard", version="", purge_step=first_epoch if first_epoch > 1 else None)
    ]
    for name in config.loggers:
        try:
            if name == "wandb":
                found.append(WandbLogger(name=folder.name, save_dir=folder, resume="allow", id=_run_id(folder)))
            else:
                found.append(MLFlowLogger("partialnet", run_name=folder.name, tracking_uri=f"file:{folder / 'mlflow'}"))
        except ModuleNotFoundError as error:
            raise UserError(f"The logger {name} is not installed; `pip install {name}` does that.") from error
    return found


@contextmanager
def threads(config: RunConfig, processes: int) -> Iterator[None]:
    """Run with the threads that ``config`` asks for."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's start-up notes, which are about devices and workers, off a user's screen."""
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


def _processes(config: RunConfig, accelerator: str) -> tuple[int, int]:
    """Processes on each machine, and machines."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    available = torch.cuda.device_count() if accelerator == "gpu" else None
    devices = config.devices or available or 1
    if available is not None and devices > available:
        raise UserError(f"devices={devices}, but there are {available} GPUs here.")
    return devices, config.num_nodes


def _precision(config: RunConfig, accelerator: str) -> str:
    if config.precision == "fp16" and accelerator == "cpu":
        raise UserError("precision=fp16 needs a GPU; bf16 works on the CPU, too.")
    if config.precision == "auto":
        return "bf16-mixed" if accelerator == "gpu" and torch.cuda.is_bf16_supported() else "32-true"
    return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[config.precision]


def _run_id(folder: Path) -> str:
    """The same for a run and its continuation."""
    return "".join(character if character.isalnum() else "-" for character in str(folder.absolute()))[-60:].strip("-")
