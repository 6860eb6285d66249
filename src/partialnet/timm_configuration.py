"""Networks that our entry points build from other networks, with timm's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.models import load_pretrained
from timm.models._pretrained import PretrainedCfg
from torch import nn

from .errors import UserError


def configuration_of(model: nn.Module) -> dict[str, Any]:
    """timm's configuration of a network; empty where it has none."""
    return getattr(model, "pretrained_cfg", None) or {}


def configuration_named(name: str) -> PretrainedCfg | None:
    """timm's configuration of the model of this name, with or without the tag of weights; None where it has none.

    Raises:
        UserError: The model has no weights of that tag.
    """
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:
        model, tag = timm.models.split_model_name_tag(name)
        known = [timm.models.split_model_name_tag(other)[1] for other in timm.list_pretrained(f"{model}.*")]
        there = f"; there are {', '.join(known)}" if known else ""
        raise UserError(f"timm's {model} has no weights named {tag!r}{there}.") from None


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


def build_variant(
    variant: str, pretrained: bool, base: str, operation: Callable[[nn.Module], nn.Module], /, **kwargs: Any
) -> nn.Module:
    """A network of timm's registry after an operation, with timm's configuration under its new name.

    Args:
        variant: Name of the result in the registry.
        pretrained: Load the result's weights, as timm's entry points do.
        base: Name of the network that is changed.
        operation: Changes it.
        kwargs: Arguments for ``base``, and what timm hands to entry points.
    """
    told = take_configuration(kwargs)
    model: nn.Module = timm.create_model(base, **kwargs)
    config = dict(configuration_of(model))
    for name in ("url", "hf_hub_id", "file"):  # the weights are of another network
        config.pop(name, None)
    config |= {**told, "architecture": variant}
    num_classes: Any = kwargs.get("num_classes", config.get("num_classes", 1000))
    return finish_network(operation(model), config, pretrained, num_classes, kwargs.get("in_chans", 3))
