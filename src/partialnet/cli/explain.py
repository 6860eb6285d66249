"""``partialnet explain``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from partialnet.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from partialnet.explain import ClassMap, Explainer, Gates, PointingGame, Scores
    from partialnet.explain.boxes import BoxSet
    from partialnet.preprocessing import Region

_PREDICTED = 3  # classes named in the JSON
_DRAWN_POINTS = 12


@dataclass
class _Found:
    """What one network gives for one image: figures, and a small map where it is drawn."""

    map: ClassMap | None
    statistics: dict[str, Any]
    predicted: list[tuple[str, float]]
    target: str | None
    gates: Gates | None
    gate_figures: dict[str, Any] | None
    scores: Scores | None
    region: Region
    method: str
    stage: int
    layer: str
    probability: float | None


@dataclass
class _Network:
    """A network and what was found with it."""

    name: str
    source: str
    explainer: Explainer
    untrained: bool
    found: list[_Found] = field(default_factory=list)
    game: PointingGame | None = None


@click.command()
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True)
@click.option("--target", metavar="CLASS", help="Class by name or number.  [default: what CHECKPOINT predicts]")
@click.option(
    "--method", metavar="NAME", help="gradcam, layercam, eigencam, …; see docs/explain.md.  [default: gradcam]"
)
@click.option("--stage", type=click.IntRange(min=1), help="Stage whose output is looked at.  [default: the last]")
@click.option("--against", multiple=True, metavar="MODEL", help="A further network beside it; may be repeated.")
@click.option(
    "--position", metavar="X,Y", help="Point for PAT_sf's attention, pixels or percents of the image.  [default: peak]"
)
@click.option(
    "--img-size",
    type=click.IntRange(min=32),
    help="Height and width of the networks' input; a larger one gives finer maps.  [default: each one's own]",
)
@click.option("--scores", is_flag=True, help="Delete and insert pixels in the map's order; takes about 60 more runs.")
@click.option("--boxes", metavar="JSON", help="COCO file of instances: play the pointing game on all IMAGES in it.")
@click.option(
    "--category", multiple=True, metavar="CLASS=CATEGORY", help="Category of the boxes that a class stands for."
)
@click.option("--draw", type=click.IntRange(min=0), default=12, show_default=True, help="Images whose maps are drawn.")
@click.option(
    "--gates",
    "num_gates",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Images whose gates and attention are drawn.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write all figures as JSON; - prints them instead.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("explained"),
    show_default=True,
    help="Folder for the pictures.",
)
@click.option("--device", help="cpu, cuda, cuda:1, …  [default: the GPU where there is one]")
def explain(
    checkpoint: str,
    images: tuple[str, ...],
    target: str | None,
    method: str | None,
    stage: int | None,
    against: tuple[str, ...],
    position: str | None,
    img_size: int | None,
    scores: bool,
    boxes: str | None,
    category: tuple[str, ...],
    draw: int,
    num_gates: int,
    json_path: str | None,
    output: Path,
    device: str | None,
) -> None:
    """Show where in IMAGES the network of CHECKPOINT finds a class, and what it weighs.

    CHECKPOINT is a run folder, its model.safetensors, a released checkpoint of the authors, or a model name, whose
    weights are random. IMAGES are files, folders (searched recursively) and quoted glob patterns.

    The output folder gets the class maps of all networks side by side (maps.png), and of CHECKPOINT the spatial and
    channel gates (…-gates.png) and the attention from one place (…-attention.png), where it has them.

    \b
    Examples: partialnet explain runs/flowers rose.jpg
              partialnet explain runs/flowers photos/ --against runs/resnet --scores --json f.json
              partialnet explain runs/flowers rose.jpg --target tulip --stage 3 --position 120,80
    """
    from tqdm import tqdm

    from partialnet.devices import find_device
    from partialnet.explain import read_boxes
    from partialnet.explain.cam import CLASSLESS_METHODS, METHODS, library_class
    from partialnet.explain.drawing import small_image
    from partialnet.files import check_destinations
    from partialnet.images import find_images, read_image

    check_destinations(None if json_path in (None, "-") else Path(json_path))
    library_class(method or next(iter(METHODS)))  # a mistyped name or a missing library is told before anything is read
    point = _parse_position(position)
    box_set = read_boxes(boxes) if boxes else None
    if target is not None and method in CLASSLESS_METHODS:
        raise UserError(f"{method} looks at no class, so that --target means nothing to it; leave one of them out.")
    if category and box_set is None:
        raise UserError("--category says what the boxes' categories are called; give the boxes with --boxes.")
    paths = find_images(images)
    place = find_device(device)
    networks = [_open(source, place, img_size) for source in dict.fromkeys((checkpoint, *against))]
    for network in networks:
        network.explainer.target_layer(stage)
    first = networks[0]
    classes = [None if target is None else network.explainer.find_class(target) for network in networks]
    matched = [_match(network.explainer, box_set, category) for network in networks] if box_set else []

    for note in _notes(networks, method, position):
        click.echo(note, err=True)
    output.mkdir(parents=True, exist_ok=True)
    read: list[tuple[Path, tuple[int, int]]] = []
    drawn: list[Image.Image] = []
    unreadable: list[UserError] = []
    written: list[str] = []
    # with boxes the game goes over all images, and the maps of what is predicted over those that are drawn
    chosen = paths[:draw] if box_set else paths
    # lines that scroll by on a terminal are progress enough; None shows a bar on a terminal, but not in a file
    hide_bar = True if sys.stdout.isatty() and json_path != "-" else None
    for path in tqdm(chosen, desc="explaining", unit="image", delay=2, disable=hide_bar):
        try:
            image = read_image(path)
        except UserError as error:
            unreadable.append(error)
            continue
        _explain(image, networks, classes, method, stage, scores)
        if len(read) < num_gates:
            written += _draw_gates(first, image, path, len(read), point, output)
        small = small_image(image)
        for network in networks:
            last = network.found[-1]
            assert last.map is not None
            # what is drawn is small, what is not drawn is not kept
            last.map = last.map.resized(small.size) if len(drawn) < draw else None
            last.gates = None
        if len(drawn) < draw:
            drawn.append(small)
        read.append((path, image.size))
        if json_path != "-":
            click.echo(_as_text(path, networks))
    names = [path for path, _ in read]
    written = _draw_maps(networks, names, drawn, output) + written
    if scores and read:
        written += _draw_scores(networks, output)
        _print_scores(networks, err=json_path == "-")
    if box_set is not None:
        _play(networks, paths, box_set, matched, method, stage)
        written += _draw_points(first, box_set, matched[0], method, stage, output)
        _print_game(networks, err=json_path == "-")
    if json_path is not None:
        _write_json(json_path, networks, read, unreadable)
        written += [json_path] if json_path != "-" else []
    for failure in unreadable:
        click.echo(f"partialnet: {failure}", err=True)
    if written:
        shown = written if len(written) <= 6 else [*written[:5], f"and {len(written) - 5} more in {output}"]
        click.echo(f"Written: {', '.join(shown)}", err=json_path == "-")
    if json_path != "-" and read and not scores:
        command = ["partialnet", "explain", checkpoint, *images, "--scores", "-o", str(output)]
        click.echo(f"\nNext, to measure how faithful the maps are: {shlex.join(command)}")
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(chosen)} images could not be read.")


def _open(source: str, device: Any, img_size: int | None) -> _Network:
    from partialnet.checkpoint import load
    from partialnet.explain import Explainer

    checkpoint = load(source)
    if img_size is not None:
        checkpoint.input_config |= {"input_size": (checkpoint.input_config["input_size"][0], img_size, img_size)}

    path = Path(source)
    name = path.resolve().name if path.exists() else source
    if name == "model.safetensors":
        name = path.resolve().parent.name
    return _Network(name, source, Explainer(checkpoint, device), untrained=not path.exists())


def _notes(networks: Sequence[_Network], method: str | None, position: str | None) -> list[str]:
    """What one should know before reading the figures."""
    from partialnet.layers import SelfAttention2d

    notes = [
        f"{network.name} is a model name: its weights are random, and so is what it looks at."
        for network in networks
        if network.untrained
    ]
    notes += [
        f"{network.name} has no classes; its map is of features alone, by {network.explainer.default_method}."
        for network in networks
        if not network.explainer.num_classes and method is None
    ]
    first = networks[0]
    if first.explainer.checkpoint.folded:
        notes.append(f"{first.name} is folded, its gates are merged: the run it came from shows them.")
    elif position is not None and not any(
        isinstance(part, SelfAttention2d) for part in first.explainer.model.modules()
    ):
        notes.append(f"{first.name} has no self-attention of ours; --position shows nothing of it.")
    return notes


def _parse_position(text: str | None) -> tuple[tuple[float, bool], tuple[float, bool]] | None:
    """x and y, each with whether it is a share of the image."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        x, y = ((float(part[:-1]) / 100, True) if part.endswith("%") else (float(part), False) for part in parts)
    except ValueError:
        raise UserError(
            f"--position {text!r} must be X,Y in pixels, such as 120,80, or in percents: 50%,30%."
        ) from None
    return x, y


