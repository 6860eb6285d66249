"""Attention by name: the three of the paper, SRM, and every attention layer of timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from timm.layers import create_attn
from torch import nn

from partialnet.arguments import check_count
from partialnet.errors import UserError

from .gaussian_se import GaussianSE
from .self_attention import SelfAttention2d
from .spatial_gate import SpatialGate

#: A name, a mapping of "name" and arguments for it, a ready module for the attended channels, a function of
#: (channels, device, dtype), or None.
AttentionLike: TypeAlias = str | Mapping[str, Any] | nn.Module | Callable[..., nn.Module] | None

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "gaussian_se": GaussianSE,
    "srm": partial(GaussianSE, dense=False),
    "spatial_gate": SpatialGate,
    "self_attention": SelfAttention2d,
}


def create_attention(
    attention: AttentionLike, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Build an attention layer for (B, ``channels``, H, W) features that keeps their shape.

    Args:
        attention: One of ``ATTENTIONS``, any name that ``timm.layers.create_attn`` knows ("se", "eca", "cbam", …),
            a mapping with such a name and arguments for it, as ``{"name": "se", "rd_ratio": 1 / 4}``, a module (used as
            it is), a function called with ``channels`` and the keywords ``device`` and ``dtype``, or None for no
            attention (the channels pass through).
        channels: Number of attended channels.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Raises:
        ValueError: The name is unknown, or it does not take the arguments.
    """
    if attention is None:
        return nn.Identity()
    if isinstance(attention, nn.Module):
        return attention
    if isinstance(attention, str):
        return _create_named(attention, {}, channels, device, dtype)
    if isinstance(attention, Mapping):
        arguments = dict(attention)
        return _create_named(arguments.pop("name", None), arguments, channels, device, dtype)
    if not callable(attention):
        raise _unknown(attention)
    built = attention(channels, device=device, dtype=dtype)
    if not isinstance(built, nn.Module):
        raise UserError(f"The function {attention!r} made {built!r} for {channels} channels, which is not a module.")
    return built


def _create_named(
    name: Any, arguments: dict[str, Any], channels: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Module:
    check_count("channels", channels)
    try:
        if name in ATTENTIONS:
            return ATTENTIONS[name](channels, **arguments, device=device, dtype=dtype)
        layer = create_attn(name, channels, **arguments) if isinstance(name, str) else None
    except (AssertionError, TypeError) as error:
        if arguments:
            raise ValueError(f"Attention {name!r} does not take {arguments}: {error}") from error
        if isinstance(name, str) and name in ATTENTIONS:
            raise  # it is known, but the channels or the data type do not suit it
        layer = None  # unknown, or one of those that timm itself fails to build from a name
    if layer is None:
        raise _unknown(name)
    return layer.to(device=device, dtype=dtype)


def _unknown(attention: object) -> ValueError:
    return ValueError(
        f"Unknown attention {attention!r}. Choose one of {', '.join(ATTENTIONS)}, "
        "a name of timm.layers.create_attn such as se, ese, eca, cbam or gc, a module, or None."
    )
