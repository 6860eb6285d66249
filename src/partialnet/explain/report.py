"""Findings as pictures, and as a line for each image."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from partialnet.errors import UserError
from partialnet.images import read_image
from partialnet.plots import BLUE, RED, clip, shorten
from partialnet.text_width import in_one_line

from .boxes import BoxSet
from .cam import ClassMap
from .drawing import BANDS, COLUMNS, MapTile, draw_attention, draw_gates, draw_maps, draw_scores
from .findings import ExplainedNetwork, Finding, scores_of

_DRAWN_POINTS = 12

#: A place in an image: x and y, each with whether it is a share of the image.
Position = tuple[tuple[float, bool], tuple[float, bool]]


def line_of(path: Path, networks: Sequence[ExplainedNetwork]) -> str:
    """A line for an image, and one more for each further network."""
    lines = []
    for network in networks:
        found = network.found[-1]
        begin = in_one_line(str(path)) if network is networks[0] else f"  {network.name}"
        predicted = f"{found.predicted[0][0]} {found.predicted[0][1]:.1%}   " if found.predicted else ""
        of = f"map by {found.method}" if found.target is None else f"map of {found.target} ({found.probability:.1%})"
        figures = found.statistics
        peak = f"peak at {figures['peak_x']:.0f},{figures['peak_y']:.0f}, {figures['area_half']:.0%} above half"
        lines.append(f"{begin}   {predicted}{of}, {'nothing speaks for it' if figures['empty'] else peak}")
    return "\n".join(lines)


def draw_map_pages(
    networks: Sequence[ExplainedNetwork], paths: Sequence[Path], images: Sequence[Image.Image], output: Path
) -> list[str]:
    """Draw the maps of all networks side by side, on as many pages as it takes.

    Args:
        networks: The networks, with what was found with them.
        paths: The images' files.
        images: The images themselves, RGB, at the size of pictures.
        output: Folder of the files.

    Returns:
        The files that were written.
    """
    written = []
    page = COLUMNS * BANDS
    for start in range(0, len(images), page):
        indices = range(start, min(start + page, len(images)))
        rows = []
        for network in networks:
            shown = [network.found[index] for index in indices]
            tiles = [MapTile(found.map, _caption(found)) for found in shown if found.map is not None]
            rows.append((_row_name(network), tiles))
        first = networks[0].found[0]
        names = _title(networks[0]) if len(networks) == 1 else "predicted class and probability above each map"
        path = output / ("maps.png" if start == 0 else f"maps-{start // page + 1}.png")
        captions = [clip(paths[index].name) for index in indices]
        draw_maps(path, images[start : start + page], captions, rows, f"{first.method}, stage {first.stage}: {names}")
        written.append(str(path))
    return written


def draw_gate_pages(
    network: ExplainedNetwork,
    finding: Finding,
    image: Image.Image,
    path: Path,
    index: int,
    point: Position | None,
    output: Path,
    say: Callable[[str], None],
) -> list[str]:
    """Gates and attention of one image, where the network has them; the files that were written.

    Args:
        network: Whose.
        finding: What it gives for the image, gates included.
        image: The image.
        path: Where it is from.
        index: Its number, for the files' names.
        point: From where the attention is drawn; None takes the map's peak.
        output: Folder of the files.
        say: Takes a sentence on what cannot be drawn.
    """
    found, gates = finding.map, finding.gates
    if not gates or found is None:
        return []
    written = []
    stem = f"{index + 1:02d}-{_short_stem(path)}"
    if gates.spatial or gates.channel:
        file = output / f"{stem}-gates.png"
        draw_gates(file, image, found, gates, f"{clip(path.name)}: what {_title(network)} weighs")
        written.append(str(file))
    if gates.attention:
        x, y = _place(point, image.size, found)
        file = output / f"{stem}-attention.png"
        which = "" if point is not None else ", the peak of its map"
        title = f"{clip(path.name)}: attention from {x:.0f},{y:.0f}{which}\n{_title(network)}"
        try:
            draw_attention(file, image, gates, (x, y), title)
            written.append(str(file))
        except UserError as error:  # the other images may be larger
            say(f"{path}: {error}")
    return written


def draw_score_page(networks: Sequence[ExplainedNetwork], output: Path) -> list[str]:
    """Deletion and insertion curves of all networks; the file that was written."""
    path = output / "scores.png"
    number = len(networks[0].found)
    draw_scores(
        path,
        [network.name for network in networks],
        [scores_of(network) for network in networks],
        f"Deletion and insertion by {networks[0].found[0].method}, mean of {number} image{'s' * (number > 1)}",
    )
    return [str(path)]


def draw_point_page(network: ExplainedNetwork, boxes: BoxSet, output: Path) -> list[str]:
    """Draw the first rounds of a network's pointing game: boxes, and a cross at the peak.

    Args:
        network: The network.
        boxes: Where the objects are.
        output: Folder of the file.

    Returns:
        The file that was written; none where no round was played.
    """
    points = network.game.points if network.game else ()
    if not points:
        return []
    images, captions, tiles = [], [], []
    for point in points[:_DRAWN_POINTS]:
        image, truth = read_image(point.path), boxes.of(point.path)
        found = network.class_map(image, network.categories[point.category])
        assert truth is not None
        outcome = "hit" if point.hit else "miss"
        color = BLUE if point.hit else RED
        images.append(image)
        captions.append(clip(point.path.name))
        caption = f"{shorten(point.category, 16)}: {outcome}\np = {found.probability:.1%}"
        tiles.append(MapTile(found, caption, truth.boxes[point.category], color if point.peak else None))
    hits = sum(point.hit for point in points)
    path = output / "pointing.png"
    title = f"Pointing game, {_title(network)}: {hits} of {len(points)} peaks in a box; blue hits, red misses"
    draw_maps(path, images, captions, [(network.name, tiles)], title)
    return [str(path)]


def _place(point: Position | None, size: tuple[int, int], found: ClassMap) -> tuple[float, float]:
    """The point in pixels of an image; the peak of its map by default."""
    if point is None:
        return found.peak
    x, y = (value * length if share else value for (value, share), length in zip(point, size, strict=True))
    return x, y


def _caption(found: Finding) -> str:
    """What is predicted and, where it is another class, what the map is of."""
    kind = "empty map" if found.statistics["empty"] else "map"
    if not found.predicted:
        return found.method if kind == "map" else f"{found.method}\n{kind}"
    best, probability = found.predicted[0]
    predicted = f"{shorten(best, 15)} {_percent(probability)}"
    if found.target in (None, best):
        return predicted if kind == "map" else f"{predicted}\n{kind}"
    return f"{predicted}\n{kind}: {shorten(found.target or '', 13)} {_percent(found.probability or 0.0)}"


def _title(network: ExplainedNetwork) -> str:
    return f"{network.name}, untrained: random weights" if network.untrained else network.name


def _short_stem(path: Path) -> str:
    """A file's name without its suffix, short enough to be part of another one; systems take 255 bytes."""
    return os.fsencode(path.stem)[:150].decode("utf-8", "ignore")


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.095 else f"{probability:.1%}"


def _row_name(network: ExplainedNetwork) -> str:
    return clip(network.name, 17) + ("\n(random weights)" if network.untrained else "")