def _place(
    point: tuple[tuple[float, bool], tuple[float, bool]] | None, size: tuple[int, int], found: ClassMap
) -> tuple[float, float]:
    """The point in pixels of an image; the peak of its map by default."""
    if point is None:
        return found.peak
    x, y = (value * length if share else value for (value, share), length in zip(point, size, strict=True))
    return x, y


def _match(explainer: Explainer, boxes: BoxSet, given: Sequence[str]) -> dict[str, int]:
    from partialnet.explain.boxes import match_categories

    pairs = dict(entry.partition("=")[::2] for entry in given)
    if not all(name and category for name, category in pairs.items()):
        raise UserError("--category must be CLASS=CATEGORY, such as 'Labrador retriever=dog'.")
    return match_categories(explainer, boxes, pairs)


def _explain(
    image: Image.Image,
    networks: Sequence[_Network],
    classes: Sequence[int | None],
    method: str | None,
    stage: int | None,
    scores: bool,
) -> None:
    """Maps, predictions, figures of the gates and scores of one image for every network."""
    from partialnet.explain import deletion_and_insertion, read_gates

    shared: str | None = None
    for network, target in zip(networks, classes, strict=True):
        explainer = network.explainer
        predicted = _predict(explainer, image)
        if target is None and explainer.names_known and predicted:
            # all networks show the class that the first predicts, where they have it
            shared = shared or predicted[0][0]
            target = explainer.class_names.index(shared) if shared in explainer.class_names else None
        found = explainer.class_map(image, target, method, stage)
        if scores and found.target is None:
            raise UserError(f"--scores need a class, which {found.method} does not look at.")
        gates = None if explainer.checkpoint.folded else read_gates(explainer, image)
        network.found.append(
            _Found(
                map=found,
                statistics=found.statistics(),
                predicted=predicted,
                target=None if found.target is None else explainer.class_names[found.target],
                gates=gates,
                gate_figures=gates.statistics() if gates else None,
                scores=deletion_and_insertion(explainer, image, found) if scores else None,
                region=found.region,
                method=found.method,
                stage=found.stage,
                layer=found.layer,
                probability=found.probability,
            )
        )


