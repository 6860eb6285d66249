"""Plots that several tasks draw, their colours, and how figures become PNG files."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from .files import write_atomically
from .fonts import fonts_for

# colours that differ for colour-blind readers too (Okabe and Ito)
BLUE, ORANGE, GREEN, RED, PINK, SKY = PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")

#: Classes up to which a confusion matrix holds numbers, and names.
MAX_NUMBERED, MAX_NAMED = 25, 60


def mark_epochs(axes: Axes) -> None:
    """Let the horizontal axis name whole epochs only, also where there is a single one."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def learning_curves(path: Path, rows: Sequence[Mapping[str, float]], title: str) -> None:
    """Draw loss and accuracy over the epochs, training and held out, and the learning rate, as PNG.

    Args:
        path: File to write.
        rows: Metrics of a classifier's epochs, as in its ``metrics.csv``: losses in nats, accuracies in [0, 1].
        title: What is above the picture.
    """
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    epochs = [row["epoch"] for row in rows]
    _curve(loss, epochs, [row["train_loss"] for row in rows], BLUE, "training, with augmentation")
    _curve(loss, epochs, [row["val_loss"] for row in rows], ORANGE, "held out")
    loss.set(xlabel="epoch", ylabel="nats", title="Loss")
    _curve(accuracy, epochs, [row["train_accuracy"] for row in rows], BLUE, "training, with augmentation")
    _curve(accuracy, epochs, [row["val_accuracy"] for row in rows], ORANGE, "held out")
    best = max(rows, key=lambda row: row["val_accuracy"])  # the first of equals, which is the one that is kept
    place = (best["epoch"] - epochs[0]) / max(epochs[-1] - epochs[0], 1)
    accuracy.annotate(
        f"best {best['val_accuracy']:.1%}",
        (best["epoch"], best["val_accuracy"]),
        textcoords="offset points",
        xytext=(0, -24 if best["val_accuracy"] > 0.5 else 10),
        ha="left" if place < 0.25 and len(rows) > 1 else "right" if place > 0.75 else "center",
        fontsize=13,
        color="#805800",
        weight="bold",
        path_effects=[withStroke(linewidth=4, foreground="white")],  # it may lie on a curve
    )
    accuracy.set(xlabel="epoch", ylabel="share right", title="Accuracy", ylim=(0, 1.03))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    _curve(rate, epochs, [row["lr"] for row in rows], GREEN, "")
    rate.set(xlabel="epoch", title="Learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        mark_epochs(axes)
    for axes, names in ((loss, ("train_loss", "val_loss")), (rate, ("lr",))):
        finite = [row[name] for row in rows for name in names if math.isfinite(row[name])]
        axes.set_ylim(0, 1.05 * max(finite, default=0) or 1)  # matplotlib's own margin may cut the highest dot
    for axes in (loss, accuracy):
        axes.legend(frameon=False, fontsize=12)
    figure.suptitle(title, fontsize=15, parse_math=False)
    save(figure, path)


def _curve(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, label: str) -> None:
    # a dot for each epoch, as long as the dots stay apart
    axes.plot(x, y, color=color, label=label, linewidth=2, marker="o", markersize=4 if len(x) <= 60 else 0)


def prediction_grid(
    path: Path,
    images: Sequence[Image.Image],
    labels: Sequence[int],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """A grid of test images with what was predicted; mistakes come first, framed and named in red.

    Args:
        path: File to write.
        images: Test images.
        labels: Their true classes.
        probabilities: (number of images, classes).
        class_names: Name of each class.
        title: Heading.
    """
    columns, rows = 8, 5
    predicted = probabilities.argmax(1)
    truth = np.asarray(labels)
    wrong = np.flatnonzero(predicted != truth)
    right = np.flatnonzero(predicted == truth)
    chosen = [*wrong[: columns * rows], *right][: columns * rows]
    figure = Figure(figsize=(1.45 * columns, 1.75 * rows + 0.7), layout="constrained")
    grid = image_axes(figure, rows, columns)
    for axes, index in zip(grid.flat, chosen, strict=False):
        mistake = predicted[index] != truth[index]
        axes.imshow(np.asarray(images[index]), interpolation="nearest")
        text = f"{class_names[predicted[index]]}  {probabilities[index].max():.0%}"
        if mistake:
            text += f"\nis {class_names[truth[index]]}"
            axes.set_axis_on()
            for spine in axes.spines.values():
                spine.set(color=RED, linewidth=4)
        axes.set_title(text, fontsize=12, color=RED if mistake else "black", weight="bold" if mistake else "normal")
    figure.suptitle(title, fontsize=14)
    save(figure, path)


def confusion_matrix(
    path: Path, labels: Sequence[int], predicted: Sequence[int], class_names: Sequence[str], title: str
) -> None:
    """Draw how many held-out images of each true class (rows) are predicted as each class (columns), as PNG.

    Up to 25 classes the numbers stand in the squares, right answers bold; up to 60 the classes are named beside
    them, and of more classes the most frequent mistakes are listed.

    Args:
        path: File to write.
        labels: True class of each image.
        predicted: Predicted class of each image.
        class_names: Name of each class.
        title: Heading.
    """
    size = len(class_names)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (np.asarray(labels, int), np.asarray(predicted, int)), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    named = size <= MAX_NAMED
    each = 0.55 if size <= MAX_NUMBERED else 0.24
    side = max(5.5, each * size + 1.6) if named else 9.0
    figure = Figure(figsize=(side + (1 if named else 5.5), side), layout="compressed")
    axes, *beside = figure.subplots(1, 1 if named else 2, squeeze=False, width_ratios=None if named else (9, 5))[0]
    # by the square root, so that single images of a class of fifty can be seen
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_xlabel("predicted class", fontsize=13)
    axes.set_ylabel("true class", fontsize=13)
    if named:
        names = [shorten(name, 20) for name in class_names]
        fontsize = 12 if size <= MAX_NUMBERED else 10
        upright = max(map(len, names)) <= 3 and size <= MAX_NUMBERED
        slanted: dict[str, Any] = {} if upright else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(size), names, fontsize=fontsize, parse_math=False, **slanted)
        axes.set_yticks(range(size), names, fontsize=fontsize, parse_math=False)
    else:
        _list_mistakes(beside[0], counts, class_names)
    if size <= MAX_NUMBERED:
        for row, column in np.argwhere(counts):
            count = int(counts[row, column])
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 12 if count < 1000 else 9}
            style["color"] = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), weight="bold" if row == column else "normal", **style)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class", ticks=(0, 0.05, 0.2, 0.5, 1))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(title, fontsize=14, parse_math=False)
    save(figure, path)


