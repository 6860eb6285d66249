"""Attention over some of a layer's channels: masked while they change, cut out once they are fixed.

Both give the same outputs for the kept channels: ``attend(layer, x, keep)[:, kept]`` equals
``select_channels(layer, kept)(x[:, kept])``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gaussian_se import GaussianSE
from .self_attention import SelfAttention2d
from .spatial_gate import SpatialGate


def smallest_subset_step(attention: nn.Module) -> int:
    """What the number of kept channels must be a multiple of; 1 for all but self-attention, with its heads.

    Raises:
        ValueError: The attention cannot be computed for a subset of its channels.
    """
    if isinstance(attention, SelfAttention2d):
        return attention.num_heads
    if isinstance(attention, (nn.Identity, GaussianSE, SpatialGate)):
        return 1
    raise ValueError(
        f"{type(attention).__name__} cannot attend over a changing number of channels. Use gaussian_se, srm, "
        "spatial_gate, self_attention or None."
    )


def attend(attention: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    """Attention over the channels at 1 in ``keep``.

    Args:
        attention: One of ours, for all channels of ``x``.
        x: Features, (B, C, H, W).
        keep: (C,), zeros and ones; differentiable.

    Returns:
        (B, C, H, W); what it holds in channels at 0 has no meaning but a gradient for ``keep``.
    """
    if isinstance(attention, SelfAttention2d):
        return _self_attention(attention, x, keep)
    return attention(x, keep)


def select_channels(attention: nn.Module, kept: Tensor) -> nn.Module:
    """A copy of an attention for the channels ``kept``, sorted indices, int64."""
    weight = next(attention.parameters())
    dd = {"device": weight.device, "dtype": weight.dtype}
    count = len(kept)
    if isinstance(attention, GaussianSE):
        normalize = not isinstance(attention.norm, nn.Identity)
        gaussian = GaussianSE(count, attention.dense, normalize, **dd)
        columns = torch.cat((kept, kept + attention.channels)) if attention.dense else slice(None)
        gaussian.weight.data.copy_(attention.weight.detach()[kept][:, columns])
        _copy_norm(attention.gate_norm, gaussian.gate_norm, kept)
        _copy_norm(attention.norm, gaussian.norm, kept)
        return gaussian.train(attention.training)
    if isinstance(attention, SpatialGate):
        gate = SpatialGate(count, not isinstance(attention.norm, nn.Identity), **dd)
        gate.conv.weight.data.copy_(attention.conv.weight.detach()[:, kept])
        _copy_norm(attention.norm, gate.norm, kept)
        return gate.train(attention.training)
    if isinstance(attention, SelfAttention2d):
        return _select_self_attention(attention, kept)
    smallest_subset_step(attention)
    raise AssertionError("unreachable")


def _copy_norm(source: nn.Module, target: nn.Module, kept: Tensor) -> None:
    """Affine and running statistics of the kept channels, and the settings that shape the update."""
    for name, tensor in source.state_dict().items():
        target.state_dict()[name].copy_(tensor[kept] if tensor.ndim else tensor)
    for name in ("eps", "momentum"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))


# Heads take turns over the channels here, channel i belongs to head i mod heads, so that any number of kept channels
# is spread evenly over them, whereas SelfAttention2d's heads are ranges of channels. Which channels of q, k and v form
# a head has no meaning outside, so the cut-out layer has its rows sorted by head.


def _self_attention(attention: SelfAttention2d, x: Tensor, keep: Tensor) -> Tensor:
    channels, height, width = x.shape[1:]
    heads = attention.num_heads
    count = keep.sum().clamp(min=1)  # no channel at all attends over nothing
    tokens = x.flatten(2).transpose(1, 2)
    if isinstance(attention.norm, nn.LayerNorm):
        mean = (tokens * keep).sum(-1, keepdim=True) / count
        centred = (tokens - mean) * keep
        variance = centred.square().sum(-1, keepdim=True) / count
        tokens = centred * torch.rsqrt(variance + attention.norm.eps) * attention.norm.weight + attention.norm.bias
    tokens = tokens * keep
    masked = attention.qkv.weight * keep.repeat(3)[:, None]
    qkv = F.linear(tokens, masked.to(tokens.dtype)).unflatten(2, (3, channels // heads, heads))
    query, key, value = qkv.permute(2, 0, 4, 1, 3).unbind(0)  # (B, heads, N, C / heads) each
    query = query * (count / heads).rsqrt()
    bias: Tensor | None = None
    if attention.position_bias is not None:
        bias = attention.position_bias(height, width)[None].to(query.dtype)
    tokens = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    tokens = attention.proj(tokens.permute(0, 2, 3, 1).flatten(2))  # channel i is again i // heads, i mod heads
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _select_self_attention(attention: SelfAttention2d, kept: Tensor) -> SelfAttention2d:
    weight = attention.qkv.weight.detach()
    channels, heads = weight.shape[1], attention.num_heads
    selected = SelfAttention2d(
        len(kept),
        heads,
        not isinstance(attention.norm, nn.Identity),
        attention.position_bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    by_head = torch.cat([kept[kept % heads == head] for head in range(heads)])
    rows = torch.cat([by_head + part * channels for part in range(3)])
    selected.qkv.weight.data.copy_(weight[rows][:, kept])
    selected.proj.weight.data.copy_(attention.proj.weight.detach()[kept][:, by_head])
    selected.proj.bias.data.copy_(attention.proj.bias.detach()[kept])
    if isinstance(attention.norm, nn.LayerNorm) and isinstance(selected.norm, nn.LayerNorm):
        selected.norm.eps = attention.norm.eps
        selected.norm.weight.data.copy_(attention.norm.weight.detach()[kept])
        selected.norm.bias.data.copy_(attention.norm.bias.detach()[kept])
    if attention.position_bias is not None:
        selected.position_bias.load_state_dict(attention.position_bias.state_dict())  # type: ignore[union-attr]
    return selected.train(attention.training)
