"""Training of a detector from its images to its run folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from partialnet.training.engine import RunKind, RunResult, pictures_may_fail, run
from partialnet.training.run_folder import FILES, present_files

from . import pictures
from .batches import detection_train_loader
from .checkpoint import create_detector, load_detector
from .config import DetectionConfig
from .data_sources import DetectionData, open_detection_data
from .evaluator import DetectionEvaluation
from .inference import evaluate_detector
from .model import Detector
from .outlines import mask_functions
from .task import DetectorTask
from .weights import load_weights

_PICTURES = (
    pictures.CURVES_NAME,
    pictures.PRECISION_RECALL_NAME,
    pictures.COMPARISON_NAME,
    pictures.FIRST_BATCH_NAME,
)


@dataclass(frozen=True)
class DetectionResult(RunResult):
    """What the training of a detector left.

    Attributes:
        evaluation: How good the checkpoint of the best epoch is on the held-out images.
    """

    evaluation: DetectionEvaluation


def train_detector(config: DetectionConfig, data: str, folder: Path, resume: bool = False) -> DetectionResult:
    """Train a detector and fill a run folder; see ``partialnet.training.engine.run``.

    Args:
        config: How to train.
        data: What to learn from; see ``partialnet.detection.data_sources.open_detection_data``.
        folder: Run folder.
        resume: Continue the run in ``folder`` if there is one.

    Raises:
        UserError: Something does not fit; where it can be known before the training, nothing has been written.
        RunInterrupted: A signal asked to stop; the run's state is saved.
    """
    return run(DetectorRun(), config, data, folder, resume)


class DetectorRun(RunKind[DetectionConfig, DetectionData, DetectorTask, DetectionResult]):
    """Training of a detector."""

    command = ("detect", "train")

    def open_data(self, source: str, config: DetectionConfig) -> DetectionData:
        """Images with their objects."""
        mask_functions()  # a missing evaluator is reported now, not after the first epoch
        return open_detection_data(source, config.validation, config.val_share, config.seed, config.keep_empty)

    def describe_data(self, data: DetectionData) -> dict[str, Any]:
        """Numbers of images, categories, and fingerprints of the objects."""
        parts = (data.train, data.validation)
        return {
            "number_of_training_images": len(data.train),
            "number_of_validation_images": len(data.validation),
            "categories": list(data.class_names),
            "has_outlines": data.train.has_outlines,
            "objects": [images.fingerprint() for images in parts],
            "outlines_and_file_names": [images.outline_fingerprint() for images in parts],
        }

    def create_task(self, config: DetectionConfig, data: DetectionData, world_size: int) -> tuple[DetectorTask, str]:
        """The detector, its backbone new or from other weights."""
        ids = data.train.category_ids.tolist()
        categories = dict(zip(ids, data.class_names, strict=True))
        checkpoint = create_detector(config.model, categories, **config.detector_settings(data.train))
        weights = "Weights: new." if config.weights is None else load_weights(checkpoint, config.weights)
        if config.frozen_stages is not None:
            cast(Detector, checkpoint.model).backbone.maps.freeze(config.frozen_stages)
        num_batches = len(detection_train_loader(data.train, config, epoch=0, world_size=world_size))
        return DetectorTask(checkpoint, config, data, num_batches), weights

    def announce(self, task: DetectorTask) -> list[str]:
        """Images, objects, network and sides; and what was wrong with the data."""
        data, sides = task.data, "/".join(map(str, task.config.sides))
        objects = int(data.train.num_instances.sum())
        return [
            f"{len(data.train):,} training images with {objects:,} objects of {len(data.class_names)} categories and "
            f"{len(data.validation):,} validation images ({data.split}); {task.start.kind} on {task.config.model}, "
            f"sides up to {sides}.",
            *(() if data.train.has_outlines else ("The data has no masks, so only boxes are learnt.",)),
            *data.notes(task.start.has_masks),
        ]

    def draw_beginning(self, task: DetectorTask, folder: Path) -> None:
        """The first batch as the network sees it, with the objects to learn."""
        batches = detection_train_loader(task.data.train, replace(task.config, workers=0), epoch=0)
        pictures.draw_first_batch(folder, next(iter(batches)), task.data.class_names)

    def finish(self, task: DetectorTask, folder: Path) -> DetectionResult:
        """Evaluate the best checkpoint, and draw what it finds and what not."""
        config, images = task.config, task.data.validation
        device = task.trainer.strategy.root_device
        detector = load_detector(folder)
        found = evaluate_detector(detector, images, device, config.eval_batch_size, config.workers, sys.stderr.isatty())
        with pictures_may_fail():
            pictures.draw_curves(folder / pictures.CURVES_NAME, task.progress.rows)
            heading = f"epoch {task.progress.best_epoch}, the best"
            pictures.draw_results(folder, images, found.evaluation, found.detections, heading)
        files = present_files(folder, (*FILES, *_PICTURES))
        return DetectionResult(folder, files, task.progress.epoch, found.evaluation)
