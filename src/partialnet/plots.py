"""Pictures of a training run, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from .bench.report import Row
from .files import write_atomically
from .training.simple import EpochMetrics

# colours that differ for colour-blind readers too (Okabe and Ito)
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def learning_curves(path: Path, rows: Sequence[EpochMetrics], title: str) -> None:
    """Loss and accuracy over the epochs, training and test."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row.epoch for row in rows]
    _curve(loss, epochs, [row.train_loss for row in rows], BLUE, "training, with augmentation")
    _curve(loss, epochs, [row.test_loss for row in rows], ORANGE, "test")
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss", ylim=(0, None))
    _curve(accuracy, epochs, [row.train_accuracy for row in rows], BLUE, "training, with augmentation")
    _curve(accuracy, epochs, [row.test_accuracy for row in rows], ORANGE, "test")
    accuracy.annotate(
        f"{rows[-1].test_accuracy:.1%}",
        (epochs[-1], rows[-1].test_accuracy),
        textcoords="offset points",
        xytext=(0, -18),
        ha="right",
        fontsize=13,
        color="#805800",
        weight="bold",
    )
    accuracy.set(xlabel="epoch", ylabel="accuracy", title="Accuracy", ylim=(0, 1.03))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=11)
    figure.suptitle(title, fontsize=14)
    _save(figure, path)


def _curve(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, label: str) -> None:
    axes.plot(x, y, color=color, label=label, linewidth=2, marker="o", markersize=4)


def prediction_grid(
    path: Path,
    images: Sequence[Image.Image],
    labels: Sequence[int],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    title: str,
    columns: int = 8,
    rows: int = 5,
) -> None:
    """A grid of test images with what was predicted; every mistake comes first, framed and named in red.

    Args:
        path: File to write.
        images: Test images.
        labels: Their true classes.
        probabilities: (number of images, classes).
        class_names: Name of each class.
        title: Heading.
        columns: Images in a row.
        rows: Rows of images.
    """
    predicted = probabilities.argmax(1)
    truth = np.asarray(labels)
    wrong = np.flatnonzero(predicted != truth)
    right = np.flatnonzero(predicted == truth)
    chosen = [*wrong[: columns * rows], *right][: columns * rows]
    figure = Figure(figsize=(1.45 * columns, 1.75 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, chosen, strict=False):
        mistake = predicted[index] != truth[index]
        axes.imshow(np.asarray(images[index]), interpolation="nearest")
        text = f"{class_names[predicted[index]]}  {probabilities[index].max():.0%}"
        if mistake:
            text += f"\nis {class_names[truth[index]]}"
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RED, linewidth=4)
        axes.set_title(text, fontsize=12, color=RED if mistake else "black", weight="bold" if mistake else "normal")
    figure.suptitle(title, fontsize=14)
    _save(figure, path)


def confusion_matrix(
    path: Path, labels: Sequence[int], predicted: Sequence[int], class_names: Sequence[str], title: str
) -> None:
    """Number of test images of each true class (rows) predicted as each class (columns)."""
    size = len(class_names)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(max(5.5, 0.55 * size + 1.6), 24)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # of very many classes only some can be named legibly
    named = range(0, size, 1 + size // 100)
    names = [class_names[index] for index in named]
    axes.set(
        xticks=named,
        yticks=named,
        xticklabels=names,
        yticklabels=names,
        xlabel="predicted class",
        ylabel="true class",
    )
    if max(len(name) for name in names) > 3:
        axes.tick_params(axis="x", rotation=60)
    for (row, column), count in np.ndenumerate(counts):
        if count and size <= 25:
            color = RED if row != column else ("white" if shares[row, column] > 0.5 else "black")
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=12)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(title, fontsize=13)
    _save(figure, path)


def speed_bars(path: Path, rows: Sequence[Row]) -> None:
    """Median time of each network, with quartiles, a panel for each runtime; the reference is grey."""
    runtimes = list(dict.fromkeys(row.setting.runtime for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    height = 1.3 + 0.5 * len(models)
    figure = Figure(figsize=(max(7.0, 4.6 * len(runtimes)), height), layout="constrained")
    panels = figure.subplots(1, len(runtimes), squeeze=False, sharey=True)[0]
    for axes, runtime in zip(panels, runtimes, strict=True):
        shown = [row for row in rows if row.setting.runtime == runtime]
        medians = [row.timing.median_ms for row in shown]
        spread = [
            [row.timing.median_ms - row.timing.q1_ms for row in shown],
            [row.timing.q3_ms - row.timing.median_ms for row in shown],
        ]
        colors = ["#999999" if row.model == row.against else BLUE for row in shown]
        axes.barh([row.model for row in shown], medians, xerr=spread, color=colors, capsize=3)
        for index, row in enumerate(shown):
            text = f" {row.timing.median_ms:.3g} ms" + (
                "" if row.model == row.against else f", {row.timing.ratio:.2f}×"
            )
            axes.text(row.timing.q3_ms, index, text, va="center", fontsize=11)
        axes.set(title=runtime, xlabel="ms for one batch", xlim=(0, 1.45 * max(medians)))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    setting = rows[0].setting
    figure.suptitle(
        f"Inference, batch {setting.batch_size}, {setting.precision}, {setting.threads} CPU thread(s); "
        f"× is the ratio to {rows[0].against}",
        fontsize=12,
    )
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
