"""The pictures of a detector's run folder and of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from partialnet import plots
from partialnet.data.labelled_images import spread
from partialnet.errors import UserError

from .annotations import DetectionImages
from .batches import DetectionBatch
from .drawing import REDUCED_TEXT, DrawnObjects, comparison_grid, draw_objects, precision_recall_plot
from .evaluator import Detection, DetectionEvaluation
from .masks import encode_masks

CURVES_NAME = "curves.png"
FIRST_BATCH_NAME = "first_batch.png"
PRECISION_RECALL_NAME = "precision_recall.png"
COMPARISON_NAME = "truth_and_detections.png"

#: Images in the picture of ground truth beside detections.
NUM_COMPARED = 6
_NUM_FIRST = 8
_LOSS_TITLES = {
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
    "loss_objectness": "proposals: object or not",
    "loss_rpn_box_reg": "proposals: boxes",
}


def draw_first_batch(folder: Path, batch: DetectionBatch, class_names: Sequence[str]) -> None:
    """The first training images as the network sees them, with what it is to find."""
    shown = []
    number = min(len(batch), _NUM_FIRST)
    for image, target in zip(batch.images[:number], (batch.targets or [])[:number], strict=True):
        labels = target["labels"].tolist()
        captions = [class_names[label - 1] for label in labels]
        masks = encode_masks(target["masks"].bool()) if "masks" in target else []
        objects = DrawnObjects(target["boxes"].double().numpy(), labels, captions, masks)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        shown.append(np.asarray(draw_objects(picture, objects, REDUCED_TEXT)))
    captions = ["×".join(map(str, image.shape[1:])) for image in batch.images[:number]]
    heading = f"First training batch: {number} of {len(batch)} images, height×width"
    plots.image_grid(folder / FIRST_BATCH_NAME, shown, captions, heading, columns=4, side=3.6)


def draw_curves(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Losses and average precision over the epochs, and the learning rate."""
    figure = Figure(figsize=(17, 4.6), layout="constrained")
    losses, precision, rate = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    epochs = [row["epoch"] for row in rows]
    marker = {"marker": "o", "markersize": 4 if len(rows) <= 60 else 0, "linewidth": 2}
    losses.plot(epochs, [row["train_loss"] for row in rows], color="black", label="sum", **marker)
    for (name, title), color in zip(_LOSS_TITLES.items(), plots.PALETTE, strict=False):
        if name in rows[0]:
            losses.plot(epochs, [row[name] for row in rows], color=color, label=title, **marker)
    losses.set(xlabel="epoch", ylabel="mean over the images", title="Training losses", ylim=(0, None))
    lines = [("val_box_ap", plots.BLUE, "boxes, AP", "-"), ("val_box_ap50", plots.BLUE, "boxes, AP50", ":")]
    lines += [("val_mask_ap", plots.ORANGE, "masks, AP", "-"), ("val_mask_ap50", plots.ORANGE, "masks, AP50", ":")]
    for name, color, label, style in lines:
        if name in rows[0]:
            values = [row[name] for row in rows]
            precision.plot(epochs, values, color=color, label=label, linestyle=style, **marker)
    highest = max(max(row.get(name, 0) for name, *_ in lines) for row in rows)
    precision.set(
        xlabel="epoch", title="Average precision, held-out images", ylim=(0, min(1.03, 1.15 * highest + 0.01))
    )
    precision.yaxis.set_major_formatter(PercentFormatter(1))
    rate.plot(epochs, [row["lr"] for row in rows], color=plots.GREEN, **marker)
    rate.set(xlabel="epoch", title="Learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for axes in (losses, precision, rate):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        plots.mark_epochs(axes)
    for axes in (losses, precision):
        axes.legend(frameon=False, fontsize=11, loc="upper left", bbox_to_anchor=(1, 1))
    plots.save(figure, path)


def draw_results(
    folder: Path,
    images: DetectionImages,
    evaluation: DetectionEvaluation,
    detections: Sequence[Detection],
    heading: str = "",
) -> None:
    """Precision over recall, and ground truth beside detections for images spread over the data set.

    Args:
        folder: Where the pictures go.
        images: The ground truth.
        evaluation: Of the detections.
        detections: Those on the images of ``compared_images`` are enough.
        heading: What the detector is, for the pictures' headings.
    """
    number = f"{evaluation.num_images:,} images with {evaluation.num_objects:,} objects"
    if heading:
        number += f" ({heading})"
    precision_recall_plot(folder / PRECISION_RECALL_NAME, evaluation, number)
    chosen = [index for index in compared_images(images) if _can_be_read(images, index)]
    title = f"Ground truth and detections: {len(chosen)} of {number}"
    comparison_grid(folder / COMPARISON_NAME, images, chosen, detections, title)


def compared_images(images: DetectionImages) -> list[int]:
    """Places of the images in the picture of ground truth beside detections."""
    places: list[int] = spread(np.flatnonzero(images.num_instances > 0), NUM_COMPARED).tolist()
    return places


def _can_be_read(images: DetectionImages, index: int) -> bool:
    try:
        images.read(index)
    except UserError:
        return False
    return True
