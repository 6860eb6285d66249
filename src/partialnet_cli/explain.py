"""``partialnet explain``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from partialnet.errors import UserError
from partialnet.images import find_images
from partialnet.layers import SelfAttention2d
from partialnet.text_width import left_aligned, text_width

from .failures import fail
from .next_command import same_command
from .options import IntRange, device_option, output_folder
from .results import Results, make_folder, result_options

if TYPE_CHECKING:
    from partialnet.explain import Explainer
    from partialnet.explain.boxes import BoxSet
    from partialnet.explain.findings import ExplainedNetwork
    from partialnet.explain.report import Position
    from partialnet.explain.run import ExplainedImages


@click.command()
@click.argument("source")
@click.argument("images", nargs=-1, required=True)
@click.option("--target", metavar="CLASS", help="Class by name or number.  [default: what SOURCE predicts]")
@click.option(
    "--method", metavar="NAME", help="gradcam, layercam, eigencam, …; see docs/explain.md.  [default: gradcam]"
)
@click.option("--stage", type=IntRange(min=1), help="Stage whose output is shown.  [default: the last]")
@click.option("--against", multiple=True, metavar="SOURCE", help="Another network to show beside it; repeatable.")
@click.option(
    "--position",
    metavar="X,Y",
    help="Point for PAT_sf's attention, in pixels or percent of the image.  [default: peak]",
)
@click.option(
    "--img-size",
    type=IntRange(min=32),
    help="Height and width of the images; larger ones give finer maps.  [default: each network's own]",
)
@click.option("--scores", is_flag=True, help="Delete and insert pixels in the map's order; takes about 60 more runs.")
@click.option("--boxes", metavar="JSON", help="COCO file of instances: play the pointing game on all IMAGES in it.")
@click.option(
    "--category", multiple=True, metavar="CLASS=CATEGORY", help="Category of the boxes that a class stands for."
)
@click.option("--draw", type=IntRange(min=0), default=12, help="Images whose maps are drawn.")
@click.option(
    "--gates", "num_gates", type=IntRange(min=0), default=3, help="Images whose gates and attention are drawn."
)
@device_option
@output_folder("Folder for the pictures.", default="explained")
@result_options(json="all figures")
def explain(
    source: str,
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
    results: Results,
    output: Path,
    device: str | None,
) -> None:
    """Show where in IMAGES the network of SOURCE finds a class, and what it weighs.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, or a model
    name (timm's, torchvision:NAME; then with random weights). IMAGES are files, folders (searched recursively) and
    quoted glob patterns.

    The output folder gets the class maps of all networks side by side (maps.png), and of SOURCE the spatial and channel
    gates (…-gates.png) and the attention from one place (…-attention.png), where it has them.

    \b
    Examples: partialnet explain runs/flowers rose.jpg
              partialnet explain runs/flowers photos/ --against runs/resnet --scores --json maps.json
              partialnet explain runs/flowers rose.jpg --target tulip --stage 3 --position 120,80
    """
    from partialnet.devices import find_device
    from partialnet.explain import read_boxes
    from partialnet.explain.cam import CLASSLESS_METHODS, METHODS, library_class
    from partialnet.explain.report import draw_point_page
    from partialnet.explain.run import Pictures, explain_images, open_networks, play_with_all

    library_class(method or next(iter(METHODS)))  # reports a mistyped name or a missing library early
    point = _parse_position(position)
    box_set = read_boxes(boxes) if boxes else None
    if target is not None and method in CLASSLESS_METHODS:
        raise UserError(f"{method} does not look at a class, so --target has no effect; leave one of them out.")
    if category and box_set is None:
        raise UserError("--category says what the boxes' categories are called; give the boxes with --boxes.")
    paths = find_images(images)
    place = find_device(device)
    networks = open_networks((source, *against), place, img_size, method, stage)
    for network in networks:
        if target is not None:
            network.target = network.explainer.find_class(target)
        if box_set is not None:
            network.categories = _match(network.explainer, box_set, category)
    for note in _notes(networks, method, position):
        click.echo(note, err=True)
    make_folder(output)
    # with boxes the game goes over all images, and the maps of what is predicted over those that are drawn
    chosen = paths[:draw] if box_set else paths
    # lines that scroll by on a terminal are progress enough; None shows a bar on a terminal, but not in a file
    hide_bar = True if sys.stdout.isatty() and not results.prints_json else None
    explained = explain_images(
        tqdm(chosen, desc="explaining", unit="image", delay=2, disable=hide_bar),
        networks,
        scores,
        Pictures(output, draw, num_gates, point),
        on_image=results.say,
        say=lambda sentence: click.echo(sentence, err=True),
    )
    pictures = [*explained.written]
    if scores and explained.read:
        _print_scores(networks, results)
    if box_set is not None:
        play_with_all(networks, paths, box_set)
        pictures += draw_point_page(networks[0], box_set, output)
        _print_game(networks, results)
    results.add_pictures(len(pictures), output)
    results.write_json(_figures(networks, explained))
    with_scores = f"{same_command('--scores')}   (measures how faithful the maps are)"
    results.finish(with_scores if explained.read and not scores else None)
    if explained.unreadable:
        reasons = [one.reason for one in explained.unreadable]
        fail([*reasons, f"{len(reasons)} of {len(chosen)} images could not be read."])


def _notes(networks: Sequence[ExplainedNetwork], method: str | None, position: str | None) -> list[str]:
    """What one should know before reading the figures."""
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
        notes.append(f"{first.name} is folded, so its gates are merged: the run it came from shows them.")
    elif position is not None and not any(
        isinstance(part, SelfAttention2d) for part in first.explainer.model.modules()
    ):
        notes.append(f"{first.name} has no self-attention of ours; --position shows nothing of it.")
    return notes


def _parse_position(text: str | None) -> Position | None:
    """x and y, each with whether it is a share of the image."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        x, y = ((float(part[:-1]) / 100, True) if part.endswith("%") else (float(part), False) for part in parts)
    except ValueError:
        raise UserError(f"--position {text!r} must be X,Y in pixels, such as 120,80, or in percent: 50%,30%.") from None
    return x, y


def _match(explainer: Explainer, boxes: BoxSet, given: Sequence[str]) -> dict[str, int]:
    from partialnet.explain.boxes import match_categories

    pairs = [(name, category) for name, _, category in (entry.partition("=") for entry in given)]
    if not all(name and category for name, category in pairs):
        raise UserError("--category must be CLASS=CATEGORY, such as 'Labrador retriever=dog'.")
    return match_categories(explainer, boxes, pairs)


def _print_scores(networks: Sequence[ExplainedNetwork], results: Results) -> None:
    from partialnet.explain.findings import mean_areas

    heading = "area under the curve"
    width = max(text_width(text) for text in (heading, *(network.name for network in networks)))
    results.say(f"\n{heading:{width}}  deletion (middle first)  insertion (middle first)")
    for network in networks:
        mean = mean_areas(network)
        results.say(
            f"{left_aligned(network.name, width)}  {mean['deletion']:8.3f} ({mean['deletion_center']:.3f}){'':9}"
            f"{mean['insertion']:9.3f} ({mean['insertion_center']:.3f})",
        )
    results.say("A good map has a small area for deletion and a large one for insertion.")


def _print_game(networks: Sequence[ExplainedNetwork], results: Results) -> None:
    width = max(8, *(text_width(network.name) for network in networks))
    results.say(f"\n{'pointing':{width}}  rounds    hits  middle  chance   mean over categories")
    for network in networks:
        assert network.game is not None
        name, result = left_aligned(network.name, width), network.game.as_dict()
        if not result["num_points"]:
            results.say(f"{name}  none: no image holds a category that the network has")
            continue
        results.say(
            f"{name}  {result['num_points']:6}  {result['hits']:6.1%}  {result['center_hits']:6.1%}  "
            f"{result['chance']:6.1%}   {result['mean_hits']:6.1%} of {len(result['categories'])}",
        )
        for left_out in network.game.unreadable[:10]:
            click.echo(f"  left out: {left_out.reason}", err=True)


def _figures(networks: Sequence[ExplainedNetwork], explained: ExplainedImages) -> dict[str, Any]:
    """Everything that was found, as it is written."""
    from partialnet.bench.environment import environment
    from partialnet.explain.findings import figures_of

    return {
        "networks": [figures_of(network, explained.read) for network in networks],
        "unreadable": [asdict(one) for one in explained.unreadable],
        "environment": environment(),
    }
