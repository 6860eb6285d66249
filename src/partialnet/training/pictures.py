"""The pictures of a run folder: what was learnt from, how it went, and where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from .. import plots
from ..data.labelled_images import LabelledImages
from ..errors import UserError
from ..evaluation import Evaluation
from .batches import Batch
from .progress import EpochMetrics

CURVES_NAME = "curves.png"
CONFUSION_NAME = "confusion.png"
FIRST_BATCH_NAME = "first_batch.png"
MISTAKES_NAME = "worst_mistakes.png"

_COLUMNS = 8
_ROWS = 4


def draw_first_batch(folder: Path, batch: Batch, input_config: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """The first training images as the network sees them, with what it is to answer."""
    mean, std = (torch.tensor(input_config[name]).view(3, 1, 1) for name in ("mean", "std"))
    number = min(len(batch), _COLUMNS * _ROWS)
    pixels = (batch.images[:number].float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    titles = [_target(target, class_names) for target in batch.targets[:number]]
    height, width = batch.images.shape[-2:]
    heading = f"First training batch: {number} of {len(batch)} images, {height}×{width}"
    plots.save(_grid(list(pixels), titles, heading), folder / FIRST_BATCH_NAME)


def draw_results(folder: Path, rows: Sequence[EpochMetrics], images: LabelledImages, evaluation: Evaluation) -> None:
    """Curves of the run, and the confusion matrix and the worst mistakes of its best checkpoint."""
    summary = f"{evaluation.num_right} of {evaluation.num_images} held-out images right ({evaluation.top1:.1%})"
    if rows:
        plots.learning_curves(folder / CURVES_NAME, rows, summary)
    answered = evaluation.predicted >= 0
    labels, predicted = evaluation.labels[answered].tolist(), evaluation.predicted[answered].tolist()
    plots.confusion_matrix(folder / CONFUSION_NAME, labels, predicted, evaluation.class_names, summary)
    draw_worst_mistakes(folder, images, evaluation)


def draw_worst_mistakes(folder: Path, images: LabelledImages, evaluation: Evaluation) -> None:
    """The images that the network was most sure of and wrong about."""
    wrong = np.flatnonzero((evaluation.predicted >= 0) & (evaluation.predicted != evaluation.labels))
    worst = wrong[np.argsort(-evaluation.probability[wrong], kind="stable")]
    shown, titles = [], []
    for index in worst.tolist():
        if len(shown) == _COLUMNS * _ROWS:
            break
        try:
            image = images.read(index)
        except UserError:
            continue
        image.thumbnail((256, 256))
        answer, truth = (evaluation.class_names[int(i[index])] for i in (evaluation.predicted, evaluation.labels))
        shown.append(np.asarray(image))
        titles.append(f"{_short(answer)} {evaluation.probability[index]:.0%}\nis {_short(truth)}")
    heading = f"The worst of {len(wrong)} mistakes" if len(wrong) else "No mistakes"
    plots.save(_grid(shown, titles, heading), folder / MISTAKES_NAME)


def _grid(images: Sequence[np.ndarray], titles: Sequence[str], heading: str) -> Figure:
    rows = max(1, -(-len(images) // _COLUMNS))
    figure = Figure(figsize=(1.5 * _COLUMNS, 1.85 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(title, fontsize=9)
    figure.suptitle(heading, fontsize=13)
    return figure


def _target(target: torch.Tensor, class_names: Sequence[str]) -> str:
    """The class, or with mixup and cutmix the two classes that make up most of the target."""
    if not target.ndim:
        return _short(class_names[int(target)])
    values, classes = target.topk(min(2, len(class_names)))
    named = [
        f"{_short(class_names[i])} {value:.0%}"
        for i, value in zip(classes.tolist(), values.tolist(), strict=True)
        if value > 0.05
    ]
    return "\n".join(named)


def _short(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
