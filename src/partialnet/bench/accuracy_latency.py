"""The picture of accuracy against latency, as Figure 2 of the paper: one line for each family of networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullFormatter, NullLocator

from partialnet.plots import save

from .label_placement import Label, place_labels

OURS = "PartialNet"
_OUR_COLOR = "#D7301F"
# dark enough for text on white; neighbours in the list differ in lightness too
_COLORS = (
    "#1F5FA8",
    "#00838F",
    "#8A6D00",
    "#7B4FA3",
    "#2E7D32",
    "#B0367A",
    "#5D6D7E",
    "#8D5524",
    "#3F51B5",
    "#558B2F",
    "#00695C",
    "#37474F",
    "#6A1B9A",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p", "d", "8")


@dataclass(frozen=True)
class Point:
    """One network in the picture.

    Attributes:
        name: Its name.
        family: Networks joined by a line.
        size: What tells it apart within its family.
        latency_ms: Measured, for one image.
        top1: Quoted, in percent.
        distilled: Drawn hollow.
    """

    name: str
    family: str
    size: str
    latency_ms: float
    top1: float
    distilled: bool = False


def accuracy_latency(
    path: Path, points: Sequence[Point], families: Sequence[str], title: str, subtitle: str, note: str
) -> None:
    """Draw quoted accuracy over measured latency as PNG, 2200×1400 pixels, legible at half the size.

    Args:
        path: File to write.
        points: The networks.
        families: All families of the preset: each keeps its colour whichever are drawn.
        title: What is shown.
        subtitle: Under which conditions the latencies were measured.
        note: Where the accuracies were quoted from.
    """
    figure = Figure(figsize=(11, 7), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.15, 0.905, 0.73))
    figure.text(0.022, 0.975, title, fontsize=17, weight="bold", va="top")
    figure.text(0.022, 0.925, subtitle, fontsize=12, color="#444444", va="top")
    figure.text(
        0.98, 0.925, "up and left is better", style="italic", fontsize=12, color="#444444", va="top", ha="right"
    )
    _style(axes, points)
    labels = _draw_families(axes, points, families)
    _place(axes, points, labels)
    figure.text(0.022, 0.018, note, fontsize=10.5, color="#444444", style="italic", va="bottom")
    save(figure, path, figure.dpi)


def _style(axes: Axes, points: Sequence[Point]) -> None:
    latencies = [point.latency_ms for point in points]
    accuracies = [point.top1 for point in points]
    axes.set_xscale("log")
    axes.set_xlim(min(latencies) / 1.22, max(latencies) * 1.6)
    room = 0.08 * max(max(accuracies) - min(accuracies), 2)
    axes.set_ylim(min(accuracies) - room, max(accuracies) + room)
    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [step * 10.0**power for power in range(-3, 6) for step in steps if low <= step * 10.0**power <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MultipleLocator(2 if max(accuracies) - min(accuracies) > 5 else 1))
    axes.set_xlabel("latency of one image, measured here (ms, logarithmic)", fontsize=13)
    axes.set_ylabel("ImageNet-1k top-1 accuracy, quoted (%)", fontsize=13)
    axes.tick_params(labelsize=12, length=0, pad=6)
    axes.grid(color="#E3E6EA", linewidth=0.9)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9AA3AD")


def _draw_families(axes: Axes, points: Sequence[Point], families: Sequence[str]) -> list[tuple[Point, Text]]:
    """Lines and markers; returns the labels still to be placed, those that matter most first."""
    others = [family for family in families if family != OURS]
    styles = dict(zip(others, itertools.cycle(zip(_COLORS, _MARKERS, strict=True)), strict=False))
    ours: list[tuple[Point, Text]] = []
    names: list[tuple[Point, Text]] = []
    sizes: list[tuple[Point, Text]] = []
    for family in [*others, OURS]:
        members = sorted((point for point in points if point.family == family), key=lambda point: point.latency_ms)
        mine = family == OURS
        color, marker = (_OUR_COLOR, "*") if mine else styles[family]
        x, y = [point.latency_ms for point in members], [point.top1 for point in members]
        axes.plot(x, y, color=color, linewidth=3.2 if mine else 1.5, alpha=1 if mine else 0.75, zorder=5 if mine else 3)
        for point in members:
            axes.plot(
                point.latency_ms,
                point.top1,
                marker=marker,
                color=color,
                markersize=19 if mine else 7.5,
                markerfacecolor="white" if point.distilled else color,
                markeredgecolor="white" if mine else color,
                markeredgewidth=1.3,
                zorder=6 if mine else 4,
            )
            # the best of a family carries its name, the others what tells them apart
            full = point is max(members, key=lambda member: member.top1)
            text = axes.text(
                0,
                0,
                point.name if full else point.size or point.name,
                color=color,
                fontsize=(14 if full else 13) if mine else (11.5 if full else 10),
                weight="bold" if full or mine else "normal",
                ha="center",
                va="center_baseline",
                zorder=7,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
            (ours if mine else names if full else sizes).append((point, text))
    return [*ours, *names, *sizes]


def _place(axes: Axes, points: Sequence[Point], labels: list[tuple[Point, Text]]) -> None:
    """Put every label where it covers nothing, with a thin line to its point where that is far."""
    to_pixels, scale = axes.transData, axes.figure.dpi / 72
    anchors = {id(point): to_pixels.transform((point.latency_ms, point.top1)) for point in points}
    boxes = []
    for point, text in labels:
        extent = text.get_window_extent()
        boxes.append(Label(tuple(anchors[id(point)]), (extent.width + 5 * scale, extent.height + 2 * scale)))
    segments = []
    for family in {point.family for point in points}:
        members = sorted((point for point in points if point.family == family), key=lambda point: point.latency_ms)
        lines = [(*anchors[id(a)], *anchors[id(b)]) for a, b in itertools.pairwise(members)]
        segments += lines * (3 if family == OURS else 1)  # ours is thick
    area = axes.get_window_extent()
    bounds = (area.x0 + 2 * scale, area.y0 + 2 * scale, area.x1, area.y1)
    placements = place_labels(boxes, [tuple(anchor) for anchor in anchors.values()], segments, bounds, gap=5.5 * scale)
    for (_, text), box, placement in zip(labels, boxes, placements, strict=True):
        x, y = to_pixels.inverted().transform(placement.center)
        text.set_position((x, y))
        if placement.needs_leader:
            center, half = np.array(placement.center), np.array(box.size) / 2
            anchor = np.array(box.anchor)
            edge = center + np.clip(anchor - center, -half, half)
            start, end = to_pixels.inverted().transform([edge, anchor])
            axes.plot(
                [start[0], end[0]], [start[1], end[1]], color=text.get_color(), linewidth=0.8, alpha=0.6, zorder=2
            )
