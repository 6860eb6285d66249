"""A network's partial convolutions made dynamic, and fixed again at the ratios that they have learned."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from partialnet.arguments import check_network, check_number
from partialnet.layers import DPConv, PATConv
from partialnet.layers.attention import AttentionLike
from partialnet.layers.partial_attention import PartialAttention
from partialnet.replacement import replace_modules


def make_dynamic(model: nn.Module, scope: str | None = None, attention: bool = True) -> nn.Module:
    """A copy of ``model`` whose partial convolutions are ``DPConv``, which learn how many channels they convolve.

    Replaced is each ``PATConv`` that keeps resolution and channel count, convolves its leading channels by a kernel
    larger than 1×1, and attends by one of our attentions over the others. It starts from the ratio it has, rounded down
    to what the gates can form. The convolution's weights are carried over into the block that it convolves; what it
    lacks is freshly drawn, the attention too, as it now covers all channels.

    Args:
        model: Any network that contains ``PATConv``.
        scope: Regular expression; only layers in whose name it is found are replaced, such as ``"stages.2"``. None
            replaces all.
        attention: Keep the attention while searching. False passes the channels that are not convolved through, as the
            authors do.

    Raises:
        ValueError: No layer can be replaced, or the scope is no regular expression.
    """
    check_network(model)
    try:
        pattern = re.compile(scope or "")
    except (re.error, TypeError) as error:
        raise ValueError(f"scope={scope!r} is not a regular expression: {error}.") from error
    model = copy.deepcopy(model)
    new: dict[nn.Module, nn.Module] = {
        layer: _dynamic(layer, attention) for name, layer in searchable_layers(model).items() if pattern.search(name)
    }
    model = replace_modules(model, lambda module: new.get(module, module))
    if not dynamic_layers(model):
        raise ValueError(
            "This network has no partial convolution that can be searched"
            + (f" where {scope!r} is found in the name." if scope else ".")
        )
    return model


def searchable_layers(model: nn.Module) -> dict[str, PATConv]:
    """The layers that ``make_dynamic`` replaces, by name, in the network's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PATConv) and _is_replaceable(module)
    }


def dynamic_layers(model: nn.Module) -> dict[str, DPConv]:
    """The searched layers of a network by name, in the network's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, DPConv)}


def settle(model: nn.Module) -> nn.Module:
    """A copy with every ``DPConv`` replaced by the static layer it has become; outputs stay the same.

    Raises:
        ValueError: The gates of a layer are out of order.
    """
    check_network(model)
    return replace_modules(
        copy.deepcopy(model), lambda module: module.to_static() if isinstance(module, DPConv) else module
    )


def with_ratios(model: nn.Module, split_ratios: Mapping[str, float]) -> nn.Module:
    """A copy of ``model`` with other split ratios in some of its partial convolutions, whose weights are fresh.

    Args:
        model: Any network that contains ``PATConv``.
        split_ratios: Share of the channels that is convolved, by the layer's name.

    Raises:
        ValueError: There is no such layer, or the ratio does not fit it.
    """
    check_network(model)
    if not isinstance(split_ratios, Mapping):
        raise ValueError(f"split_ratios={split_ratios!r} must give a ratio for each layer's name.")
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    new: dict[nn.Module, nn.Module] = {}
    for name, ratio in split_ratios.items():
        layer = layers.get(name)
        if not isinstance(layer, PATConv) or not _is_replaceable(layer):
            raise ValueError(f"{name!r} is not a partial convolution whose split ratio can be chosen.")
        check_number(f"split ratio of {name}", ratio)
        weight = layer.conv.weight
        static = PATConv(
            layer.conv_channels + layer.attn_channels,
            kernel_size=layer.conv.kernel_size[0],
            dilation=layer.conv.dilation[0],
            split_ratio=ratio,
            attention=_attention_for_all_channels(layer.attn) if ratio < 1 else None,
            device=weight.device,
            dtype=weight.dtype,
        )
        if weight.device.type != "meta":
            static.conv.weight.data.normal_().mul_(weight.std())
        new[layer] = static.train(layer.training)
    return replace_modules(model, lambda module: new.get(module, module))


def _is_replaceable(layer: PATConv) -> bool:
    conv = layer.conv
    return (
        layer.conv_first
        and layer.attention_scope == "partial"
        and not layer.normalizes_conv
        and conv.kernel_size[0] > 1
        and conv.stride == (1, 1)
        and conv.bias is None
        and conv.in_channels == conv.out_channels
        and isinstance(layer.attn_proj, nn.Identity)
        and isinstance(layer.attn, (nn.Identity, PartialAttention))
        and (conv.in_channels + layer.attn_channels) % 2 == 0
    )


def _attention_for_all_channels(attention: nn.Module) -> AttentionLike:
    """What builds an attention of the same kind and settings for another number of channels."""
    return partial(type(attention), **attention.settings()) if isinstance(attention, PartialAttention) else None


@torch.no_grad()
def _dynamic(layer: PATConv, attention: bool) -> DPConv:
    weight = layer.conv.weight
    channels = layer.conv_channels + layer.attn_channels
    arguments: dict[str, Any] = {
        "kernel_size": layer.conv.kernel_size[0],
        "dilation": layer.conv.dilation[0],
        "split_ratio": layer.split_ratio,
        "attention": _attention_for_all_channels(layer.attn) if attention else None,
        # the static layer's heads must divide what is left, also where the search passes the rest through
        "min_channels": layer.attn.subset_step if isinstance(layer.attn, PartialAttention) else None,
    }
    dynamic = DPConv(channels, **arguments, device=weight.device, dtype=weight.dtype)
    dynamic.conv.weight.normal_().mul_(weight.std())
    width = max(block for block in dynamic.blocks if block <= layer.conv_channels)
    dynamic.conv.weight[:width, :width] = weight[:width, :width]
    return dynamic.train(layer.training)
