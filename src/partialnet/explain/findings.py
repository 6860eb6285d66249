"""What networks give for images, in figures: class maps, predictions, gates, scores and the pointing game."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from partialnet.errors import UserError
from partialnet.preprocessing import Region

from .boxes import PointingGame
from .cam import ClassMap, Explainer
from .gates import Gates, read_gates
from .scores import Scores, deletion_and_insertion

_PREDICTED = 3  # classes named in the JSON


@dataclass(frozen=True)
class Finding:
    """What one network gives for one image.

    Attributes:
        map: The map of a class, as long as it is to be drawn.
        statistics: Figures of the map.
        predicted: The most probable classes with their probabilities in [0, 1], best first.
        target: Name of the class that the map is of; None where the method looks at no class.
        gates: What the layers weigh, as long as it is to be drawn; None of a folded network.
        gate_figures: Figures of the gates.
        scores: How faithful the map is, if that was asked for.
        region: The part of the image that the network sees.
        method: How the map was made, one of ``METHODS``.
        stage: Number of the stage that it is of, from 1.
        layer: Name of the layer that it is of.
        probability: Of the class, in [0, 1]; None where there is none.
    """

    map: ClassMap | None
    statistics: dict[str, Any]
    predicted: tuple[tuple[str, float], ...]
    target: str | None
    gates: Gates | None
    gate_figures: dict[str, Any] | None
    scores: Scores | None
    region: Region
    method: str
    stage: int
    layer: str
    probability: float | None

    def without_gates(self, size: tuple[int, int] | None) -> Finding:
        """What is kept of many images: the figures, and the map in (width, height) of ``size``; no map if None."""
        kept = self.map.resized(size) if self.map is not None and size is not None else None
        return replace(self, map=kept, gates=None)


@dataclass
class ExplainedNetwork:
    """A network, what it is asked, and what was found with it.

    Attributes:
        name: What pictures call it.
        source: How the user named it.
        explainer: The network, ready to be asked.
        untrained: Whether it has random weights.
        method: How its maps are made, one of ``METHODS``; None takes its default.
        stage: Number of the stage that its maps are of, from 1; None takes the last.
        target: Class of its maps. None takes the class that the first of all networks finds most probable, or its own
            most probable one where it does not know that class.
        categories: Class of each category of the pointing game; see ``match_categories``.
        found: What it gives for each image, in their order.
        game: Outcome of the pointing game, if it was played.
    """

    name: str
    source: str
    explainer: Explainer
    untrained: bool
    method: str | None = None
    stage: int | None = None
    target: int | None = None
    categories: dict[str, int] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)
    game: PointingGame | None = None

    def class_map(self, image: Image.Image, target: int | None) -> ClassMap:
        """The map of a class of this image; see ``Explainer.class_map``."""
        return self.explainer.class_map(image, target, self.method, self.stage)


def explain_image(image: Image.Image, networks: Sequence[ExplainedNetwork], scores: bool) -> list[Finding]:
    """Maps, predictions, gates and scores of one image for every network.

    Args:
        image: RGB.
        networks: The networks.
        scores: Whether to compute deletion and insertion.

    Raises:
        UserError: A network does not know the method, or scores are asked for where there is no class.
    """
    findings: list[Finding] = []
    shared: str | None = None
    for network in networks:
        explainer, target = network.explainer, network.target
        predicted = explainer.most_probable(image, _PREDICTED)
        if target is None and explainer.names_known and predicted:
            # all networks show the class that the first predicts, where they have it
            shared = shared or predicted[0][0]
            target = explainer.class_names.index(shared) if shared in explainer.class_names else None
        found = network.class_map(image, target)
        if scores and found.target is None:
            raise UserError(f"--scores needs a class, which {found.method} does not look at.")
        gates = None if explainer.checkpoint.folded else read_gates(explainer, image)
        findings.append(
            Finding(
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
    return findings


def scores_of(network: ExplainedNetwork) -> list[Scores]:
    """The scores of all images that have some."""
    return [found.scores for found in network.found if found.scores is not None]


def mean_areas(network: ExplainedNetwork) -> dict[str, float]:
    """Areas under the curves of deletion and insertion, means over the images; empty without scores."""
    areas = [score.areas() for score in scores_of(network)]
    return {name: sum(area[name] for area in areas) / len(areas) for name in areas[0]} if areas else {}


def figures_of(network: ExplainedNetwork, read: Sequence[tuple[Path, tuple[int, int]]]) -> dict[str, Any]:
    """All figures of a network as plain values, with path and (width, height) of each image that was read."""
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
    if areas := mean_areas(network):
        figures["mean_areas"] = areas
    if network.game is not None:
        figures["pointing_game"] = network.game.as_dict()
    return {**figures, "images": images}
