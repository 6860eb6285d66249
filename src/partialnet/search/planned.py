"""Planned networks in timm's registry, so that they train, save, load, fold and export like any other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from partialnet.errors import UserError
from partialnet.timm_configuration import build_variant

from .network import with_ratios

__all__ = ["ARCHITECTURE"]

ARCHITECTURE = "planned"


@register_model
def planned(
    pretrained: bool = False,
    network: str = "resnet50_pat",
    split_ratios: Mapping[str, float] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Any network of the registry with other split ratios in some of its partial convolutions.

    PartialNet's own variants take their ratios as ``split_ratio``.

    Args:
        pretrained: Load weights for the planned network, which only a run folder has.
        network: Name of the network.
        split_ratios: Share of the channels that is convolved, by the layer's name.
        kwargs: Arguments for ``network``.

    Raises:
        UserError: The registry has no such network, or a ratio does not fit its layer.
    """
    if not isinstance(network, str) or ":" in network or network == ARCHITECTURE or not timm.is_model(network):
        raise UserError(f"There is no model named {network!r} to plan.")
    operation = partial(with_ratios, split_ratios={} if split_ratios is None else split_ratios)
    return build_variant(ARCHITECTURE, pretrained, network, operation, **kwargs)
