"""A training run from its data to its run folder, whatever it learns.

A kind of run says how its data, its network and its steps are made and what it leaves; the engine does the rest:
processes, states and their continuation, signals, checkpoints, metrics.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch._dynamo.exc import BackendCompilerFailed
from tqdm import tqdm

from partialnet.checkpoint.stored_network import CONFIG_NAME as CHECKPOINT_CONFIG_NAME
from partialnet.checkpoint.stored_network import WEIGHTS_NAME
from partialnet.compilation import why_not_compiled
from partialnet.errors import RunInterrupted, UserError
from partialnet.files import refuse_read_only, write_atomically
from partialnet.messages import reason_of

from .batch_loader import lost_reader
from .config import RunConfig
from .items import TrainingData
from .keeper import LAST_NAME, METRICS_NAME, UNREADABLE_NAME, RunKeeper
from .lock import RunLock
from .loggers import create_loggers, quiet_event_writer
from .lost_processes import OtherProcesses, tells_of_loss
from .machine import create_trainer, find_machine, quiet_lightning, threads
from .progress_bar import ProgressBar
from .settings import as_yaml, plain, settings_of
from .signals import StopSignals
from .states import State, StateFiles
from .task import Task

CONFIG_NAME = "config.yaml"
STATES_NAME = "state"
#: What a run folder holds for people beside its pictures, the checkpoint first.
FILES = (WEIGHTS_NAME, CHECKPOINT_CONFIG_NAME, LAST_NAME, CONFIG_NAME, METRICS_NAME, "tensorboard", UNREADABLE_NAME)

ConfigT = TypeVar("ConfigT", bound=RunConfig)
DataT = TypeVar("DataT", bound=TrainingData)
TaskT = TypeVar("TaskT", bound=Task)
ResultT = TypeVar("ResultT")


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
            with threads(config, trainer.num_devices):
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
        _check_agreement(about, _about(kind, config, data, about["processes"]), config, folder)
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
    if first and folder.is_dir():
        lock.acquire()
    states = StateFiles(folder / STATES_NAME, tell)
    state = states.newest() if resume else None
    if first:
        _check_folder(folder, resume, state is not None)
    data = kind.open_data(source, config)
    about = _about(kind, config, data, world_size)
    if state is not None:
        _check_agreement(state.run, about, config, folder)
    task, weights = _create_task(kind, config, data, world_size, state)
    command = (*kind.command, source, "--config", str(folder / CONFIG_NAME), "-o", str(folder), "--resume")
    keeper = RunKeeper(folder, states, signals, about, command, tell)
    epochs = state.progress["epoch"] if state is not None else 0
    settings = as_yaml(config, f"Trained on {source}").encode()
    # one that was killed before its first state begins anew, but as the same run unless something else was asked for
    continues = state is not None or (resume and not _differs(folder / CONFIG_NAME, settings))
    loggers = create_loggers(config, source, folder, epochs + 1, continues) if first else []
    trainer = create_trainer(config, machine, states, [keeper, ProgressBar()], loggers)
    if first:
        _announce(kind, task, weights, world_size, state)
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        _check_folder(folder, resume, state is not None)  # another process may have made it meanwhile
        keeper.remove_leftovers()
        write_atomically(folder / CONFIG_NAME, settings)
        if state is None:
            (folder / UNREADABLE_NAME).unlink(missing_ok=True)  # of a run that stopped for it at its beginning
            kind.draw_beginning(task, folder)
    return trainer, task, keeper, state.path if state is not None else None


def _differs(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() != content


def _create_task(
    kind: RunKind[ConfigT, DataT, TaskT, ResultT], config: ConfigT, data: DataT, world_size: int, state: State | None
) -> tuple[TaskT, str]:
    """The task, drawn from the run's seed; and where its weights come from and how many learn, in words."""
    torch.manual_seed(config.seed % 2**64)
    # a state holds all weights, so those that a run began with may be gone when it continues
    task, weights = kind.create_task(config if state is None else replace(config, weights=None), data, world_size)
    optimizer = task.create_optimizer(config.lr)  # what it objects to, it is to say before anything is written
    if state is None:
        return task, f"{weights} {task.trained_parameters()}."
    (before,) = state.content["optimizer_states"]
    if _group_sizes(before) != _group_sizes(optimizer.state_dict()):
        raise UserError(
            f"The state {str(state.path)!r} is of another version of PartialNet, which decayed other parameters; train "
            "anew in another folder."
        )
    return task, f"Weights: from the saved state. {task.trained_parameters()}."


def _group_sizes(optimizer_state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer_state["param_groups"]]


def _announce(
    kind: RunKind[ConfigT, DataT, TaskT, ResultT], task: TaskT, weights: str, world_size: int, state: State | None
) -> None:
    """Say what is about to be trained, and from where on."""
    for sentence in (*kind.announce(task), weights, task.highest_lr(world_size)[1]):
        say(sentence)
    if state is not None:
        progress = state.progress
        say(f"Continuing after {progress['epoch']} epochs and {progress['batch']} batches.")


