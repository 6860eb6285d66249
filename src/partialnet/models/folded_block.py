"""PartialNet's block at inference: folded, and in the forms that runtimes are fastest with.

Source: paper, Sec. 3.1 and Fig. 8.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from partialnet.layers.eager import (
    EagerPATConv,
    PositionwiseLinear,
    activate_in_place,
    cached_parts,
    map_of,
    may_write_in_place,
    pass_bias_on,
    positions_of,
    rows_of,
)
from partialnet.layers.inference import Runtime
from partialnet.layers.spatial_gate import FoldedSpatialGate, PositionGate


class FoldedPartialNetBlock(nn.Module):
    """``PartialNetBlock`` at inference.

    With y the output of the MLP, into whose second convolution PAT_sp's is merged, and a the gate:
    ``x + y · (passed + gated · a) + shift``. ``gated`` is the scale of the BatchNorm behind the gate on gated channels
    and 0 elsewhere, ``passed`` is 1 on the other channels. Runtimes fuse this form into one pass, without the split and
    concatenation of PAT_sp.

    Args:
        mixer: Mixes positions.
        fc1: First convolution of the MLP, with its BatchNorm.
        act: Its activation.
        fc2: Its second convolution, with PAT_sp's.
        gate: What follows the MLP: PAT_sp's gate, or another attention.
        mixer_residual: Whether the mixer has a residual connection of its own.

    Source: paper, Sec. 3.1 (PAT_sp merges into the MLP); the algebra is ours.
    """

    def __init__(
        self,
        mixer: nn.Module,
        fc1: nn.Conv2d,
        act: nn.Module,
        fc2: nn.Conv2d,
        gate: nn.Module,
        mixer_residual: bool,
    ) -> None:
        super().__init__()
        self.mixer_residual = mixer_residual
        self.mixer, self.fc1, self.act, self.fc2, self.gate = mixer, fc1, act, fc2, gate
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(x)
        if self.mixer_residual:
            x = x + mixed
            mixed = x
        return x + self.gate(self.fc2(self.act(self.fc1(mixed))))

    @torch.jit.ignore
    def for_runtime(self, runtime: Runtime) -> nn.Module:
        """The form that suits a runtime."""
        if runtime == "torch" and isinstance(self.gate, (FoldedSpatialGate, nn.Identity)):
            return EagerPartialNetBlock(self)
        if runtime in ("onnxruntime", "litert") and isinstance(self.gate, FoldedSpatialGate):
            split = copy.copy(self)  # its second convolution gates, too
            split._modules = {**self._modules, "fc2": self.gate.split_gate(self.fc2), "gate": nn.Identity()}
            return split
        return self


class EagerPartialNetBlock(nn.Module):
    """``FoldedPartialNetBlock`` for eager PyTorch, (B, C, H, W) → (B, C, H, W).

    The MLP and PAT_sp's gate see a map in the channels_last layout as a matrix of positions, which takes neither copies
    nor PyTorch's slow 1×1 convolution. Without autograd they write in place and, on the CPU, go through it part by
    part, so that a part's hidden features are still in the cache when the next layer reads them. Hooks that
    the block's parts are given are then passed over; with hooks on its parts, a block does not take this form.
    """

    def __init__(self, block: FoldedPartialNetBlock) -> None:
        super().__init__()
        self.mixer_residual = block.mixer_residual
        self.mixer = block.mixer
        fc2, self.gate = block.fc2, block.gate
        if isinstance(block.gate, FoldedSpatialGate):
            fc2, self.gate = block.gate.position_gate(fc2)
        self.fc1, self.act, self.fc2 = _positionwise(block.fc1), block.act, _positionwise(fc2)
        if type(self.act) is nn.ReLU:
            self.fc1, self.act, self.fc2 = pass_bias_on(self.fc1, self.fc2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if may_write_in_place(x):
            return self._in_place(x)
        mixed = self.mixer(x)
        if self.mixer_residual:
            x = mixed = mixed + x
        return map_of(self.gate(self.fc2(self.act(self.fc1(positions_of(mixed))))) + positions_of(x), x)

    def _in_place(self, x: Tensor) -> Tensor:
        modules: dict[str, Any] = self._modules  # for speed; ``layers.eager`` says why
        mixer, gate = modules["mixer"], modules["gate"]
        fc1, act, fc2 = modules["fc1"], modules["act"], modules["fc2"]
        mixed = mixer.in_place(x) if isinstance(mixer, EagerPATConv) else mixer(x)
        if self.mixer_residual:
            x = mixed.add_(x)
        positions, residual = positions_of(mixed), positions_of(x)
        y = torch.empty_like(residual)
        for rows in cached_parts(y, fc1.out_features):
            hidden = activate_in_place(act, fc1.product(rows_of(positions, rows)))
            part = fc2.product(hidden, out=rows_of(y, rows))
            if isinstance(gate, PositionGate):
                gate.in_place(part)
            part.add_(rows_of(residual, rows))
        return map_of(y, x)


def _positionwise(conv: nn.Conv2d) -> PositionwiseLinear:
    return PositionwiseLinear(conv.weight[:, :, 0, 0], conv.bias)
