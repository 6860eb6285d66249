"""The demo: a PartialNet learns handwritten digits on the CPU in a few minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from . import plots
from .checkpoint import load
from .data.labelled_images import LabelledImages
from .data.sources import open_data
from .images import write_png
from .prediction import Classifier
from .training.config import TrainConfig
from .training.recipes import load_recipe
from .training.run import TrainResult, train

MODEL = "partialnet_t0"
DATA = "digits"
SAMPLES = 20


def demo_config(seed: int = 0) -> TrainConfig:
    """How the demo trains: the recipe ``digits``, on the CPU."""
    return load_recipe(DATA, model=MODEL, device="cpu", seed=seed)


def run_demo(folder: Path, config: TrainConfig | None = None) -> TrainResult:
    """Train ``partialnet_t0`` on handwritten digits from scratch and write a run folder with some images to predict.

    Args:
        folder: Folder to fill; it is made if needed.
        config: How to train; the default takes one to three minutes on one core.

    Returns:
        What the training left; a picture of predictions and a folder of samples are among its files.

    Raises:
        RunInterrupted: A signal asked to stop.
    """
    config = config or demo_config()
    result = train(config, DATA, folder)
    images = open_data(DATA).validation
    picture = _draw_predictions(folder / "predictions.png", images, result.checkpoint)
    samples = _write_samples(folder / "samples", images)
    return replace(result, files=(*result.files, picture, samples))


def _draw_predictions(path: Path, images: LabelledImages, checkpoint: Path) -> Path:
    """A grid of test images with what ``partialnet predict`` says to them."""
    classifier = Classifier(load(checkpoint))
    shown = [images.read(index) for index in range(len(images))]
    step = 64
    batches = (classifier.prepare(shown[start : start + step]) for start in range(0, len(shown), step))
    probabilities = torch.cat([classifier.probabilities(batch) for batch in batches]).numpy()
    right = int((probabilities.argmax(1) == images.labels).sum())
    title = f"Predictions: {right} of {len(shown)} test images right ({right / len(shown):.1%})"
    plots.prediction_grid(path, shown, images.labels.tolist(), probabilities, images.class_names, title)
    return path


def _write_samples(folder: Path, images: LabelledImages) -> Path:
    """Some test images as files, named by their class, for ``partialnet predict``."""
    folder.mkdir(exist_ok=True)
    for index in range(min(SAMPLES, len(images))):
        name = images.class_names[int(images.labels[index])]
        write_png(folder / f"{index:02d}_is_{name}.png", images.read(index))
    return folder
