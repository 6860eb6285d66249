"""Folded layers in the form that one runtime runs fastest; every form computes the same function.

onnxruntime makes one pass over memory for each elementwise operation, OpenVINO fuses them, and eager PyTorch pays for
every call and every temporary tensor. ``partialnet.fold(..., runtime=...)`` puts these layers in.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .affine import with_weights

#: What a folded network can be made for.
Runtime = Literal["torch", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnxruntime", "openvino")


def may_write_in_place() -> bool:
    """Whether results may be written into slices: not where autograd, a compiler or an exporter looks on."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


class PositionwiseLinear(nn.Module):
    """A 1×1 convolution as one matrix product over positions, (positions, C) → (positions, out_channels).

    In the channels_last layout a map is such a matrix. With the weight stored transposed, few positions take about 4/5
    of the time of ``nn.Conv2d`` on one thread.

    Args:
        weight: (out_channels, C).
        bias: (out_channels,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().t().contiguous())  # (C, out_channels)
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class InPlacePATConv(nn.Module):
    """PATConv of one size and channel gates that writes both parts into one tensor, (B, C, H, W) → (B, C, H, W).

    For eager PyTorch, where a concatenation is one more pass over the map.

    Args:
        conv: Convolution of the convolved channels that keeps their number and resolution.
        attn: Gate of the others, with a method ``gate`` that gives (B, channels, 1, 1).
        conv_channels: Number of convolved channels.
        conv_first: Whether they are the leading ones.
    """

    def __init__(self, conv: nn.Conv2d, attn: nn.Module, conv_channels: int, conv_first: bool) -> None:
        super().__init__()
        self.conv, self.attn = conv, attn
        self.conv_channels, self.conv_first = conv_channels, conv_first
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        to_convolve, to_attend = self._split(x)
        gate = self.attn.gate(to_attend)  # type: ignore[operator]
        if not may_write_in_place():
            parts = (self.conv(to_convolve), to_attend * gate)
            return torch.cat(parts if self.conv_first else parts[::-1], 1)
        out = torch.empty_like(x)
        convolved, attended = self._split(out)
        convolved.copy_(self.conv(to_convolve))
        torch.mul(to_attend, gate, out=attended)
        return out

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Convolved and attended channels."""
        others = x.shape[1] - self.conv_channels
        first = self.conv_channels if self.conv_first else others
        leading, trailing = x[:, :first], x[:, first:]
        return (leading, trailing) if self.conv_first else (trailing, leading)


class TokenNorm(nn.Module):
    """A normalisation of tokens, (B, N, C), on a map, (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class MapNorm(nn.Module):
    """LayerNorm over channels, without affine, written out on the map, (B, C, H, W) → (B, C, H, W).

    For OpenVINO, which lays the whole block out anew if the norm's input is transposed.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        return x * torch.rsqrt((x * x).mean(1, keepdim=True) + self.eps)


class MapSelfAttention(nn.Module):
    """Self-attention whose dense layers are 1×1 convolutions on the map, (B, C, H, W) → (B, C, H, W).

    For onnxruntime and OpenVINO: their convolutions are faster than their dense layers on few tokens, and heads are
    then cut out of the map without transposing. Three separate convolutions save the split of one.

    Args:
        norm: Normalisation of the map.
        qkv: Dense layer to queries, keys and values; the scale of the logits is in its weight.
        proj: Dense layer of the output.
        position_bias: Layer that gives the bias, (heads, N, N), of (H, W); or None.
        num_heads: Number of heads.
    """

    def __init__(
        self, norm: nn.Module, qkv: nn.Linear, proj: nn.Linear, position_bias: nn.Module | None, num_heads: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm
        weights, biases = qkv.weight.detach().chunk(3), qkv.bias.detach().chunk(3)
        self.query, self.key, self.value = (
            _pointwise(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.position_bias = position_bias
        self.proj = _pointwise(proj.weight.detach(), None if proj.bias is None else proj.bias.detach())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.norm(x)
        query, key, value = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        logits = query.transpose(-2, -1) @ key
        if self.position_bias is not None:
            logits = logits + self.position_bias(*size)
        x = value @ logits.softmax(-1).transpose(-2, -1)
        return self.proj(x.flatten(1, 2).unflatten(2, size))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, heads, C / heads, N)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1))


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A 1×1 convolution of a dense layer's weight, (out, in)."""
    like = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device="meta")
    return with_weights(like, weight[:, :, None, None], bias)


class SplitSpatialGate(nn.Module):
    """PAT_sp's gate on the leading channels alone, (B, C, H, W) → (B, C, H, W).

    For onnxruntime: split and concatenation cost it less than a gate for all channels, of which half are not gated.

    Args:
        conv: 1×1 convolution of the gated channels to one, without bias.
        scale: Scale behind the gate, (number of gated channels,).
        shift: Shift behind the gate, (number of gated channels,).
    """

    def __init__(self, conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.scale = nn.Parameter(scale.detach()[:, None, None].clone())
        self.shift = nn.Parameter(shift.detach()[:, None, None].clone())
        self.eval()

    def forward(self, y: Tensor) -> Tensor:
        gated = self.scale.shape[0]
        attended, passed = torch.split(y, [gated, y.shape[1] - gated], 1)
        gate = F.hardsigmoid(self.conv(attended)) * self.scale
        return torch.cat((attended * gate + self.shift, passed), 1)


class PositionGate(nn.Module):
    """PAT_sp's gate on positions, (positions, C) → (positions, C); without autograd it overwrites its input.

    Arguments as those of ``SplitSpatialGate``.
    """

    def __init__(self, conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach()[0, :, 0, 0][:, None].contiguous())  # (gated channels, 1)
        self.scale = nn.Parameter(scale.detach().clone())
        self.shift = nn.Parameter(shift.detach().clone())
        self.eval()

    def forward(self, y: Tensor) -> Tensor:
        gated = self.scale.shape[0]
        attended = y[:, :gated]
        gate = F.hardsigmoid(torch.mm(attended, self.weight)) * self.scale
        if may_write_in_place():
            torch.addcmul(self.shift, attended, gate, out=attended)
            return y
        return torch.cat((torch.addcmul(self.shift, attended, gate), y[:, gated:]), 1)


class TokenSelfAttention(nn.Module):
    """Self-attention on tokens for eager PyTorch in the channels_last layout, (B, C, H, W) → (B, C, H, W).

    Args:
        norm: LayerNorm over channels, applied to tokens, (B, N, C); or Identity.
        qkv: Dense layer to queries, keys and values; the scale of the logits is in its weight.
        proj: Dense layer of the output.
        position_bias: Layer that gives the bias, (heads, N, N), of (H, W); or None.
        num_heads: Number of heads.
    """

    def __init__(
        self, norm: nn.Module, qkv: nn.Linear, proj: nn.Linear, position_bias: nn.Module | None, num_heads: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm
        self.qkv = PositionwiseLinear(qkv.weight, qkv.bias)
        self.position_bias = position_bias
        self.proj = PositionwiseLinear(proj.weight, proj.bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x.permute(0, 2, 3, 1)).reshape(-1, channels)  # (B·N, C)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, C / heads) each
        logits = query @ key.transpose(-2, -1)
        if self.position_bias is not None:
            logits = logits + self.position_bias(height, width)
        tokens = (logits.softmax(-1) @ value).transpose(1, 2).reshape(-1, channels)
        return self.proj(tokens).view(batch, height, width, channels).permute(0, 3, 1, 2)