def _predict(explainer: Explainer, image: Image.Image) -> list[tuple[str, float]]:
    """The most probable classes with their probability, best first."""
    if not explainer.num_classes:
        return []
    probabilities = explainer.probabilities(image)
    best = (-probabilities).argsort(kind="stable")[:_PREDICTED]
    return [(explainer.class_names[index], float(probabilities[index])) for index in best]


def _as_text(path: Path, networks: Sequence[_Network]) -> str:
    """A line for an image, and one more for each further network."""
    lines = []
    for network in networks:
        found = network.found[-1]
        begin = str(path) if network is networks[0] else f"  {network.name}"
        predicted = f"{found.predicted[0][0]} {found.predicted[0][1]:.1%}   " if found.predicted else ""
        of = f"map by {found.method}" if found.target is None else f"map of {found.target} ({found.probability:.1%})"
        figures = found.statistics
        peak = f"peak at {figures['peak_x']:.0f},{figures['peak_y']:.0f}, {figures['area_half']:.0%} above half"
        lines.append(f"{begin}   {predicted}{of}, {'nothing speaks for it' if figures['empty'] else peak}")
    return "\n".join(lines)


def _caption(found: _Found) -> str:
    """What is predicted and, where it is another class, what the map is of."""
    from partialnet.plots import shorten

    empty = " (empty map)" if found.statistics["empty"] else ""
    if not found.predicted:
        return f"{found.method}{empty}"
    best, probability = found.predicted[0]
    predicted = f"{shorten(best, 15)} {_percent(probability)}"
    if found.target in (None, best):
        return f"{predicted}{empty}"
    return f"{predicted}\nmap: {shorten(found.target or '', 13)} {_percent(found.probability or 0.0)}{empty}"


