"""Many images explained by several networks: findings, pictures of them, and the pointing game."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from partialnet.checkpoint import load
from partialnet.errors import UserError
from partialnet.images import UnreadableImage, read_images
from partialnet.sources import short_names

from .boxes import BoxSet, play_pointing_game
from .cam import Explainer
from .drawing import small_image
from .findings import ExplainedNetwork, explain_image
from .report import Position, draw_gate_pages, draw_map_pages, draw_score_page, line_of


@dataclass(frozen=True)
class Pictures:
    """What is drawn of many images.

    Attributes:
        folder: Where the pictures go, a folder that is there.
        num_maps: Images whose maps are drawn, the first ones.
        num_gates: Images whose gates and attention are drawn, the first ones.
        point: From where the attention is drawn; None takes the map's peak.
    """

    folder: Path
    num_maps: int = 12
    num_gates: int = 3
    point: Position | None = None


@dataclass(frozen=True)
class ExplainedImages:
    """What became of many images; the findings are with the networks.

    Attributes:
        read: Path and (width, height) of each image that could be read.
        unreadable: The others.
        written: Files of the pictures.
    """

    read: Sequence[tuple[Path, tuple[int, int]]]
    unreadable: Sequence[UnreadableImage]
    written: Sequence[str]


def open_networks(
    sources: Iterable[str],
    device: torch.device,
    img_size: int | None = None,
    method: str | None = None,
    stage: int | None = None,
) -> list[ExplainedNetwork]:
    """Open networks, ready to explain their answers, each with a name of its own.

    Args:
        sources: Run folders, checkpoints or model names; see ``partialnet.checkpoint.load``.
        device: Where they run.
        img_size: Height and width of their input; None takes each one's own.
        method: How their maps are made, one of ``METHODS``; None takes each one's default.
        stage: Number of the stage that their maps are of, from 1; None takes the last.

    Raises:
        UserError: Nothing usable is there, the size does not fit, or a network has no such stage.
    """
    networks = []
    for source, name in short_names(sources).items():
        explainer = Explainer(load(source).resized(img_size), device)
        explainer.target_layer(stage)  # refuses a stage that is not there
        networks.append(ExplainedNetwork(name, source, explainer, not Path(source).exists(), method, stage))
    return networks


def explain_images(
    paths: Iterable[Path],
    networks: Sequence[ExplainedNetwork],
    scores: bool,
    pictures: Pictures,
    on_image: Callable[[str], None] = lambda line: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> ExplainedImages:
    """Explain images one after another and draw what was found; the networks keep the figures.

    Args:
        paths: Image files.
        networks: The networks, side by side; gates and attention are those of the first.
        scores: Whether pixels are deleted and inserted in the maps' order.
        pictures: What is drawn, and where.
        on_image: Takes one or more lines on each image as soon as it is explained.
        say: Takes a sentence on what cannot be drawn.

    Raises:
        UserError: There are to be scores of a map that is of no class.
    """
    read: list[tuple[Path, tuple[int, int]]] = []
    unreadable: list[UnreadableImage] = []
    drawn: list[Image.Image] = []
    gate_pages: list[str] = []
    for path, image in read_images(paths):
        if isinstance(image, UserError):
            unreadable.append(UnreadableImage(str(path), str(image)))
            continue
        findings = explain_image(image, networks, scores)
        index = len(read)
        if index < pictures.num_gates:
            gate_pages += draw_gate_pages(
                networks[0], findings[0], image, path, index, pictures.point, pictures.folder, say
            )
        small = small_image(image)
        keep = len(drawn) < pictures.num_maps  # what is drawn is small, what is not drawn is not kept
        for network, finding in zip(networks, findings, strict=True):
            network.found.append(finding.without_gates(small.size if keep else None))
        if keep:
            drawn.append(small)
        read.append((path, image.size))
        on_image(line_of(path, networks))
    written = draw_map_pages(networks, [path for path, _ in read], drawn, pictures.folder) + gate_pages
    if scores and read:
        written += draw_score_page(networks, pictures.folder)
    return ExplainedImages(read, unreadable, written)


def play_with_all(networks: Sequence[ExplainedNetwork], paths: Sequence[Path], boxes: BoxSet) -> None:
    """The pointing game with one network after the other; each keeps its own.

    Args:
        networks: The networks.
        paths: Image files; those without boxes are passed over.
        boxes: Where the objects are.

    Raises:
        UserError: No image has boxes.
    """
    if not any(boxes.of(path) for path in paths):
        raise UserError("None of the images is in the file of boxes; its file_name must be the end of their paths.")
    for network in networks:
        bar = tqdm(paths, desc=f"pointing, {network.name}", unit="image", delay=2)
        network.game = play_pointing_game(
            network.explainer, bar, boxes, network.categories, network.method, network.stage
        )
