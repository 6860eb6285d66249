"""Attention by name: the three of the paper, SRM, and every attention layer of timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from timm.layers import create_attn
from torch import nn

from .gaussian_se import GaussianSE
from .self_attention import SelfAttention2d
from .spatial_gate import SpatialGate

#: A name, a ready module for the attended channels, a function of (channels, device, dtype), or None.
AttentionLike: TypeAlias = str | nn.Module | Callable[..., nn.Module] | None

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "gaussian_se": GaussianSE,
    "srm": partial(GaussianSE, dense=False),
    "spatial_gate": SpatialGate,
    "self_attention": SelfAttention2d,
}


def create_attention(attention: AttentionLike, channels: int, device: Any = None, dtype: Any = None) -> nn.Module:
    """Build an attention layer for (B, ``channels``, H, W) features that keeps their shape.

    Args:
        attention: One of ``ATTENTIONS``, any name that ``timm.layers.create_attn`` knows ("se", "eca", "cbam", …),
            a module (used as it is), a function called with ``channels`` and the keywords ``device`` and ``dtype``,
            or None for no attention (the channels pass through).
        channels: Number of attended channels.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Raises:
        ValueError: The name is unknown.
    """
    if attention is None:
        return nn.Identity()
    if isinstance(attention, nn.Module):
        return attention
    if not isinstance(attention, str):
        return attention(channels, device=device, dtype=dtype)
    if attention in ATTENTIONS:
        return ATTENTIONS[attention](channels, device=device, dtype=dtype)
    try:
        layer = create_attn(attention, channels)
    except (AssertionError, TypeError):  # unknown, or one of those that timm itself fails to build from a name
        layer = None
    if layer is None:
        raise ValueError(
            f"Unknown attention {attention!r}. Choose one of {', '.join(ATTENTIONS)}, "
            "a name of timm.layers.create_attn such as se, ese, eca, cbam or gc, a module, or None."
        )
    return layer.to(device=device, dtype=dtype)
