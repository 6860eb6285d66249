"""Pictures of searches: ratios over training, a plan, and a sweep over θ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from partialnet.plots import BLUE, GREEN, ORANGE, RED, mark_epochs, save

from .plan import Plan

RATIOS_NAME = "ratios.png"
PLAN_PICTURE_NAME = "plan.png"

#: Ratios that the colour bars name.
_TICKS = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def short_layer_name(name: str) -> str:
    """A layer's place as "stage.block", both from 1, where its name has them."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return ".".join(str(int(number) + 1) for number in numbers) if numbers else name


def draw_ratios(path: Path, rows: Sequence[Mapping[str, float]], epoch: int, plan: Plan) -> None:
    """Split ratio of every layer over the epochs, and the complexity and accuracy beside them.

    Args:
        path: File to write.
        rows: The search's metrics.
        epoch: Epoch that the plan is of.
        plan: What was found.
    """
    names = list(plan.split_ratios)
    ratios = np.array([[row[f"split_ratio/{name}"] for row in rows] for name in names])
    figure = Figure(figsize=(14, max(4.2, 0.3 * len(names) + 1.6)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 3, 3))
    epochs = [row["epoch"] for row in rows]
    shown = left.pcolormesh(
        np.arange(len(rows) + 1) + 0.5, np.arange(len(names) + 1), ratios, cmap="viridis", norm=_norm(ratios)
    )
    left.set_yticks(np.arange(len(names)) + 0.5, [short_layer_name(name) for name in names], fontsize=11)
    left.invert_yaxis()
    left.axvline(epoch, color=RED, linewidth=2, linestyle=":")
    left.set(xlabel="epoch", ylabel="stage.block", title="Split ratio of each layer")
    _colour_bar(figure, left, shown)
    zeta = [row["zeta"] / row["kappa"] for row in rows]
    middle.plot(epochs, zeta, color=BLUE, linewidth=2, marker="o", markersize=4)
    middle.axhline(1, color=ORANGE, linewidth=2, linestyle="--", label="allowed: ζ = κ")
    middle.set(xlabel="epoch", ylabel="ζ / κ", title="Complexity", ylim=(0, 1.1 * max(1.0, *zeta)))
    middle.axvline(epoch, color=RED, linewidth=2, linestyle=":", label=f"plan: epoch {epoch}")
    middle.legend(frameon=False, fontsize=11)
    accuracy = [100 * row["val_accuracy"] for row in rows]
    right.plot(epochs, accuracy, color=GREEN, linewidth=2, marker="o", markersize=4)
    right.set(xlabel="epoch", ylabel="held-out images right, %", title="Accuracy while searching")
    for axes in (left, middle, right):
        mark_epochs(axes)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (middle, right):
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{plan.network}, θ = {plan.theta:g}: ζ/κ = {plan.zeta / plan.kappa:.2f}, "
        f"mean split ratio {plan.mean_ratio:.3f}",
        fontsize=14,
        parse_math=False,
    )
    save(figure, path)


def draw_plan(path: Path, plan: Plan) -> None:
    """The split ratio of each layer, on a scale of powers of two."""
    names = list(plan.split_ratios)
    figure = Figure(figsize=(max(7.0, 0.55 * len(names) + 2), 4.4), layout="constrained")
    axes = figure.subplots()
    stages = [short_layer_name(name).split(".")[0] for name in names]
    colours = [(BLUE, GREEN, ORANGE, RED)[(int(stage) - 1) % 4] if stage.isdigit() else BLUE for stage in stages]
    ratios = list(plan.split_ratios.values())
    lowest = min(1 / 32, *ratios) / 2
    axes.bar(range(len(names)), [ratio / lowest - 1 for ratio in ratios], bottom=1, color=colours)
    axes.set_yscale("log", base=2)
    ticks = [tick for tick in _TICKS if tick > lowest]
    axes.set_yticks([tick / lowest for tick in ticks], [as_fraction(tick) for tick in ticks])
    axes.set_xticks(range(len(names)), [short_layer_name(name) for name in names], fontsize=11)
    axes.axhline(1 / 4 / lowest, color="grey", linestyle="--", linewidth=1.5, zorder=0)
    for place, ratio in enumerate(ratios):
        axes.text(place, ratio / lowest, as_fraction(ratio), ha="center", va="bottom", fontsize=11)
    axes.set(xlabel="stage.block", ylabel="share of channels convolved", ylim=(1, 1.5 / lowest))
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{plan.network}, θ = {plan.theta:g} (dashed: the fixed 1/4)\n"
        f"{plan.macs_g:.3g} G multiply–adds at {plan.resolution}, {plan.params_m:.2f} M parameters",
        fontsize=13,
        parse_math=False,
    )
    save(figure, path)


def draw_sweep(path: Path, plans: Mapping[float, Plan]) -> None:
    """Heat map of the ratios over θ and layers, as the paper's Figure 7, with the mean ratio beside it."""
    thetas = sorted(plans)
    names = list(plans[thetas[0]].split_ratios)
    ratios = np.array([[plans[theta].split_ratios[name] for name in names] for theta in thetas])
    size = (max(8.0, 0.62 * len(names) + 4), max(3.6, 0.42 * len(thetas) + 1.9))
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(max(3, len(names)) / 2.6, 2), sharey=True)
    norm = _norm(ratios)
    shown = left.imshow(ratios, cmap="viridis", norm=norm, aspect="auto")
    for (row, column), ratio in np.ndenumerate(ratios):
        dark = norm(ratio) < 0.6  # the colour that the map gives it
        left.text(column, row, as_fraction(ratio), ha="center", va="center", color="white" if dark else "black")
    left.set_yticks(range(len(thetas)), [f"{theta:g}" for theta in thetas])
    left.set_xticks(range(len(names)), [short_layer_name(name) for name in names])
    left.set(xlabel="stage.block", ylabel="θ", title="Split ratio of each layer")
    _colour_bar(figure, left, shown)
    means = [plans[theta].mean_ratio for theta in thetas]
    right.barh(range(len(thetas)), means, color=BLUE)
    for place, theta in enumerate(thetas):
        plan = plans[theta]
        met = "" if plan.satisfied else "  ζ > κ"
        right.text(means[place], place, f" {means[place]:.3f}{met}", va="center", fontsize=11)
    right.set(xlabel="mean split ratio", title="Mean", xlim=(0, 1.5 * max(means)))
    right.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{plans[thetas[0]].network}: learned split ratios for each θ", fontsize=14, parse_math=False)
    save(figure, path)


def _norm(ratios: np.ndarray) -> LogNorm:
    return LogNorm(min(1 / 32, float(ratios.min())), 1)


def _colour_bar(figure: Figure, axes: Axes, shown: ScalarMappable) -> None:
    bar = figure.colorbar(shown, ax=axes)
    ticks = [tick for tick in _TICKS if tick >= min(bar.mappable.get_clim())]
    bar.set_ticks(ticks, labels=[as_fraction(tick) for tick in ticks])
    bar.ax.minorticks_off()


def as_fraction(ratio: float) -> str:
    """A power of two as a fraction, anything else in three digits."""
    inverse = 1 / ratio
    if ratio == 1:
        return "1"
    return f"1/{round(inverse)}" if abs(inverse - round(inverse)) < 1e-6 else f"{ratio:.3g}"
