"""Folded layers in the form that onnxruntime or OpenVINO runs fastest; every form computes the same function.

onnxruntime makes one pass over memory for each elementwise operation, OpenVINO fuses them.
``partialnet.fold(..., runtime=...)`` puts these layers in; those for eager PyTorch are in ``eager``, and an attention's
form stands beside the attention.
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


def pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A 1×1 convolution of a dense layer's weight, (out, in)."""
    like = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device="meta")
    return with_weights(like, weight[:, :, None, None], bias)


def clipped_sigmoid(x: Tensor) -> Tensor:
    """The hard sigmoid in the form that OpenVINO knows and fuses into the convolution before it."""
    return F.relu6(x + 3) / 6


def absorb_gate_scale(fc: nn.Conv2d, conv: nn.Conv2d, scale: Tensor) -> tuple[nn.Conv2d, nn.Conv2d, Tensor | None]:
    """PAT_sp's ``fc`` and ``conv`` with the scale behind the gate in them, and None; or the same and the scale.

    Where the scale is (nearly) 0 in a channel, it has to stay: the channel's part in the gate would be lost.
    """
    if scale.abs().min() <= 1e-3 * scale.abs().max():
        return fc, conv, scale
    rows = F.pad(scale, (0, fc.out_channels - len(scale)), value=1.0)
    bias = None if fc.bias is None else fc.bias.detach() * rows
    fc = with_weights(fc, fc.weight.detach() * rows[:, None, None, None], bias)
    return fc, with_weights(conv, conv.weight.detach() / scale[:, None, None], None), None


class SplitSpatialGate(nn.Module):
    """The MLP's second convolution and PAT_sp's gate on its leading outputs, (B, hidden, H, W) → (B, C, H, W).

    For onnxruntime, where a gate for all channels, of which half are not gated, costs more than a concatenation, and
    two convolutions less than one and a split.

    Args:
        fc: 1×1 convolution whose leading outputs are gated.
        conv: 1×1 convolution of the gated channels to one, without bias.
        scale: Scale behind the gate, (number of gated channels,).
        shift: Shift behind the gate, (number of gated channels,).
    """

    def __init__(self, fc: nn.Conv2d, conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        fc, conv, left = absorb_gate_scale(fc, conv, scale.detach())
        self.scale = None if left is None else nn.Parameter(left[:, None, None].clone())
        sizes = [len(scale), fc.out_channels - len(scale)]
        bias = fc.weight.new_zeros(sum(sizes)) if fc.bias is None else fc.bias.detach()
        attended, passed = zip(fc.weight.detach().split(sizes), bias.split(sizes), strict=True)
        self.attended = with_weights(fc, *attended)
        self.passed = with_weights(fc, *passed) if sizes[1] else None
        self.conv = conv
        self.shift = nn.Parameter(shift.detach()[:, None, None].clone())
        self.eval()

    def forward(self, hidden: Tensor) -> Tensor:
        attended = self.attended(hidden)
        gate = F.hardsigmoid(self.conv(attended))
        if self.scale is not None:
            gate = gate * self.scale
        gated = attended * gate + self.shift
        return gated if self.passed is None else torch.cat((gated, self.passed(hidden)), 1)
