"""The pictures of a run folder: what was learnt from, how it went, and where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partialnet import plots
from partialnet.data.labelled_images import LabelledImages
from partialnet.errors import UserError
from partialnet.evaluation import Evaluation

from .batches import Batch

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
    plots.image_grid(folder / FIRST_BATCH_NAME, list(pixels), titles, heading, _COLUMNS)


def draw_results(
    folder: Path, rows: Sequence[Mapping[str, float]], images: LabelledImages, evaluation: Evaluation
) -> None:
    """Curves of the run, and the confusion matrix and the worst mistakes of its best checkpoint."""
    summary = f"{evaluation.num_right} of {evaluation.num_images} held-out images right ({evaluation.top1:.1%})"
    plots.learning_curves(folder / CURVES_NAME, rows, summary)
    answered = evaluation.predicted >= 0
    labels, predicted = evaluation.labels[answered].tolist(), evaluation.predicted[answered].tolist()
    plots.confusion_matrix(folder / CONFUSION_NAME, labels, predicted, evaluation.class_names, summary)
    draw_worst_mistakes(folder, images, evaluation)


def draw_worst_mistakes(folder: Path, images: LabelledImages, evaluation: Evaluation) -> None:
    """The images that the network was most certain and wrong about."""
    wrong = np.flatnonzero((evaluation.predicted >= 0) & (evaluation.predicted != evaluation.labels))
    worst = wrong[np.argsort(-evaluation.probability[wrong], kind="stable")]
    shown: list[np.ndarray] = []
    titles: list[str] = []
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
        titles.append(f"{plots.shorten(answer, 13)} {evaluation.probability[index]:.0%}\nis {plots.shorten(truth)}")
    heading = f"The worst of {len(wrong)} mistakes: surest answers first" if len(wrong) else "No mistakes"
    plots.image_grid(folder / MISTAKES_NAME, shown, titles, heading, _COLUMNS)


def _target(target: torch.Tensor, class_names: Sequence[str]) -> str:
    """The class, or with mixup and cutmix the two classes that make up most of the target."""
    if not target.ndim:
        return plots.shorten(class_names[int(target)])
    values, classes = target.topk(min(2, len(class_names)))
    named = [
        f"{plots.shorten(class_names[i], 12)} {value:.0%}"
        for i, value in zip(classes.tolist(), values.tolist(), strict=True)
        if value > 0.05
    ]
    return "\n".join(named)
