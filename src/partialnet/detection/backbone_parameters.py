"""A backbone's parameters within a detector: what a classifier calls them, and how timm groups them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import auto_group_layers
from torch import nn

from partialnet.checkpoint import create_checkpoint

#: Arguments of feature networks that their classifiers do not take.
_OF_FEATURES = ("out_indices", "feature_cls")


def names_in_backbone(name: str) -> Iterator[str]:
    """What a classifier's tensor may be called in ``PyramidBackbone``; timm's feature networks rename in two ways."""
    name = name.removeprefix("model.")  # an authors' detection backbone is a feature network itself
    yield name
    yield f"maps.body.{name}"
    yield f"maps.body.model.{name}"
    yield f"maps.body.{name.replace('.', '_', 1)}"


def plain_classifier(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The classifier that a backbone is made of, without weights: timm's feature networks forget their class.

    Args:
        name: The backbone.
        arguments: What timm is given for it.
    """
    with torch.device("meta"):
        return create_checkpoint(name, **{k: v for k, v in arguments.items() if k not in _OF_FEATURES}).model


def layers(classifier: nn.Module, own: Iterable[str], coarse: bool = False) -> dict[str, int]:
    """Number of the layer, the first is 0, that each of a backbone's parameters belongs to, as timm numbers them.

    Args:
        classifier: See ``plain_classifier``.
        own: Names of the parameters of a ``PyramidBackbone``; those that are not of the classifier are left out.
        coarse: Whether a whole stage is one layer.
    """
    matcher: Any = getattr(classifier, "group_matcher", None)
    if matcher is None:
        of_classifier = auto_group_layers(classifier)  # as timm does for classifiers
    else:
        of_classifier = group_parameters(classifier, matcher(coarse=coarse), reverse=True)
    return {ours: of_classifier[theirs] for ours, theirs in _pairs(classifier, own)}


def undecayed(classifier: nn.Module, own: Iterable[str]) -> set[str]:
    """Names of a backbone's parameters that timm excepts from weight decay; arguments as of ``layers``."""
    told: Any = getattr(classifier, "no_weight_decay", set)
    patterns = told()
    return {ours for ours, theirs in _pairs(classifier, own) if any(fnmatch(theirs, pattern) for pattern in patterns)}


def _pairs(classifier: nn.Module, own: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names in the backbone and in the classifier."""
    own = set(own)
    for theirs, _ in classifier.named_parameters():
        ours = next((name for name in names_in_backbone(theirs) if name in own), None)
        if ours is not None:
            yield ours, theirs
