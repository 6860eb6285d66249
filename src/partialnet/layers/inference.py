"""Folded layers in the form that one runtime runs fastest; every form computes the same function.

onnxruntime makes one pass over memory for each elementwise operation, OpenVINO fuses them, and eager PyTorch pays for
every call and every temporary tensor. ``partialnet.fold(..., runtime=...)`` puts these layers in.
"""

from __future__ import annotations

import copy
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
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


class PointwiseConv(nn.Module):
    """1×1 convolution as one matrix product over all positions, (B, C, H, W) → (B, out_channels, H, W).

    In the channels_last layout it needs no copies. With the weight stored transposed, few positions take about 4/5 of
    the time of ``nn.Conv2d`` on one thread.

    Args:
        conv: A 1×1 convolution without stride, padding and groups.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()[:, :, 0, 0]
        bias = weight.new_zeros(weight.shape[0]) if conv.bias is None else conv.bias.detach().clone()
        self.weight = nn.Parameter(weight.t().contiguous())  # (C, out_channels)
        self.bias = nn.Parameter(bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        positions = x.permute(0, 2, 3, 1).reshape(-1, channels)
        out = torch.addmm(self.bias, positions, self.weight)
        return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


class MapSelfAttention(nn.Module):
    """Self-attention whose dense layers are 1×1 convolutions on the map, (B, C, H, W) → (B, C, H, W).

    For onnxruntime and OpenVINO: their convolutions are faster than their dense layers on few tokens, and heads are
    then cut out of the map without transposing. Three separate convolutions save the split of one.

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
        weights, biases = qkv.weight.detach().chunk(3), qkv.bias.detach().chunk(3)
        self.query, self.key, self.value = (
            _pointwise(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.position_bias = position_bias
        self.proj = _pointwise(proj.weight.detach(), None if proj.bias is None else proj.bias.detach())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, size)
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

    Split and concatenation cost onnxruntime less than a gate for all channels, of which half are not gated. In eager
    PyTorch the gated channels are written in place: the input is overwritten.

    Args:
        conv: 1×1 convolution of the gated channels to one.
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
        if may_write_in_place():
            attended = y[:, :gated]
            torch.addcmul(self.shift, attended, self._gate(attended), out=attended)
            return y
        attended, passed = torch.split(y, [gated, y.shape[1] - gated], 1)
        return torch.cat((attended * self._gate(attended) + self.shift, passed), 1)

    def _gate(self, attended: Tensor) -> Tensor:
        return F.hardsigmoid(self.conv(attended)) * self.scale


def copy_with(module: nn.Module, **children: nn.Module) -> nn.Module:
    """A shallow copy of ``module`` with some children replaced."""
    changed = copy.copy(module)
    changed._modules = {**module._modules, **children}
    return changed
