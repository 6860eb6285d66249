"""Spatial gate: one weight per position, computed from that position's channels; and its forms at inference.

PAT_sp folds into the MLP before it, so its folded gate sees the MLP's outputs and gates the leading ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partialnet.arguments import check_count

from .affine import ChannelAffine, batch_norm_affine, can_be_folded, with_weights
from .inference import Runtime, clipped_sigmoid
from .partial_attention import PartialAttention, copy_kept_norm


class SpatialGate(PartialAttention):
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

    def __init__(
        self,
        channels: int,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        self.conv = nn.Conv2d(channels, 1, 1, bias=False, device=device, dtype=dtype)
        self.norm: nn.Module = nn.BatchNorm2d(channels, device=device, dtype=dtype) if normalize else nn.Identity()

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.norm(x * self.gate(x, keep))

    def gate(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Weight of each position, (B, 1, H, W), in [0, 1]."""
        seen = x if keep is None else x * keep[:, None, None]
        return F.hardsigmoid(self.conv(seen))

    @torch.jit.ignore
    def settings(self) -> dict[str, Any]:
        return {"normalize": not isinstance(self.norm, nn.Identity)}

    def _copy_kept(self, selected: SpatialGate, kept: Tensor) -> None:
        selected.conv.weight.copy_(self.conv.weight[:, kept])
        copy_kept_norm(self.norm, selected.norm, kept)

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The same function at inference without BatchNorm; the layer itself if one of its parts was replaced."""
        if not can_be_folded(self.conv, self.norm):
            return self
        gate = copy.deepcopy(self)
        if not isinstance(self.norm, nn.Identity):
            gate.norm = ChannelAffine(*batch_norm_affine(self.norm, self.conv.weight[0, :, 0, 0]))
        return gate.eval()


class FoldedSpatialGate(nn.Module):
    """PAT_sp's gate with its BatchNorm, over all channels at once; (B, C, H, W) → (B, C, H, W).

    Args:
        gate: Gate of the leading channels.
        channels: Number of all channels C.
    """

    def __init__(self, gate: SpatialGate, channels: int) -> None:
        super().__init__()
        row = gate.conv.weight.detach()[:, :, 0, 0]  # (1, number of gated channels)
        scale, shift = batch_norm_affine(gate.norm, row[0])
        padding = (0, channels - row.shape[1])
        self.conv = with_weights(gate.conv, F.pad(row, padding)[:, :, None, None], None)
        self.gated = nn.Parameter(F.pad(scale, padding)[:, None, None])
        # no annotation of the class: TorchScript cannot read those of a file that postpones them
        self.passed = nn.Buffer(F.pad(torch.zeros_like(scale), padding, value=1.0)[:, None, None])
        self.shift = nn.Parameter(F.pad(shift, padding)[:, None, None])
        self.hard_sigmoid: Callable[[Tensor], Tensor] = F.hardsigmoid

    def forward(self, y: Tensor) -> Tensor:
        return y * (self.passed + self.gated * self.hard_sigmoid(self.conv(y))) + self.shift

    @torch.jit.ignore
    def for_runtime(self, runtime: Runtime) -> nn.Module:
        """The form that suits a runtime; OpenVINO fuses this one into a single pass."""
        if runtime != "openvino":
            return self
        gate = copy.deepcopy(self)
        gate.hard_sigmoid = clipped_sigmoid
        return gate

    def split_gate(self, fc2: nn.Conv2d) -> SplitSpatialGate:
        """The same gate together with the convolution before it."""
        return SplitSpatialGate(fc2, *self._gated())

    def position_gate(self, fc2: nn.Conv2d) -> tuple[nn.Conv2d, PositionGate]:
        """The convolution before the gate, and the same gate on a matrix of positions."""
        conv, scale, shift = self._gated()
        fc2, conv, left = _absorb_gate_scale(fc2, conv, scale)
        return fc2, PositionGate(conv, left, shift)

    def _gated(self) -> tuple[nn.Conv2d, Tensor, Tensor]:
        """Convolution, scale, (gated channels,), and shift, (gated channels,), of the gated channels alone."""
        gated = int((self.passed == 0).sum())
        weight = self.conv.weight.detach()[:, :gated]
        return with_weights(self.conv, weight, None), self.gated[:gated, 0, 0], self.shift[:gated, 0, 0]


class SplitSpatialGate(nn.Module):
    """The MLP's second convolution and PAT_sp's gate on its leading outputs, (B, hidden, H, W) → (B, C, H, W).

    For onnxruntime, where a gate for all channels, of which half are not gated, costs more than a concatenation, and
    two convolutions less than one and a split; and for LiteRT, which transposes the whole map for the other gate.

    Args:
        fc: 1×1 convolution whose leading outputs are gated.
        conv: 1×1 convolution of the gated channels to one, without bias.
        scale: Scale behind the gate, (number of gated channels,).
        shift: Shift behind the gate, (number of gated channels,).
    """

    def __init__(self, fc: nn.Conv2d, conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        fc, conv, left = _absorb_gate_scale(fc, conv, scale.detach())
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


class PositionGate(nn.Module):
    """PAT_sp's gate on positions, (positions, C) → (positions, C).

    Args:
        conv: 1×1 convolution of the gated channels, the leading ones, to one, without bias.
        scale: Scale behind the gate, (number of gated channels,); None if the layers before have absorbed it.
        shift: Shift behind the gate, (number of gated channels,).
    """

    def __init__(self, conv: nn.Conv2d, scale: Tensor | None, shift: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach()[0, :, 0, 0][:, None].contiguous())  # (gated channels, 1)
        self.scale = None if scale is None else nn.Parameter(scale.detach().clone())
        self.shift = nn.Parameter(shift.detach().clone())
        self.gated_channels = len(shift)
        self.eval()

    def forward(self, y: Tensor) -> Tensor:
        attended = y[:, : self.gated_channels]
        gate = F.hardsigmoid(torch.mm(attended, self.weight))
        if self.scale is not None:
            gate = gate * self.scale
        return torch.cat((torch.addcmul(self.shift, attended, gate), y[:, self.gated_channels :]), 1)

    def in_place(self, y: Tensor) -> Tensor:
        """The same written into ``y``, without autograd."""
        parameters: dict[str, Any] = self._parameters  # for speed; ``eager`` says why
        attended = y.narrow(1, 0, self.gated_channels)
        gate = F.hardsigmoid(torch.mm(attended, parameters["weight"]), inplace=True)
        scale = parameters.get("scale")
        if scale is not None:
            gate = gate * scale
        torch.addcmul(parameters["shift"], attended, gate, out=attended)
        return y


def _absorb_gate_scale(fc: nn.Conv2d, conv: nn.Conv2d, scale: Tensor) -> tuple[nn.Conv2d, nn.Conv2d, Tensor | None]:
    """PAT_sp's ``fc`` and ``conv`` with the scale behind the gate in them, and None; or the same and the scale.

    Where the scale is (nearly) 0 in a channel, it has to stay: the channel's part in the gate would be lost.
    """
    if scale.abs().min() <= 1e-3 * scale.abs().max():
        return fc, conv, scale
    rows = F.pad(scale, (0, fc.out_channels - len(scale)), value=1.0)
    bias = None if fc.bias is None else fc.bias.detach() * rows
    fc = with_weights(fc, fc.weight.detach() * rows[:, None, None, None], bias)
    return fc, with_weights(conv, conv.weight.detach() / scale[:, None, None], None), None
