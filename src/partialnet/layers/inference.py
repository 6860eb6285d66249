"""Folded layers in the form that a runtime outside PyTorch runs best; every form computes the same function.

onnxruntime makes one pass over memory for each elementwise operation, OpenVINO fuses them. LiteRT keeps channels last,
and transposes maps before and behind whatever sees them otherwise than as maps.
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
Runtime = Literal["torch", "onnxruntime", "openvino", "litert"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnxruntime", "openvino", "litert")


class TokenNorm(nn.Module):
    """A normalisation of tokens on a map, (B, C, H, W) → (B, C, H, W).

    Args:
        norm: Takes and gives tokens, (B, N, C).
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class MapNorm(nn.Module):
    """LayerNorm over channels, without affine, written out on the map, (B, C, H, W) → (B, C, H, W).

    For OpenVINO, which lays the whole block out anew if the norm's input is transposed, and LiteRT, which would
    transpose twice.
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
    """The hard sigmoid of each value, in the form that OpenVINO knows and fuses into the convolution before it."""
    return F.relu6(x + 3) / 6
