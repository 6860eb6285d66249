"""Pictures of what a network sees, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from PIL import Image

from partialnet.plots import GREEN, ORANGE, PALETTE, PINK, SKY, fit_captions, image_axes, save, shorten
from partialnet.preprocessing import Region

from .cam import ClassMap, to_image
from .gates import Gate, Gates
from .scores import Scores

#: Images beside each other, and bands of them on a page.
COLUMNS, BANDS = 6, 2
#: Blocks of one stage whose spatial gates are drawn at most.
_MAX_BLOCKS = 6
#: Images up to which each has a row of its own.
_MAX_IN_ROWS = 3
_TILE = 480  # pixels of an image's long side in a picture
_STAGE_COLORS = (SKY, ORANGE, GREEN, PINK)
#: Of maps, gates and attention: brighter is more, also for colour-blind readers and in grey prints.
MAP_COLORS = "viridis"


@dataclass(frozen=True)
class MapTile:
    """One map in a picture.

    Attributes:
        map: The map.
        caption: One or two lines.
        boxes: Rectangles to draw, (number, 4), left, top, right, bottom in pixels of the image.
        marked: Colour of a cross at the map's peak; None without.
    """

    map: ClassMap
    caption: str
    boxes: np.ndarray | None = None
    marked: str | None = None


def draw_maps(
    path: Path,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    rows: Sequence[tuple[str, Sequence[MapTile]]],
    title: str,
) -> None:
    """Images, and below each the maps of every network, as in the paper's Fig. 6.

    Args:
        path: File to write.
        images: At most ``COLUMNS · BANDS``.
        captions: A line for each image.
        rows: Name of each network, of two lines at most, with a map for each image.
        title: Heading.
    """
    # few images stand in rows, with their maps beside them; many in columns, in bands
    upright = len(images) <= _MAX_IN_ROWS
    columns = 1 + len(rows) if upright else min(COLUMNS, len(images))
    bands = len(images) if upright else -(-len(images) // columns)
    lines = bands if upright else bands * (1 + len(rows))
    side = 3.4 if upright else 2.1
    tall = [float(np.clip(image.height / image.width, 0.3, 1.6)) for image in images]
    # a row is as high as its image; a band as most of its images are, or a single upright one would spread out all
    if upright:
        heights = [side * high + 0.5 for high in tall]
    else:
        typical = [float(np.median(tall[band * columns : (band + 1) * columns])) for band in range(bands)]
        heights = [side * high + 0.42 for high in typical for _ in range(1 + len(rows))]
    figure = Figure(
        figsize=(max(7.0, side * columns + 0.5), sum(heights) + (1.5 if upright else 0.9)), layout="compressed"
    )
    grid = image_axes(figure, lines, columns, heights)
    for index, image in enumerate(images):
        band, column = divmod(index, columns)
        cells = grid[index] if upright else grid[band * (1 + len(rows)) : (band + 1) * (1 + len(rows)), column]
        _show(cells[0], np.asarray(small_image(image)))
        cells[0].set_title(captions[index], fontsize=11, parse_math=False)
        for axes, (name, tiles) in zip(cells[1:], rows, strict=True):
            tile = tiles[index]
            _show(axes, overlay(image, tile.map.values, tile.map.region))
            named = upright and len(rows) > 1 and index == 0
            axes.set_title(f"{name}\n{tile.caption}" if named else tile.caption, fontsize=12, parse_math=False)
            _mark(axes, image, tile)
    if len(rows) > 1 and not upright:
        for line, axes in enumerate(grid[:, 0]):
            number = line % (1 + len(rows))
            if number:
                style: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "parse_math": False}
                axes.text(
                    -0.05, 0.5, rows[number - 1][0], transform=axes.transAxes, fontsize=12, weight="bold", **style
                )
    _heat_bar(figure, grid, "importance for the class, 1 at the peak", lines)
    figure.suptitle(title, fontsize=14, parse_math=False)
    fit_captions(figure, grid)
    save(figure, path)


def overlay(image: Image.Image, values: np.ndarray, region: Region | None = None) -> np.ndarray:
    """A map in colour over the image in grey, dark where the network does not look; (h, w, 3), floats in [0, 1].

    Args:
        image: RGB.
        values: (H, W) of the image, in [0, 1].
        region: What the network sees of it, in pixels; all if None.
    """
    small = small_image(image)
    heat = np.asarray(Image.fromarray(values.astype(np.float32)).resize(small.size, Image.Resampling.BILINEAR))
    grey = np.asarray(small.convert("L"), dtype=np.float32)[:, :, None] / 255
    color = np.asarray(small, dtype=np.float32) / 255
    base = 0.65 * grey + 0.35 * color
    strength = (0.15 + 0.5 * heat.clip(0, 1))[:, :, None]
    mixed = (1 - strength) * base + strength * matplotlib.colormaps[MAP_COLORS](heat.clip(0, 1))[:, :, :3]
    if region is not None:
        scale_x, scale_y = small.width / image.width, small.height / image.height
        x, y = np.arange(small.width) + 0.5, np.arange(small.height) + 0.5
        seen = (region[0] * scale_x <= x) & (x <= region[2] * scale_x)
        seen = seen[None] & ((region[1] * scale_y <= y) & (y <= region[3] * scale_y))[:, None]
        mixed = np.where(seen[:, :, None], mixed, 0.35 * base)
    return mixed


def draw_gates(path: Path, image: Image.Image, class_map: ClassMap | None, gates: Gates, title: str) -> None:
    """The spatial gates of every stage as maps, and the distribution of every block's channel gates.

    Args:
        path: File to write.
        image: RGB.
        class_map: Shown beside the image.
        gates: With spatial or channel gates.
        title: Heading.
    """
    in_order = sorted(gates.spatial, key=attrgetter("stage"))
    stages = [list(of_stage) for _, of_stage in groupby(in_order, attrgetter("stage"))]
    columns = min(_MAX_BLOCKS, max(map(len, stages), default=0))
    widths = [2.4, 1.55 * columns + 0.9 if columns else 0, 5.2 if gates.channel else 0]
    used = [width for width in widths if width]
    height = max(5.4, 1.75 * len(stages) + 0.8, 0.33 * len(gates.channel) + 1.6)
    figure = Figure(figsize=(sum(used), height), layout="constrained")
    parts = list(figure.subfigures(1, len(used), squeeze=False, width_ratios=used)[0])
    _draw_input(parts.pop(0), image, class_map)
    if columns:
        _draw_spatial(parts.pop(0), stages, columns)
    if gates.channel:
        _draw_channel(parts.pop(0), gates.channel)
    figure.suptitle(title, fontsize=14, parse_math=False)
    save(figure, path)


def _draw_input(part: SubFigure, image: Image.Image, class_map: ClassMap | None) -> None:
    first, second = image_axes(part, 2, 1)[:, 0]
    _show(first, np.asarray(small_image(image)))
    first.set_title("image", fontsize=12)
    if class_map is not None:
        _show(second, overlay(image, class_map.values, class_map.region))
        second.set_title(f"{class_map.method}, stage {class_map.stage}", fontsize=12)


def _draw_spatial(part: SubFigure, stages: Sequence[Sequence[Gate]], columns: int) -> None:
    """A row of maps for each stage, all in one scale; of more blocks than columns some, spread from first to last."""
    low = min(float(gate.values.min()) for gates in stages for gate in gates)
    high = max(float(gate.values.max()) for gates in stages for gate in gates)
    scale = Normalize(low, max(high, low + 1e-3))
    grid = image_axes(part, len(stages), columns)
    for row, gates in zip(grid, stages, strict=True):
        shown = np.linspace(0, len(gates) - 1, min(columns, len(gates))).round().astype(int)
        for axes, gate in zip(row, (gates[index] for index in shown), strict=False):
            axes.imshow(gate.values, cmap=MAP_COLORS, norm=scale, interpolation="nearest")
            height, width = gate.values.shape
            label = f"stage {gate.stage}, {height}×{width}\n" if gate is gates[0] else ""
            axes.set_title(f"{label}block {gate.index}", fontsize=11)
    bar = part.colorbar(ScalarMappable(scale, MAP_COLORS), ax=list(grid.flat), shrink=0.6, aspect=30, location="bottom")
    bar.set_label("PAT_sp: weight of the position", fontsize=12)


def _draw_channel(part: SubFigure, gates: Sequence[Gate]) -> None:
    """A histogram of each block's channel weights, the first block at the top."""
    axes = part.subplots()
    edges = np.linspace(0, 1, 41)
    for row, gate in enumerate(gates):
        counts, _ = np.histogram(gate.values, edges)
        color = _STAGE_COLORS[(gate.stage - 1) % len(_STAGE_COLORS)]
        base = len(gates) - 1 - row
        axes.stairs(base + 0.85 * counts / max(counts.max(), 1), edges, baseline=base, fill=True, color=color)
        mean = float(gate.values.mean())
        axes.plot([mean, mean], [base, base + 0.85], color="black", linewidth=2)
    labels = [f"{gate.stage}.{gate.index}  ({len(gate.values)})" for gate in gates]
    axes.set_yticks([len(gates) - 1 - row for row in range(len(gates))], labels, fontsize=11)
    axes.set(xlim=(0, 1), ylim=(-0.1, len(gates)))
    axes.set_xlabel("PAT_ch: weight of the channel; black: the mean", fontsize=12)
    axes.set_ylabel("stage.block (channels)", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)


