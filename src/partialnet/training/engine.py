"""A training run from its data to its run folder, whatever it learns.

A kind of run says how its data, its network and its steps are made and what it leaves; the engine does the rest:
processes, states and their continuation, signals, checkpoints, metrics.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch._dynamo.exc import BackendCompilerFailed

from partialnet.checkpoint.stored_network import CONFIG_NAME as CHECKPOINT_CONFIG_NAME
from partialnet.checkpoint.stored_network import WEIGHTS_NAME
from partialnet.compilation import why_not_compiled
from partialnet.errors import RunInterrupted, UserError
from partialnet.messages import reason_of

from .batch_loader import lost_reader
from .config import RunConfig
from .continuation import check_same_parameters, check_same_run, describe_run
from .keeper import RunKeeper
from .lock import RunLock
from .loggers import create_loggers, quiet_event_writer
from .lost_processes import OtherProcesses, tells_of_loss
from .machine import create_trainer, fastest_convolutions, find_machine, quiet_lightning, threads
from .progress_bar import ProgressBar, say
from .protocols import TrainingData
from .run_folder import CONFIG_NAME, LAST_NAME, RunFolder
from .settings import as_yaml
from .signals import StopSignals
from .states import State
from .task import Task

ConfigT = TypeVar("ConfigT", bound=RunConfig)
DataT = TypeVar("DataT", bound=TrainingData)
TaskT = TypeVar("TaskT", bound=Task)
ResultT = TypeVar("ResultT", bound="RunResult")


@dataclass(frozen=True)
class RunResult:
    """What a run left; each kind of run adds what it has found out.

    Attributes:
        folder: The run folder.
        files: All files in it that are meant for people, the most important first.
        epochs: Epochs trained.
    """

    folder: Path
    files: tuple[Path, ...]
    epochs: int

    @property
    def checkpoint(self) -> Path:
        """Weights of the epoch that is kept."""
        return self.folder / WEIGHTS_NAME


class RunKind(ABC, Generic[ConfigT, DataT, TaskT, ResultT]):
    """What one kind of run, such as the training of a classifier, adds to the engine.

    Attributes:
        command: How the command line calls it; tells how to continue a run.
    """

    command: ClassVar[tuple[str, ...]]

    @abstractmethod
    def open_data(self, source: str, config: ConfigT) -> DataT:
        """What to learn from.

        Raises:
            UserError: There is no such data.
        """

    @abstractmethod
    def describe_data(self, data: DataT) -> dict[str, Any]:
        """What of the data must be the same when a run continues, as plain values."""

    @abstractmethod
    def create_task(self, config: ConfigT, data: DataT, world_size: int) -> tuple[TaskT, str]:
        """The task with its network, and a sentence on where the weights come from.

        Args:
            config: How to train.
            data: What to learn from.
            world_size: Number of training processes.

        Raises:
            UserError: Something does not fit.
        """

    @abstractmethod
    def announce(self, task: TaskT) -> list[str]:
        """What is about to be trained, in sentences."""

    @abstractmethod
    def draw_beginning(self, task: TaskT, folder: Path) -> None:
        """Pictures of what the run begins with."""

    @abstractmethod
    def finish(self, task: TaskT, folder: Path) -> ResultT:
        """Evaluate what is kept as it lies on the disk, draw what there is to see, and say what the run left."""


def run(
    kind: RunKind[ConfigT, DataT, TaskT, ResultT], config: ConfigT, source: str, folder: Path, resume: bool = False
) -> ResultT:
    """Train and fill a run folder.

    Under Lightning's launcher, torchrun or SLURM each process calls this; the first one writes.

    Args:
        kind: What to train.
        config: How to train.
        source: What to learn from.
        folder: Run folder.
        resume: Continue the run in ``folder`` if there is one.

    Raises:
        UserError: Something does not fit; where it can be known before the training, nothing has been written. Or
            another process trains into the folder.
        RunInterrupted: A signal asked to stop; the run's state is saved.
    """
    with quiet_lightning(), quiet_event_writer(), RunLock(folder) as lock:
        with StopSignals() as signals:
            trainer, task, keeper, state = _prepare(kind, config, source, folder, resume, signals, lock)
            with threads(config, trainer.num_devices), fastest_convolutions(config):
                _fit(trainer, task, keeper, state)
        if not trainer.is_global_zero:
            sys.exit(0)
        if not task.progress.best_epoch:
            raise UserError(f"No checkpoint could be written to {str(folder)!r}.")
        with threads(config, trainer.num_devices):
            return kind.finish(task, folder)


def is_trained(kind: RunKind[ConfigT, DataT, TaskT, ResultT], config: ConfigT, data: DataT, folder: Path) -> bool:
    """Whether a run folder holds this run, trained to its last epoch.

    Args:
        kind: What was to be trained.
        config: How it was to be trained.
        data: What it was to learn from.
        folder: The run folder, which may not exist.

    Raises:
        UserError: The last checkpoint in it is of a run with other settings or data.
    """
    try:
        about = json.loads((folder / LAST_NAME / CHECKPOINT_CONFIG_NAME).read_text())["training"]
        now = describe_run(kind.command, config, kind.describe_data(data), about["processes"])
        check_same_run(about, now, config, folder)
        return bool(about["epoch"] >= config.epochs)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return False  # nothing there, or nothing that could be taken for a trained network


def _prepare(
    kind: RunKind[ConfigT, DataT, TaskT, ResultT],
    config: ConfigT,
    source: str,
    folder: Path,
    resume: bool,
    signals: StopSignals,
    lock: RunLock,
) -> tuple[L.Trainer, TaskT, RunKeeper, Path | None]:
    """Everything up to the first step, and the state to continue from; writes when nothing speaks against it."""
    config.check()
    machine = find_machine(config)
    first, world_size = machine.launch.is_first, machine.launch.world_size
    tell = say if first else _say_nothing

    # what there is: a run to continue, and data that it may continue with
    run_folder = RunFolder(folder, resume, lock, first, tell)
    state = run_folder.open()
    data = kind.open_data(source, config)
    about = describe_run(kind.command, config, kind.describe_data(data), world_size)
    if state is not None:
        check_same_run(state.run, about, config, folder)

    # what learns, and what trains it
    task, weights = _create_task(kind, config, data, world_size, state)
    command = (*kind.command, source, "--config", str(folder / CONFIG_NAME), "-o", str(folder), "--resume")
    keeper = RunKeeper(folder, run_folder.states, signals, about, command, tell)
    settings = as_yaml(config, f"Trained on {source}").encode()
    next_epoch = 1 + (state.progress["epoch"] if state is not None else 0)
    loggers = create_loggers(config, source, folder, next_epoch, run_folder.is_same_run(settings)) if first else []
    trainer = create_trainer(config, machine, run_folder.states, [keeper, ProgressBar()], loggers)

    # nothing speaks against it
    if first:
        _announce(kind, task, weights, world_size, state)
        run_folder.begin(settings)
        if state is None:
            kind.draw_beginning(task, folder)
    return trainer, task, keeper, state.path if state is not None else None


def _create_task(
    kind: RunKind[ConfigT, DataT, TaskT, ResultT], config: ConfigT, data: DataT, world_size: int, state: State | None
) -> tuple[TaskT, str]:
    """The task, drawn from the run's seed; and where its weights come from and how many are trained, in words."""
    torch.manual_seed(config.seed % 2**64)
    # a state holds all weights, so those that a run began with may be gone when it continues
    task, weights = kind.create_task(config if state is None else replace(config, weights=None), data, world_size)
    optimizer = task.create_optimizer(config.lr)  # what it objects to, it is to say before anything is written
    if state is not None:
        check_same_parameters(state, optimizer)
        weights = "Weights: from the saved state."
    return task, f"{weights} {task.trained_parameters()}."


