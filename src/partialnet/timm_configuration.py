"""timm's configuration of a network that an entry point of ours builds out of another network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import load_pretrained
from torch import nn


def take_configuration(arguments: dict[str, Any]) -> dict[str, Any]:
    """What timm tells an entry point of the network's configuration, taken out of the entry point's arguments."""
    given: Any = arguments.pop("pretrained_cfg", None) or {}
    overlay: Any = arguments.pop("pretrained_cfg_overlay", None) or {}
    if isinstance(given, str):  # the tag of weights, which networks built like this do not have
        given = {}
    if not isinstance(given, Mapping):
        given = given.to_dict()
    return {**{name: value for name, value in given.items() if value is not None}, **overlay}


def finish_network(
    model: nn.Module, configuration: Mapping[str, Any], pretrained: bool, num_classes: int, in_chans: int = 3
) -> nn.Module:
    """The network with its configuration, and with the weights that this names if they are asked for."""
    config = dict(configuration)
    model.pretrained_cfg = model.default_cfg = config  # type: ignore[assignment]
    if pretrained:
        load_pretrained(model, config, num_classes=num_classes, in_chans=in_chans)
    return model