def draw_attention(path: Path, image: Image.Image, gates: Gates, point: tuple[float, float], title: str) -> None:
    """The attention of every PAT_sf from one point of the image: the mean of the heads, and each head.

    Args:
        path: File to write.
        image: RGB.
        gates: With attention.
        point: x and y in pixels of the image.
        title: Heading.
    """
    found = gates.attention_from(point)
    heads = max(weights.shape[0] for _, weights in found)
    tall = min(max(image.height / image.width, 0.5), 1.6)
    figure = Figure(figsize=(2.05 * (heads + 1) + 0.5, len(found) * (2.0 * tall + 0.45) + 1.6), layout="compressed")
    grid = image_axes(figure, len(found), heads + 1)
    for row, (gate, weights) in zip(grid, found, strict=True):
        panels = [("mean of heads", weights.mean(0)), *((f"head {n}", head) for n, head in enumerate(weights, 1))]
        for axes, (name, values) in zip(row, panels, strict=False):
            most = float(values.max())
            placed = to_image(values / max(most, 1e-12), gates.region, image.size, smooth=False)
            shown = overlay(image, placed, gates.region)
            _show(axes, shown)
            x, y = (point[0] * shown.shape[1] / image.width, point[1] * shown.shape[0] / image.height)
            for color, size in (("black", 15), ("white", 11)):
                axes.plot([x], [y], marker="o", markersize=size, markerfacecolor="none", color=color, markeredgewidth=2)
            label = f"{gate.label}\n" if name == "mean of heads" else "\n"
            axes.set_title(f"{label}{name}, max {most:.0%}", fontsize=11)
    positions = found[0][1].shape[1] * found[0][1].shape[2]
    _heat_bar(
        figure,
        grid,
        f"PAT_sf: what the circled place takes from each, 1 at the panel's maximum; even would be {1 / positions:.1%}",
        len(found),
    )
    figure.suptitle(title, fontsize=14, parse_math=False)
    save(figure, path)