def _announce(
    kind: RunKind[ConfigT, DataT, TaskT, ResultT], task: TaskT, weights: str, world_size: int, state: State | None
) -> None:
    """Say what is about to be trained, and from where on."""
    for sentence in (*kind.announce(task), weights, task.highest_lr(world_size)[1]):
        say(sentence)
    if state is not None:
        epoch, batch = state.progress["epoch"], state.progress["batch"]
        where = f"epoch {epoch + 1}" + (f", batch {batch + 1}" if batch else "")
        say(f"Continuing with {where}." if epoch < task.config.epochs else "The last epoch is trained already.")


def _fit(trainer: L.Trainer, task: Task, keeper: RunKeeper, state: Path | None) -> None:
    """Train to the last epoch; what ends the training before is raised as the callers of ``run`` are to see it."""
    others = OtherProcesses(trainer) if trainer.world_size > 1 else None
    try:
        with _signals_answered(trainer, task, keeper):
            trainer.fit(task, ckpt_path=state)
    except RunInterrupted:
        if not trainer.is_global_zero:
            sys.exit(0)  # the first process tells the user; Lightning's launcher would kill it for a failure here
        raise
    except BackendCompilerFailed as error:
        raise UserError(f"The network cannot be trained with --compile: {why_not_compiled(error)}") from error
    except RuntimeError as error:
        reader = lost_reader(error, keeper.resume_command)
        if reader is not None:
            raise reader from error
        if others is not None and tells_of_loss(error):
            others.end_with(error, keeper.resume_command)
        raise


@contextmanager
def _signals_answered(trainer: L.Trainer, task: Task, keeper: RunKeeper) -> Iterator[None]:
    """Turn what Lightning or the compiler raise after a signal into the exceptions that callers expect.

    Raises:
        RunInterrupted: A signal asked to stop.
        KeyboardInterrupt: A second Ctrl-C was pressed.
    """
    try:
        yield
    except SIGTERMException:
        # Lightning's own answer, in the moment before the keeper takes over the signals
        keeper.interrupt("before the first batch")
    except SystemExit:
        # Lightning turns a second Ctrl-C into exit code 1; our callers are to see the interrupt
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except (UserError, RunInterrupted):
        raise
    except Exception:
        # a signal may reach the compiler's processes, too, which it ends
        if task.config.compile and keeper.signals.received:
            keeper.interrupt("while the network was compiled")
        raise


@contextmanager
def pictures_may_fail() -> Iterator[None]:
    """Where pictures cannot be written, say so and go on: the run's other files are all there."""
    try:
        yield
    except OSError as error:
        say(f"The pictures cannot be written ({reason_of(error)}).")


def _say_nothing(sentence: str) -> None:
    """What processes other than the first one say."""
