"""The network to train: new, or from the weights of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.checkpoint.transfer import differing, fit, numbers, open_weights, refuse_strangers
from partialnet.errors import UserError
from partialnet.messages import first_line
from partialnet.timm_configuration import configuration_named, configuration_of

from .config import TrainConfig


def create_network(config: TrainConfig, class_names: Sequence[str]) -> tuple[Checkpoint, str]:
    """The network that ``config`` asks for, with an output for each class.

    Returns:
        The network, in evaluation mode, with how it wants its images; and a sentence on where its weights come from.

    Raises:
        UserError: timm has no such model or refuses its arguments, it takes no images of a size that is asked for, or
            ``config.weights`` does not fit.
    """
    arguments: dict[str, Any] = {**config.model_args, "num_classes": len(class_names)}
    if config.drop_path_rate is not None:
        arguments["drop_path_rate"] = config.drop_path_rate
    if config.img_size is not None and _has_fixed_size(config.model):
        arguments["img_size"] = config.img_size
    network = create_checkpoint(config.model, class_names, **arguments)
    if (channels := network.input_config["input_size"][0]) != 3:
        raise UserError(
            f"Training uses images of 3 channels, but {config.model} is built for {channels}; leave in_chans out."
        )
    size = [config.img_size] * 2 if config.img_size is not None else network.input_config["input_size"][1:]
    input_config = {**network.input_config, "input_size": [3, *size], "crop_pct": config.test_crop}
    network = replace(network, input_config=input_config)
    for height, width in sorted({tuple(size), *((side, side) for side in config.random_sizes)}):
        _try_size(network, height, width)
    report = "Weights: new."
    if config.weights is not None:
        network, report = _load_weights(network, config.weights)
    if config.freeze_backbone:
        _freeze_backbone(network.model, config)
    return network, report


def classifier_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers of the last layer, or layers where a model has several outputs."""
    names = configuration_of(model).get("classifier") or ()
    prefixes = (names,) if isinstance(names, str) else tuple(names)
    return {name for name in model.state_dict() if any(name.startswith(f"{prefix}.") for prefix in prefixes)}


@torch.no_grad()
def _try_size(network: Checkpoint, height: int, width: int) -> None:
    """Pass an image of zeros through the network, as nothing else tells which sizes it takes.

    Raises:
        UserError: It does not give an answer for each class.
    """
    trouble = f"{network.architecture} cannot be trained on images of {height}×{width} pixels"
    try:
        answer = network.model(torch.zeros(1, 3, height, width))
    except Exception as error:  # of any network
        raise UserError(f"{trouble}: {first_line(error)}") from error
    if not isinstance(answer, Tensor) or answer.shape != (1, len(network.class_names)):
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(
            f"{trouble}: its output is {found}, not one number for each of {len(network.class_names)} classes."
        )


def _has_fixed_size(name: str) -> bool:
    if not timm.is_model(name):
        return False
    config = configuration_named(name)
    return bool(config is not None and config.fixed_input_size)


def _load_weights(network: Checkpoint, source: str) -> tuple[Checkpoint, str]:
    """Copy what fits from another checkpoint, and how it wants its images; say what did."""
    other = open_weights(source)
    own, given = network.model.state_dict(), other.model.state_dict()
    head = classifier_parameters(network.model)
    names_differ = bool(other.class_names) and tuple(other.class_names) != tuple(network.class_names)
    found = fit(own, given)
    fitting = {name: tensor for name, tensor in found.tensors.items() if not (names_differ and name in head)}
    body = [name for name in own if name not in head]
    refuse_strangers(body, fitting, f"below the head of {network.architecture}", source, other.architecture)
    network.model.load_state_dict(fitting, strict=False)
    sentences = [f"Weights: {len(fitting)} of {len(own)} tensors from {source} ({other.architecture})."]
    if head - fitting.keys():
        count = len(other.class_names) or other.num_classes
        sentences.append(f"The head is new: {len(network.class_names)} classes here, {count} others there.")
    sentences += differing([name for name in body if name not in fitting], found.left)
    network, prepared = _prepared_like(network, other)
    return network, " ".join(sentences + prepared)


def _prepared_like(network: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """The network for images in the colours and the interpolation of another's, and a sentence where they differ."""
    if any(len(other.input_config[key]) != 3 for key in ("mean", "std")):
        return network, []  # of other channels than red, green and blue
    changed = {}
    for key in ("mean", "std", "interpolation", "crop_mode"):
        value = other.input_config[key]
        value = value if isinstance(value, str) else [float(number) for number in value]
        if value != network.input_config[key]:
            changed[key] = value
    if not changed:
        return network, []
    told = ", ".join(f"{key} {value if isinstance(value, str) else numbers(value)}" for key, value in changed.items())
    network = replace(network, input_config={**network.input_config, **changed})
    return network, [f"Images are prepared as for those weights: {told}."]


def _freeze_backbone(model: nn.Module, config: TrainConfig) -> None:
    """Leave gradients to the last layer only."""
    head = classifier_parameters(model)
    if not head:
        raise UserError(
            f"{config.model} does not say which layer is its classifier, so freeze_backbone cannot be used."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