def _title(network: _Network) -> str:
    return f"{network.name}, untrained: random weights" if network.untrained else network.name


def _draw_maps(
    networks: Sequence[_Network], paths: Sequence[Path], images: Sequence[Image.Image], output: Path
) -> list[str]:
    from partialnet.explain.drawing import BANDS, COLUMNS, MapTile, draw_maps

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
        captions = [_clip(paths[index].name) for index in indices]
        draw_maps(path, images[start : start + page], captions, rows, f"{first.method}, stage {first.stage}: {names}")
        written.append(str(path))
    return written


def _clip(name: str, limit: int = 22) -> str:
    """A name of a file or run that fits above or beside an image; of a long one beginning and end."""
    end = limit // 2
    return name if len(name) <= limit else f"{name[: limit - end - 1]}…{name[-end:]}"


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.095 else f"{probability:.1%}"


def _row_name(network: _Network) -> str:
    return _clip(network.name, 17) + ("\n(random weights)" if network.untrained else "")


def _draw_gates(network: _Network, image: Image.Image, path: Path, index: int, point: Any, output: Path) -> list[str]:
    """Gates and attention of one image, where the network has them."""
    from partialnet.explain.drawing import draw_attention, draw_gates

    found, gates = network.found[-1].map, network.found[-1].gates
    if not gates or found is None:
        return []
    written = []
    stem = f"{index + 1:02d}-{path.stem}"
    if gates.spatial or gates.channel:
        file = output / f"{stem}-gates.png"
        draw_gates(file, image, found, gates, f"{_clip(path.name)}: what {_title(network)} weighs")
        written.append(str(file))
    if gates.attention:
        x, y = _place(point, image.size, found)
        file = output / f"{stem}-attention.png"
        which = "" if point is not None else ", the peak of its map"
        title = f"{_clip(path.name)}: attention from {x:.0f},{y:.0f}{which}\n{_title(network)}"
        try:
            draw_attention(file, image, gates, (x, y), title)
            written.append(str(file))
        except UserError as error:  # the other images may be larger
            click.echo(f"{path}: {error}", err=True)
    return written


def _scores(network: _Network) -> list[Scores]:
    return [found.scores for found in network.found if found.scores is not None]


def _draw_scores(networks: Sequence[_Network], output: Path) -> list[str]:
    from partialnet.explain.drawing import draw_scores

    path = output / "scores.png"
    number = len(networks[0].found)
    draw_scores(
        path,
        [network.name for network in networks],
        [_scores(network) for network in networks],
        f"Deletion and insertion by {networks[0].found[0].method}, mean of {number} image{'s' * (number > 1)}",
    )
    return [str(path)]


def _mean_areas(network: _Network) -> dict[str, float]:
    areas = [score.areas() for score in _scores(network)]
    return {name: sum(area[name] for area in areas) / len(areas) for name in areas[0]} if areas else {}


def _print_scores(networks: Sequence[_Network], err: bool) -> None:
    width = max(7, *(len(network.name) for network in networks))
    click.echo(f"\n{'area under the curve':{width}}  deletion (middle first)  insertion (middle first)", err=err)
    for network in networks:
        mean = _mean_areas(network)
        click.echo(
            f"{network.name:{max(width, 20)}}  {mean['deletion']:8.3f} ({mean['deletion_center']:.3f}){'':9}"
            f"{mean['insertion']:9.3f} ({mean['insertion_center']:.3f})",
            err=err,
        )
    click.echo("A good map has a small area for deletion and a large one for insertion.", err=err)


def _play(
    networks: Sequence[_Network],
    paths: Sequence[Path],
    boxes: BoxSet,
    matched: Sequence[dict[str, int]],
    method: str | None,
    stage: int | None,
) -> None:
    from tqdm import tqdm

    from partialnet.explain import play_pointing_game

    if not any(boxes.of(path) for path in paths):
        raise UserError("None of the images is in the file of boxes; its file_name must be the end of their paths.")
    for network, classes in zip(networks, matched, strict=True):
        bar = tqdm(paths, desc=f"pointing, {network.name}", unit="image", delay=2)
        network.game = play_pointing_game(network.explainer, bar, boxes, classes, method, stage)


