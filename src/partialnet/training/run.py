"""Training of a classifier from its images to its run folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from partialnet.checkpoint import Checkpoint, load
from partialnet.data.labelled_images import ImageData, describe_images
from partialnet.data.sources import open_data
from partialnet.evaluation import Evaluation, evaluate

from . import pictures
from .batches import train_loader
from .classifier import ClassifierTask
from .config import TrainConfig
from .engine import RunKind, RunResult, is_trained, pictures_may_fail, run
from .network import create_network
from .run_folder import FILES, present_files
from .teacher import load_teacher

_PICTURES = (pictures.CURVES_NAME, pictures.CONFUSION_NAME, pictures.MISTAKES_NAME, pictures.FIRST_BATCH_NAME)

ConfigT = TypeVar("ConfigT", bound=TrainConfig)
TaskT = TypeVar("TaskT", bound=ClassifierTask)
ResultT = TypeVar("ResultT", bound=RunResult)


@dataclass(frozen=True)
class TrainResult(RunResult):
    """What the training of a classifier left.

    Attributes:
        accuracy: Share of the held-out images that the checkpoint, of the best epoch, gets right.
        num_val: Number of the held-out images that could be read.
    """

    accuracy: float
    num_val: int


def train(config: TrainConfig, data: str, folder: Path, resume: bool = False) -> TrainResult:
    """Train a classifier and fill a run folder; see ``partialnet.training.engine.run``.

    Args:
        config: How to train.
        data: What to learn from; see ``partialnet.data.sources.open_data``.
        folder: Run folder.
        resume: Continue the run in ``folder`` if there is one.

    Raises:
        UserError: Something does not fit; where it can be known before the training, nothing has been written.
        RunInterrupted: A signal asked to stop; the run's state is saved.
    """
    return run(ClassifierRun(), config, data, folder, resume)


def is_finished(config: TrainConfig, images: ImageData, folder: Path) -> bool:
    """Whether a run folder holds this run, trained to its last epoch and drawn to its last picture.

    Raises:
        UserError: It holds a run of other settings or images.
    """
    return is_trained(ClassifierRun(), config, images, folder) and (folder / pictures.MISTAKES_NAME).exists()


class ImageRun(RunKind[ConfigT, ImageData, TaskT, ResultT]):
    """A run that learns from labelled images.

    Attributes:
        task: Class of its task.
    """

    task: type[TaskT]

    def open_data(self, source: str, config: ConfigT) -> ImageData:
        """Labelled images."""
        return open_data(source, config.val_share, config.seed)

    def describe_data(self, data: ImageData) -> dict[str, Any]:
        """Numbers of images, classes, and fingerprints of the labels and names."""
        return describe_images(data)

    def create_task(self, config: ConfigT, data: ImageData, world_size: int) -> tuple[TaskT, str]:
        """The classifier, new or from other weights, and its teacher."""
        checkpoint, weights = create_network(config, data.class_names)
        checkpoint = self.adapt(checkpoint, config)
        teacher = load_teacher(config.teacher, data.class_names, checkpoint.input_config) if config.teacher else None
        batches = train_loader(data.train, config, checkpoint.input_config, epoch=0, world_size=world_size)
        return self.task(checkpoint, config, data, len(batches), teacher), weights

    def adapt(self, checkpoint: Checkpoint, config: ConfigT) -> Checkpoint:
        """The network in the form in which it learns; a kind of run may change it."""
        return checkpoint

    def draw_beginning(self, task: TaskT, folder: Path) -> None:
        """The first training batch as the network sees it."""
        batches = train_loader(task.data.train, replace(task.config, workers=0), task.input_config, epoch=0)
        pictures.draw_first_batch(folder, next(iter(batches)), task.input_config, task.data.class_names)


class ClassifierRun(ImageRun[TrainConfig, ClassifierTask, TrainResult]):
    """Training of a classifier."""

    command = ("train",)
    task = ClassifierTask

    def announce(self, task: ClassifierTask) -> list[str]:
        """Images, classes, network and size."""
        return [describe_task(task)]

    def finish(self, task: ClassifierTask, folder: Path) -> TrainResult:
        """Evaluate the best checkpoint, and draw what it gets right and wrong."""
        evaluation = evaluate_kept(task, folder)
        with pictures_may_fail():
            pictures.draw_results(folder, task.progress.rows, task.data.validation, evaluation)
        files = present_files(folder, (*FILES, *_PICTURES))
        return TrainResult(folder, files, task.progress.epoch, evaluation.top1, evaluation.num_images)


def describe_task(task: ClassifierTask) -> str:
    """What is learnt from, by what, and from which teacher, in a sentence."""
    data = task.data
    size = "×".join(str(side) for side in task.input_config["input_size"][1:])
    taught = f", taught by {task.config.teacher}" if task.config.teacher else ""
    return (
        f"{len(data.train):,} training and {len(data.validation):,} validation images of {len(data.class_names)} "
        f"classes ({data.split}); {task.config.model} at {size}{taught}."
    )


def evaluate_kept(task: ClassifierTask, folder: Path) -> Evaluation:
    """Evaluate the checkpoint in a run folder on the held-out images."""
    config, device = task.config, task.trainer.strategy.root_device
    images = task.data.validation
    return evaluate(load(folder), images, config.batch_size, config.workers, device, progress=sys.stderr.isatty())