def draw_scores(path: Path, names: Sequence[str], scores: Sequence[Sequence[Scores]], title: str) -> None:
    """Deletion and insertion of every network, mean over the images, with the area under each curve.

    Args:
        path: File to write.
        names: Of the networks.
        scores: Of each network, for each image.
        title: Heading.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, better in zip(panels, ("deletion", "insertion"), ("smaller", "larger"), strict=True):
        for number, (name, own) in enumerate(zip(names, scores, strict=True)):
            color = PALETTE[number % len(PALETTE)]
            for suffix, style in (("", "-"), ("_center", ":")):
                curve = np.mean([getattr(score, kind + suffix) for score in own], 0)
                area = np.mean([score.areas()[kind + suffix] for score in own])
                label = f"{shorten(name, 24)}: {area:.3f}" if not suffix else f"   middle first: {area:.3f}"
                axes.plot(own[0].shares, curve, style, color=color, linewidth=2, label=label)
        axes.set_title(f"{kind.capitalize()}: {better} area is better", fontsize=13)
        axes.set_xlabel(f"share of pixels {'deleted' if kind == 'deletion' else 'inserted'}", fontsize=12)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=12, title="area under the curve", title_fontsize=11)
    panels[0].set_ylabel("probability of the class", fontsize=12)
    panels[0].set_ylim(bottom=0)
    figure.suptitle(title, fontsize=14, parse_math=False)
    save(figure, path)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) <= 128 else "antialiased")


def _mark(axes: Axes, image: Image.Image, tile: MapTile) -> None:
    """Boxes and a cross at the peak, in pixels of the small image that is shown."""
    small = _small_size(image.size)
    scale_x, scale_y = small[0] / image.width, small[1] / image.height
    for left, top, right, bottom in () if tile.boxes is None else tile.boxes:
        corner, width, height = (left * scale_x, top * scale_y), (right - left) * scale_x, (bottom - top) * scale_y
        for color, line in (("black", 4), ("white", 2)):
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=line))
    if tile.marked is not None:
        x, y = tile.map.peak
        for color, line in (("white", 6), (tile.marked, 3)):
            style: dict[str, Any] = {"marker": "x", "markersize": 13, "color": color, "markeredgewidth": line}
            axes.plot([x * scale_x], [y * scale_y], **style)


def _heat_bar(figure: Figure, grid: np.ndarray, label: str, rows: int) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), MAP_COLORS),
        ax=list(grid.flat),
        location="bottom",
        shrink=0.5,
        aspect=40,
        pad=0.06 / max(rows, 1),
    )
    bar.set_label(label, fontsize=12)


def _small_size(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1.0, _TILE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def small_image(image: Image.Image) -> Image.Image:
    """An image as large as pictures show it."""
    size = _small_size(image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
