"""The demo: a PartialNet learns handwritten digits on the CPU in a few minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
from tqdm import tqdm

from . import plots
from .checkpoint import Checkpoint, create_checkpoint
from .data.digits import Split, digits
from .prediction import Classifier
from .training.simple import EpochMetrics, Recipe, train

MODEL = "partialnet_t0"
SAMPLES = 20


@dataclass(frozen=True)
class DemoResult:
    """What the demo left: the written files, the checkpoint first, and the share of test images it gets right."""

    folder: Path
    checkpoint: Path
    files: tuple[Path, ...]
    accuracy: float
    num_test: int


def run_demo(folder: Path, recipe: Recipe | None = None, split: Split | None = None) -> DemoResult:
    """Train ``partialnet_t0`` from scratch and write a run folder.

    Args:
        folder: Folder to fill; it is made if needed.
        recipe: How to train; the default takes about a minute on two cores.
        split: Data; scikit-learn's handwritten digits if None.
    """
    recipe = recipe or Recipe()
    split = split or digits()
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(recipe.seed, verbose=False)
    network = create_checkpoint(MODEL, split.class_names, num_classes=len(split.class_names))
    rows = train(network.model, split, recipe, folder / "metrics.csv")
    checkpoint = Checkpoint(
        network.model, network.architecture, network.model_args, split.class_names, dict(split.input_config)
    )
    weights = checkpoint.save(folder)
    accuracy = _draw(folder, checkpoint, split, rows)
    samples = _write_samples(folder / "samples", split)
    pictures = [folder / name for name in ("curves.png", "predictions.png", "confusion.png")]
    files = (weights, folder / "config.json", folder / "metrics.csv", *pictures, samples)
    return DemoResult(folder, weights, files, accuracy, len(split.test))


def _draw(folder: Path, checkpoint: Checkpoint, split: Split, rows: list[EpochMetrics]) -> float:
    """Draw the pictures with what a user's ``predict`` would give, and return the test accuracy."""
    classifier = Classifier(checkpoint)
    images, labels = split.test.images, split.test.labels
    step = 64
    batches = [
        classifier.logits(images[start : start + step]).softmax(1)
        for start in tqdm(range(0, len(images), step), desc="testing", unit="batch", delay=2)
    ]
    probabilities = np.concatenate([batch.numpy() for batch in batches])
    predicted = probabilities.argmax(1)
    accuracy = float((predicted == np.asarray(labels)).mean())
    summary = f"{int((predicted == np.asarray(labels)).sum())} of {len(labels)} test images right ({accuracy:.1%})"
    plots.learning_curves(folder / "curves.png", rows, f"{MODEL} learns handwritten digits from scratch")
    plots.prediction_grid(
        folder / "predictions.png", images, labels, probabilities, split.class_names, f"Predictions: {summary}"
    )
    plots.confusion_matrix(folder / "confusion.png", labels, predicted.tolist(), split.class_names, summary)
    return accuracy


def _write_samples(folder: Path, split: Split) -> Path:
    """Some test images as files, named by their class, for ``partialnet predict``."""
    folder.mkdir(exist_ok=True)
    for index, (image, label) in enumerate(zip(split.test.images[:SAMPLES], split.test.labels, strict=False)):
        image.save(folder / f"{index:02d}_is_{split.class_names[label]}.png")
    return folder
