"""Spatial gate: one weight per position, computed from that position's channels."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .affine import ChannelAffine, batch_norm_affine


class SpatialGate(nn.Module):
    """Weight every position by a function of its channels, then normalise; the attention of PAT_sp.

    ``BN(x · hard_sigmoid(w·x))`` with a 1×1 convolution w to a single channel, without bias.

    Args:
        channels: Number of channels C.
        normalize: Apply the BatchNorm after the gate.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, C, H, W) → (B, C, H, W). ``forward(x, keep)`` with ``keep``, (C,), of zeros and ones weights positions by
        the channels at 1 alone.

    Source: paper, Sec. 3.1 (PAT_sp), Figs. 3c and 8.

    Example:
        >>> SpatialGate(32)(torch.rand(2, 32, 7, 7)).shape
        torch.Size([2, 32, 7, 7])
    """

    def __init__(self, channels: int, normalize: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, bias=False, device=device, dtype=dtype)
        self.norm: nn.Module = nn.BatchNorm2d(channels, device=device, dtype=dtype) if normalize else nn.Identity()

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.norm(x * self.gate(x, keep))

    def gate(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Weight of each position, (B, 1, H, W), in [0, 1]."""
        seen = x if keep is None else x * keep[:, None, None]
        return F.hardsigmoid(self.conv(seen))

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The same function at inference without BatchNorm."""
        gate = copy.deepcopy(self)
        if not isinstance(self.norm, nn.Identity):
            gate.norm = ChannelAffine(*batch_norm_affine(self.norm, self.conv.weight[0, :, 0, 0]))
        return gate.eval()