def _list_mistakes(axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """The twenty most frequent mistakes as text."""
    axes.set_axis_off()
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    lines = [
        f"{wrong[row, column]:4d}  {shorten(class_names[row], 18)} → {shorten(class_names[column], 18)}"
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[row, column]
    ]
    axes.set_title("most frequent mistakes" if lines else "no mistakes", loc="left", fontsize=13)
    style: dict[str, Any] = {
        "va": "top",
        "fontsize": 11,
        "family": "monospace",
        "linespacing": 1.6,
        "parse_math": False,
        "in_layout": False,  # there is room for it; the layout would cut off what stands around the square beside it
    }
    axes.text(0, 0.98, "\n".join(lines), transform=axes.transAxes, **style)


def image_grid(
    path: Path,
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    title: str,
    columns: int = 8,
    side: float = 1.8,
) -> None:
    """Images with a caption of one or two lines above each.

    Args:
        path: File to write.
        images: (H, W, 3) each, floats in [0, 1] or uint8; their sizes may differ.
        captions: As many.
        title: Heading.
        columns: Images in a row at most.
        side: Room for an image, in inches each way.
    """
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    height = rows * (side - 0.05 + 0.22 * lines) + 0.6 if images else 1.2
    figure = Figure(figsize=(max(6.0, side * columns), height), layout="constrained")
    grid = image_axes(figure, rows, columns)
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        # enlarged pixels stay square, pictures that are reduced are smoothed
        axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) <= 128 else "antialiased")
        axes.set_title(caption, fontsize=12, parse_math=False)
    figure.suptitle(title, fontsize=15, parse_math=False)
    fit_captions(figure, grid)
    save(figure, path)


def image_axes(
    figure: Figure | SubFigure, rows: int, columns: int, height_ratios: Sequence[float] | None = None
) -> np.ndarray:
    """Axes for images, (rows, columns), without frames, and without ticks, whose layout would take most of the time."""
    without_ticks: dict[str, Any] = {"xticks": [], "yticks": []}
    grid: np.ndarray = figure.subplots(
        rows, columns, squeeze=False, height_ratios=height_ratios, subplot_kw=without_ticks
    )
    for axes in grid.flat:
        axes.set_axis_off()
    return grid


def fit_captions(figure: Figure, grid: np.ndarray) -> None:
    """Set captions above images in smaller letters where they would run into their neighbours.

    Args:
        figure: With its images and captions.
        grid: Its axes, (rows, columns).
    """
    _choose_fonts(figure)
    layout = figure.get_layout_engine()
    assert layout is not None
    with _boxes_for_lacking_characters():
        layout.execute(figure)
        middles = [axes.get_position().intervalx.mean() for axes in grid[0]]
        room = 0.97 * figure.bbox.width * min(np.diff(middles), default=1.0)
        for axes in grid.flat:
            width = axes.title.get_window_extent().width
            if width > room:
                axes.title.set_fontsize(axes.title.get_fontsize() * room / width)


def shorten(name: str, limit: int = 16) -> str:
    """A class name that fits above an image; a first of several synonyms, or its beginning."""
    name = printable(name.split(",")[0].strip() or name.strip())
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def clip(name: str, limit: int = 22) -> str:
    """A name of a file or run that fits above or beside a picture; of a long one beginning and end."""
    end = limit // 2
    return name if len(name) <= limit else f"{name[: limit - end - 1]}…{name[-end:]}"


def printable(name: str) -> str:
    """A name of a file as fonts can draw it, also one that is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def _boxes_for_lacking_characters() -> Iterator[None]:
    """Without a warning for each character that no font has: the box in the picture shows it anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def save(figure: Figure, path: Path, dpi: float = 120) -> None:
    """Write a figure as PNG of ``dpi`` pixels an inch, in one step; characters that no font has become boxes."""
    _choose_fonts(figure)
    buffer = io.BytesIO()
    with _boxes_for_lacking_characters():
        figure.savefig(buffer, format="png", dpi=dpi)
    write_atomically(path, buffer.getvalue())


def _choose_fonts(figure: Figure) -> None:
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))
        if fonts := fonts_for(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *(font.name for font in fonts)])
