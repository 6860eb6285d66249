"""Starting a detector from existing weights: a classifier's, the authors' detection backbones', or a detector's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from partialnet.checkpoint import Checkpoint
from partialnet.checkpoint.stored_network import is_stored_as
from partialnet.checkpoint.transfer import Fit, differing, fit, numbers, open_weights, refuse_folded, refuse_strangers
from partialnet.messages import listed

from .backbone_parameters import names_in_backbone
from .checkpoint import DetectorCheckpoint, load_detector

#: The last layers of the heads, whose outputs are of one category each, the first of the background.
_CATEGORY_LAYERS = (
    "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.mask_fcn_logits",
)
_MASK_HEAD = "roi_heads.mask_"


def load_weights(detector: DetectorCheckpoint, source: str | Path) -> str:
    """Copy what fits from another checkpoint into a detector, and report what did.

    A classifier, or one of the authors' detection backbones, gives its layers to the backbone; its mean and standard
    deviation for images come along. A detector gives all its layers, the last ones of the heads row by row: categories
    are found by their names, whatever their ids and order, and those that it does not know stay new. So does the head
    for masks if it has none.

    Args:
        detector: Changed in place.
        source: Run folder, checkpoint, a released file of the authors, or a timm model whose pretrained weights are on
            this machine.

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
    sentences.append(f"{'Output norms, pyramid' if norms else 'Pyramid'} and heads are new, as a backbone has none.")
    sentences += differing([name for name in found.new if name not in norms], found.left)
    sentences += _take_normalisation(detector, other)
    return " ".join(sentences)


def _load_detector_weights(detector: DetectorCheckpoint, source: str) -> str:
    other = load_detector(source)
    refuse_folded(source, other.folded)
    own, given = detector.model.state_dict(), dict(other.model.state_dict())
    of_categories = [f"{layer}.{leaf}" for layer in _CATEGORY_LAYERS for leaf in ("weight", "bias")]
    tells_categories = [name for name in of_categories if name in own and name in given]
    theirs = {name: given.pop(name) for name in tells_categories}
    common = _common_outputs(detector, other)
    heads_fit = all(own[name].shape[1:] == theirs[name].shape[1:] for name in tells_categories)
    if common and heads_fit:
        given |= {name: _mixed(own[name], theirs[name], detector, other, common) for name in tells_categories}
    found = fit(own, given)
    body = [name for name in own if name.startswith("backbone.maps.")]
    refuse_strangers(body, found.tensors, f"of the backbone {detector.backbone}", source, other.backbone)
    detector.model.load_state_dict(found.tensors, strict=False)
    transform = detector.model.transform
    transform.image_mean, transform.image_std = list(other.mean), list(other.std)
    new, left = found.new, found.left
    sentences = [f"Weights: {_counted(list(own), found)} of the detector from {source} ({other.backbone})."]
    if heads_fit:
        sentences += _category_sentences(detector, other)
        new = [name for name in new if name not in tells_categories]
    if detector.has_masks != other.has_masks:
        sentences.append("The head for masks is new." if detector.has_masks else "Its head for masks is not used.")
        new, left = ([name for name in names if not name.startswith(_MASK_HEAD)] for names in (new, left))
    return " ".join(sentences + differing(new, left))


def _common_outputs(detector: DetectorCheckpoint, other: DetectorCheckpoint) -> list[tuple[int, int]]:
    """Outputs of either for what both know, background and categories of one name; empty without such categories."""
    theirs = {name: label for label, name in enumerate(other.categories.values(), 1)}
    common = [(label, theirs[name]) for label, name in enumerate(detector.categories.values(), 1) if name in theirs]
    return [(0, 0), *common] if common else []


def _mixed(
    own: Tensor, given: Tensor, detector: DetectorCheckpoint, other: DetectorCheckpoint, common: list[tuple[int, int]]
) -> Tensor:
    """A last layer's tensor with the rows of common outputs from ``given``; boxes have four rows for each output."""
    ours, theirs = (list(places) for places in zip(*common, strict=True))
    mixed = own.clone().unflatten(0, (len(detector.categories) + 1, -1))
    mixed[ours] = given.unflatten(0, (len(other.categories) + 1, -1))[theirs]
    return mixed.flatten(0, 1)


def _category_sentences(detector: DetectorCheckpoint, other: DetectorCheckpoint) -> list[str]:
    names, others = tuple(detector.categories.values()), tuple(other.categories.values())
    count = len(names)
    known, new = [name for name in names if name in others], [name for name in names if name not in others]
    if not known:
        return [f"The last layers of the heads are new, as the weights are for {len(others)} other categories."]
    if new:
        return [f"The heads know {len(known)} of the {count} categories ({listed(known)}); new are {listed(new)}."]
    if names != others:
        return [f"The heads know all categories, {count} of the {len(others)} that the weights are for."]
    return []


def _counted(names: list[str], found: Fit) -> str:
    return f"{sum(name in found.tensors for name in names)} of {len(names)} tensors"


def _take_normalisation(detector: DetectorCheckpoint, other: Checkpoint) -> list[str]:
    mean, std = ([float(value) for value in other.input_config[key]] for key in ("mean", "std"))
    if (mean, std) == ([*detector.mean], [*detector.std]):
        return []
    transform = detector.model.transform
    transform.image_mean, transform.image_std = mean, std
    return [f"Images are normalised as for these weights: mean {numbers(mean)}, standard deviation {numbers(std)}."]
