"""A training run from its data to its run folder."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tqdm import tqdm

from ..checkpoint import CONFIG_NAME as CHECKPOINT_CONFIG_NAME
from ..checkpoint import WEIGHTS_NAME, load
from ..data.labelled_images import ImageData
from ..data.sources import open_data
from ..errors import RunInterrupted, UserError
from ..evaluation import evaluate
from ..files import write_atomically
from . import pictures
from .batches import train_loader
from .config import TrainConfig, as_yaml
from .keeper import BROKEN_NAME, LAST_NAME, METRICS_NAME, RunKeeper
from .machine import create_loggers, create_trainer, quiet_lightning, threads
from .network import create_network
from .optimization import check_optimization, create_optimizer, scaled_lr
from .progress_bar import ProgressBar
from .signals import StopSignals
from .states import StateFiles, describe
from .task import ClassifierTask, trained_parameters
from .teacher import load_teacher

CONFIG_NAME = "config.yaml"
STATES_NAME = "state"

#: Settings that change how, how fast or how often, but not what comes out; all others must agree when a run continues.
FREE_SETTINGS = frozenset(
    {"workers", "max_broken_share", "device", "threads", "save_minutes", "loggers", "devices", "num_nodes"}
)


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        folder: The run folder.
        checkpoint: Weights of the best epoch.
        accuracy: Share of the held-out images that they get right.
        num_val: Number of the held-out images that could be read.
        files: All files that are meant for people, the checkpoint first.
        epochs: Epochs trained.
    """

    folder: Path
    checkpoint: Path
    accuracy: float
    num_val: int
    files: tuple[Path, ...]
    epochs: int


def train(config: TrainConfig, data: str, folder: Path, resume: bool = False) -> TrainResult:
    """Train a classifier and fill a run folder.

    Under Lightning's launcher, torchrun or SLURM each process calls this; the first one writes.

    Args:
        config: How to train.
        data: What to learn from; see ``partialnet.data.sources.open_data``.
        folder: Run folder.
        resume: Continue the run in ``folder`` if there is one.

    Raises:
        UserError: Something does not fit; where it can be known before the training, nothing has been written.
        RunInterrupted: A signal asked to stop; the run's state is saved.
    """
    with quiet_lightning():
        with StopSignals() as signals:
            trainer, task, keeper, state = _prepare(config, data, folder, resume, signals)
            with threads(config, trainer.num_devices):
                _fit(trainer, task, keeper, state)
        if not trainer.is_global_zero:
            sys.exit(0)
        with threads(config, trainer.num_devices):
            return _finish(task, folder)


def is_finished(config: TrainConfig, images: ImageData, folder: Path) -> bool:
    """Whether a run folder holds this run, trained to its last epoch and drawn.

    Args:
        config: How it was to be trained.
        images: What it was to learn from.
        folder: The run folder, which may not exist.

    Raises:
        UserError: The last checkpoint in it is of a run with other settings or data.
    """
    try:
        run = json.loads((folder / LAST_NAME / CHECKPOINT_CONFIG_NAME).read_text())["training"]
        now = {"config": _plain(asdict(config)), "data": _describe(images), "processes": run["processes"]}
        _check_agreement(run, now, folder)
        done: bool = run["epoch"] >= config.epochs
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        return False  # nothing there, or nothing that could be taken for a finished run
    return done and (folder / pictures.CURVES_NAME).exists()


def _prepare(
    config: TrainConfig, data: str, folder: Path, resume: bool, signals: StopSignals
) -> tuple[L.Trainer, ClassifierTask, RunKeeper, Path | None]:
    """Everything up to the first step, and the state to continue from; writes when nothing speaks against it."""
    check_optimization(config)
    states = StateFiles(folder / STATES_NAME, _say)
    trainer = create_trainer(config, plugins=[states], logger=False)
    first = trainer.is_global_zero
    if not first:
        states.say = lambda sentence: None
    content = states.newest() if resume else None
    if first:
        _check_folder(folder, resume, content is not None)
    images = open_data(data, config.val_share, config.seed)
    world_size = trainer.num_devices * trainer.num_nodes
    run = {"config": _plain(asdict(config)), "data": _describe(images), "processes": world_size}
    if content is not None:
        _check_agreement(content["run"], run, folder)
    torch.manual_seed(config.seed % 2**64)
    # a state holds all weights, so those that a run began with may be gone when it continues
    checkpoint, weights = create_network(
        config if content is None else replace(config, weights=None), images.class_names
    )
    weights = weights if content is None else "Weights: from the saved state."
    teacher = load_teacher(config.teacher, images.class_names, checkpoint.input_config) if config.teacher else None
    batches = train_loader(images.train, config, checkpoint.input_config, epoch=0, world_size=world_size)
    create_optimizer(checkpoint.model, config, config.lr)  # what it objects to, it is to say now
    task = ClassifierTask(checkpoint, config, images, len(batches), teacher)
    keeper = RunKeeper(folder, checkpoint, states, signals, run, _resume_command(data, folder), _say)
    task.callbacks = [keeper, ProgressBar()]
    first_epoch = content["progress"]["epoch"] + 1 if content is not None else 1
    trainer.loggers = create_loggers(config, folder, first_epoch) if first else []
    if first:
        _announce(task, images, weights, scaled_lr(config, world_size)[1], content)
        folder.mkdir(parents=True, exist_ok=True)
        states.remove_leftovers()
        write_atomically(folder / CONFIG_NAME, as_yaml(config, f"Trained on {data}").encode())
        if content is None:
            first_batch = next(iter(train_loader(images.train, replace(config, workers=0), task.input_config, epoch=0)))
            pictures.draw_first_batch(folder, first_batch, task.input_config, images.class_names)
    return trainer, task, keeper, states.last_good if content is not None else None