def _draw_points(
    network: _Network, boxes: BoxSet, classes: dict[str, int], method: str | None, stage: int | None, output: Path
) -> list[str]:
    """The first rounds of the game: boxes, and a cross at the peak."""
    from partialnet.explain.drawing import MapTile, draw_maps
    from partialnet.images import read_image
    from partialnet.plots import BLUE, RED, shorten

    points = network.game.points[:_DRAWN_POINTS] if network.game else ()
    if not points:
        return []
    images, captions, tiles = [], [], []
    for point in points:
        image, truth = read_image(point.path), boxes.of(point.path)
        found = network.explainer.class_map(image, classes[point.category], method, stage)
        assert truth is not None
        outcome = "hit" if point.hit else "miss"
        color = BLUE if point.hit else RED
        images.append(image)
        captions.append(_clip(point.path.name))
        caption = f"{shorten(point.category, 16)}: {outcome}\np = {found.probability:.1%}"
        tiles.append(MapTile(found, caption, truth.boxes[point.category], color if point.peak else None))
    assert network.game is not None
    hits, number = sum(point.hit for point in network.game.points), len(network.game.points)
    path = output / "pointing.png"
    title = f"Pointing game, {_title(network)}: {hits} of {number} peaks in a box; blue hits, red misses"
    draw_maps(path, images, captions, [(network.name, tiles)], title)
    return [str(path)]


def _print_game(networks: Sequence[_Network], err: bool) -> None:
    width = max(8, *(len(network.name) for network in networks))
    click.echo(f"\n{'pointing':{width}}  rounds    hits  middle  chance   mean over categories", err=err)
    for network in networks:
        assert network.game is not None
        result = network.game.as_dict()
        if not result["num_points"]:
            click.echo(f"{network.name:{width}}  none: no image holds a category that the network has", err=err)
            continue
        click.echo(
            f"{network.name:{width}}  {result['num_points']:6}  {result['hits']:6.1%}  {result['center_hits']:6.1%}  "
            f"{result['chance']:6.1%}   {result['mean_hits']:6.1%} of {len(result['categories'])}",
            err=err,
        )
        for path, reason in network.game.skipped[:10]:
            click.echo(f"  left out: {path}: {reason}", err=True)


def _write_json(
    json_path: str,
    networks: Sequence[_Network],
    read: Sequence[tuple[Path, tuple[int, int]]],
    unreadable: Sequence[UserError],
) -> None:
    from partialnet.bench.environment import environment
    from partialnet.files import write_atomically

    content = {
        "networks": [_network_figures(network, read) for network in networks],
        "unreadable": [str(error) for error in unreadable],
        "environment": environment(),
    }
    text = json.dumps(content, indent=1)
    if json_path == "-":
        click.echo(text)
    else:
        write_atomically(Path(json_path), f"{text}\n".encode())


def _network_figures(network: _Network, read: Sequence[tuple[Path, tuple[int, int]]]) -> dict[str, Any]:
    images = []
    for found, (path, size) in zip(network.found, read, strict=True):
        entry: dict[str, Any] = {
            "image": str(path),
            "width": size[0],
            "height": size[1],
            "predicted": [{"class": name, "probability": value} for name, value in found.predicted],
            "target": found.target,
            "target_probability": found.probability,
            "seen": list(found.region),
            "map": found.statistics,
            "gates": found.gate_figures,
        }
        if found.scores is not None:
            entry["areas"] = found.scores.areas()
        images.append(entry)
    figures: dict[str, Any] = {
        "network": network.source,
        "architecture": network.explainer.checkpoint.architecture,
        "random_weights": network.untrained,
    }
    if network.found:
        first = network.found[0]
        figures |= {"method": first.method, "stage": first.stage, "layer": first.layer}
    if areas := _mean_areas(network):
        figures["mean_areas"] = areas
    if network.game is not None:
        figures["pointing_game"] = network.game.as_dict()
    return {**figures, "images": images}