def _fit(trainer: L.Trainer, task: Task, keeper: RunKeeper, state: Path | None) -> None:
    others = OtherProcesses(trainer) if trainer.world_size > 1 else None
    try:
        try:
            trainer.fit(task, ckpt_path=state)
        except SIGTERMException:
            # Lightning's own answer, in the moment before the keeper takes over the signals
            keeper.interrupt("before the first batch")
        except (UserError, RunInterrupted):
            raise
        except Exception:
            # a signal may reach the compiler's processes, too, which it ends
            if task.config.compile and keeper.signals.received:
                keeper.interrupt("while the network was compiled")
            raise
    except BackendCompilerFailed as error:
        raise UserError(f"The network cannot be trained with --compile: {why_not_compiled(error)}") from error
    except RuntimeError as error:
        reader = lost_reader(error)
        if isinstance(reader, RunInterrupted):
            raise RunInterrupted(reader.what, keeper.resume_command) from error
        if reader is not None:
            raise reader from error
        if others is None or not tells_of_loss(error):
            raise
        lost = others.lost()
        if others.is_told_by_first():
            sys.exit(0)
        if lost.exit_code != 75:
            say(str(lost))
            sys.exit(lost.exit_code)
        raise RunInterrupted(str(lost), keeper.resume_command) from error
    except RunInterrupted:
        if not trainer.is_global_zero:
            sys.exit(0)  # the first process tells the user; Lightning's launcher would kill it for a failure here
        raise
    except SystemExit:
        # Lightning turns a second Ctrl-C into exit code 1; our callers are to see the interrupt
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _check_folder(folder: Path, resume: bool, has_state: bool) -> None:
    """Refuse to write over another run.

    Raises:
        UserError: ``folder`` is a file, or holds a run that is not to be continued or files that are read-only.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file; choose a folder for the run.")
    metrics = folder / METRICS_NAME
    # a run that was killed before its first state has one epoch's metrics at most, and may start anew
    if resume and not has_state and metrics.is_file() and len(metrics.read_text().splitlines()) > 2:
        raise UserError(
            f"{str(folder)!r} holds a run of several epochs but no state to continue from; choose another folder."
        )
    if not resume and any((folder / name).exists() for name in (STATES_NAME, WEIGHTS_NAME, METRICS_NAME)):
        raise UserError(f"{str(folder)!r} holds a run already; continue it with --resume or choose another folder.")
    # a run whose checkpoints cannot be replaced would go on for nothing
    refuse_read_only(*(place / name for place in (folder, folder / LAST_NAME) for name in FILES))


def _about(
    kind: RunKind[ConfigT, DataT, TaskT, ResultT], config: ConfigT, data: DataT, processes: int
) -> dict[str, Any]:
    """What a run is, for its states and checkpoints."""
    return {
        "command": " ".join(kind.command),
        "config": plain(asdict(config)),
        "data": kind.describe_data(data),
        "processes": processes,
    }


def differences(before: Mapping[str, Any], config: RunConfig, data: Mapping[str, Any]) -> list[str]:
    """What makes a run different from what it was, in words.

    Args:
        before: The ``config`` and ``data`` that its states and checkpoints hold.
        config: How it is to go on; settings that may change are passed over.
        data: What it is to learn from now, as ``RunKind.describe_data`` says.
    """
    old, new = before["config"], plain(asdict(config))
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    other_epochs = "epochs" in changed
    for name, setting in settings_of(type(config)).items():
        # whoever asks for other epochs did not ask for what follows from them
        if setting.metadata["may_change"] or (other_epochs and setting.metadata["follows_epochs"]):
            changed.discard(name)
    other_data = [name.replace("_", " ") for name, was in before["data"].items() if was != data.get(name)]
    return [
        *(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in sorted(changed)),
        *(f"{name} of the data differs" for name in other_data),
    ]


def _check_agreement(before: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig, folder: Path) -> None:
    """Refuse to continue a run with what would make it another one."""
    if before.get("command", now["command"]) != now["command"]:
        raise UserError(
            f"{str(folder)!r} holds a run of `partialnet {before['command']}`, which `partialnet {now['command']}` "
            "cannot continue; choose another folder."
        )
    differing = differences(before, config, now["data"])
    if before["processes"] != now["processes"]:
        differing.append(f"the number of processes was {before['processes']} and is {now['processes']}")
    if differing:
        raise UserError(
            f"The run in {str(folder)!r} cannot continue like this: {'; '.join(differing)}. "
            "Continue it as it began, or choose another folder."
        )


@contextmanager
def pictures_may_fail() -> Iterator[None]:
    """Where pictures cannot be written, say so and go on: the run's other files are all there."""
    try:
        yield
    except OSError as error:
        say(f"The pictures cannot be written ({reason_of(error)}).")


def present_files(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """The files of a run folder with these names, in this order, without those that are not there."""
    return tuple(folder / name for name in names if (folder / name).exists())


def say(sentence: str) -> None:
    """A line on the error stream, above a progress bar if there is one."""
    tqdm.write(sentence, file=sys.stderr)


def _say_nothing(sentence: str) -> None:
    """What processes other than the first one say."""
