"""The checkpoints of timm's training script: ``checkpoint-7.pth.tar``, ``model_best.pth.tar``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor

from partialnet.timm_configuration import configuration_named

_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")  # torch.compile and DDP, in either order
# what the script gives timm.create_model and the tensors do not show
_NETWORK_ARGUMENTS = {"gp": "global_pool", "bn_eps": "bn_eps"}


@dataclass(frozen=True)
class TimmTraining:
    """What a checkpoint of timm's training script says of its network.

    Attributes:
        architecture: Its name in timm's registry.
        model_args: What ``timm.create_model`` is given besides the name.
        tensors: Its weights.
        data_args: The script's options by name; those on image size, colours and crop follow timm's
            ``resolve_data_config``.
    """

    architecture: str
    model_args: dict[str, Any]
    tensors: dict[str, Tensor]
    data_args: dict[str, Any]


def read_timm_training(content: Any, tensors: Mapping[str, Tensor]) -> TimmTraining | None:
    """Interpret a checkpoint of timm's training script; None if it names no model of timm's registry.

    Args:
        content: The whole checkpoint. Its ``arch`` names the network, ``args`` holds the script's options.
        tensors: The network's weights in it.
    """
    name = content.get("arch") if isinstance(content, Mapping) else None
    if not isinstance(name, str) or ":" in name or not timm.is_model(name):
        return None
    args = content.get("args")
    given = vars(args) if isinstance(args, Namespace) else {}
    options = {key: value for key, value in given.items() if value is not None}
    tensors = {_unwrapped(key): tensor for key, tensor in tensors.items()}
    return TimmTraining(name, _model_args(name, options, tensors), tensors, options)


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _model_args(name: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that build the network which the tensors belong to."""
    given = options.get("model_kwargs")
    arguments: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    arguments |= {ours: options[theirs] for theirs, ours in _NETWORK_ARGUMENTS.items() if theirs in options}
    config = configuration_named(name)
    if config is None:
        return arguments
    for layers, argument, dimension in ((config.classifier, "num_classes", 0), (config.first_conv, "in_chans", 1)):
        layer = layers[0] if isinstance(layers, (tuple, list)) and layers else layers
        weight = tensors.get(f"{layer}.weight")
        if weight is not None and weight.ndim > dimension:
            arguments[argument] = int(weight.shape[dimension])
    if config.fixed_input_size and "img_size" in options:
        arguments["img_size"] = options["img_size"]
    return arguments
