"""A detector's start from weights that exist: of a classifier, of the authors' detection backbones, of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partialnet.checkpoint import Checkpoint
from partialnet.stored_network import is_stored_as
from partialnet.transfer import Fit, differing, fit, open_weights, refuse_folded, refuse_strangers

from .backbone_parameters import names_in_backbone
from .checkpoint import DetectorCheckpoint, load_detector


def load_weights(detector: DetectorCheckpoint, source: str | Path) -> str:
    """Copy what fits from another checkpoint into a detector, and say what did.

    A classifier, or one of the authors' detection backbones, gives its layers to the backbone; its mean and standard
    deviation for images come along. A detector gives all its layers, but the last ones of the heads where its
    categories are others.

    Args:
        detector: Changed in place.
        source: Run folder, checkpoint, or a released file of the authors.

    Returns:
        Sentences on what matched, what is new and what was not used.

    Raises:
        UserError: Nothing usable is there, or less than half of the backbone fits.
    """
    source = str(source)
    if is_stored_as(source, "detection"):
        return _load_detector_weights(detector, source)
    other = open_weights(source)
    backbone: Any = detector.model.backbone
    own = {name: tensor for name, tensor in backbone.state_dict().items() if not name.startswith("fpn.")}
    found = fit(own, other.model.state_dict(), names_in_backbone)
    body = [name for name in own if name.startswith("maps.")]
    refuse_strangers(body, found.tensors, f"of the backbone {detector.backbone}", source, other.architecture)
    backbone.load_state_dict(found.tensors, strict=False)
    sentences = [f"Weights: {_counted(body, found)} of the backbone from {source} ({other.architecture})."]
    norms = [name for name in found.new if name.startswith("out_norms.")]
    sentences.append(f"As they must, {'output norms, ' if norms else ''}pyramid and heads are new.")
    sentences += differing([name for name in found.new if name not in norms], found.left)
    sentences += _take_normalisation(detector, other)
    return " ".join(sentences)


def _load_detector_weights(detector: DetectorCheckpoint, source: str) -> str:
    other = load_detector(source)
    refuse_folded(source, other.folded)
    own, given = detector.model.state_dict(), other.model.state_dict()
    if other.categories != detector.categories:
        # the layers that tell categories apart may have the same shape and another meaning
        given = {name: tensor for name, tensor in given.items() if not _tells_categories(name)}
    found = fit(own, given)
    body = [name for name in own if name.startswith("backbone.maps.")]
    refuse_strangers(body, found.tensors, f"of the backbone {detector.backbone}", source, other.backbone)
    detector.model.load_state_dict(found.tensors, strict=False)
    transform: Any = detector.model.transform
    transform.image_mean, transform.image_std = list(other.mean), list(other.std)
    new = found.new
    sentences = [f"Weights: {_counted(list(own), found)} of the detector from {source} ({other.backbone})."]
    if other.categories != detector.categories:
        count, others = len(detector.categories), len(other.categories)
        sentences.append(f"The last layers of the heads are new: {count} categories here, {others} others there.")
        new = [name for name in new if not _tells_categories(name)]
    return " ".join(sentences + differing(new, found.left))


def _tells_categories(name: str) -> bool:
    return name.startswith(("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."))


def _counted(names: list[str], found: Fit) -> str:
    return f"{sum(name in found.tensors for name in names)} of {len(names)} tensors"


def _take_normalisation(detector: DetectorCheckpoint, other: Checkpoint) -> list[str]:
    mean, std = ([float(value) for value in other.input_config[key]] for key in ("mean", "std"))
    if (mean, std) == ([*detector.mean], [*detector.std]):
        return []
    transform: Any = detector.model.transform
    transform.image_mean, transform.image_std = mean, std
    return [f"Images are normalised as there: mean {_numbers(mean)}, standard deviation {_numbers(std)}."]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