def _fit(trainer: L.Trainer, task: ClassifierTask, keeper: RunKeeper, state: Path | None) -> None:
    try:
        try:
            trainer.fit(task, ckpt_path=state)
        except SIGTERMException:
            # Lightning's own answer, in the moment before the keeper takes over the signals
            keeper.interrupt("before the first batch")
    except RunInterrupted:
        if not trainer.is_global_zero:
            sys.exit(0)  # the first process tells the user; Lightning's launcher would kill it for a failure here
        raise
    except SystemExit:
        # Lightning turns a second Ctrl-C into exit code 1; our callers are to see the interrupt
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _finish(task: ClassifierTask, folder: Path) -> TrainResult:
    """Evaluate the best checkpoint as it lies on the disk, and draw what it gets right and wrong."""
    progress, config, images = task.progress, task.config, task.data.validation
    if not progress.best_epoch:
        raise UserError(f"No checkpoint could be written to {str(folder)!r}.")
    device = task.trainer.strategy.root_device
    evaluation = evaluate(load(folder), images, config.batch_size, config.workers, device, progress=sys.stderr.isatty())
    try:
        pictures.draw_results(folder, progress.rows, images, evaluation)
    except OSError as error:
        _say(f"The pictures cannot be written ({describe(error)}).")  # everything else has been
    names = (
        *(WEIGHTS_NAME, "config.json", LAST_NAME, CONFIG_NAME, METRICS_NAME, "tensorboard", BROKEN_NAME),
        *(pictures.CURVES_NAME, pictures.CONFUSION_NAME, pictures.MISTAKES_NAME, pictures.FIRST_BATCH_NAME),
    )
    files = tuple(folder / name for name in names if (folder / name).exists())
    return TrainResult(folder, folder / WEIGHTS_NAME, evaluation.top1, evaluation.num_images, files, progress.epoch)


def _check_folder(folder: Path, resume: bool, has_state: bool) -> None:
    """Refuse to write over another run.

    Raises:
        UserError: ``folder`` is a file, or holds a run that is not to be continued.
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


def _check_agreement(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to continue a run with what would make it another one."""
    old, new = before["config"], now["config"]
    differing = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in FREE_SETTINGS and old.get(name) != new.get(name)
    ]
    if before["processes"] != now["processes"]:
        differing.append(f"there were {before['processes']} processes and are {now['processes']}")
    differing += [
        f"{name.replace('_', ' ')} of the data differs"
        for name in before["data"]
        if before["data"][name] != now["data"].get(name)
    ]
    if differing:
        raise UserError(f"The run in {str(folder)!r} cannot continue like this: {'; '.join(differing)}.")


def _describe(data: ImageData) -> dict[str, Any]:
    """What must be the same when a run continues."""
    labels = hashlib.sha256(data.train.labels.tobytes() + data.validation.labels.tobytes()).hexdigest()
    return {
        "number_of_training_images": len(data.train),
        "number_of_validation_images": len(data.validation),
        "classes": list(data.class_names),
        "labels": labels[:16],
    }


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON would give them back."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _announce(task: ClassifierTask, data: ImageData, weights: str, lr: str, content: Mapping[str, Any] | None) -> None:
    size = "×".join(str(side) for side in task.input_config["input_size"][1:])
    _say(
        f"{len(data.train):,} training and {len(data.validation):,} validation images of {len(data.class_names)} "
        f"classes ({data.split}); {task.config.model} at {size}."
    )
    _say(f"{weights} {trained_parameters(task)}")
    _say(lr)
    if content is not None:
        progress = content["progress"]
        _say(f"Continuing after {progress['epoch']} epochs and {progress['batch']} batches.")


def _resume_command(data: str, folder: Path) -> str:
    parts = ["partialnet", "train", data, "--config", str(folder / CONFIG_NAME), "-o", str(folder), "--resume"]
    return shlex.join(parts)


def _say(sentence: str) -> None:
    """A line on the error stream, above a progress bar if there is one."""
    tqdm.write(sentence, file=sys.stderr)
