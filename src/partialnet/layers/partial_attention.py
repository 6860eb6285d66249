"""What our attentions have in common, so that a search can vary how many channels they attend over."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn


class PartialAttention(nn.Module):
    """An attention, (B, C, H, W) → (B, C, H, W), over any part of its channels: masked, or cut out for good.

    ``forward(x, keep=None)`` attends over the channels at 1 in ``keep``, (C,), zeros and ones, differentiable. What it
    returns for the channels at 0 has no meaning beyond a gradient for ``keep``; for the others it returns what the
    cut-out layer does: ``attention(x, keep)[:, kept]`` equals ``attention.select(kept)(x[:, kept])``.

    A further attention is a subclass in a file of its own, and a name in ``ATTENTIONS``. Any other module can attend in
    a ``PATConv``, but cannot be searched.
    """

    @property
    @torch.jit.unused
    def subset_step(self) -> int:
        """What the number of kept channels must be a multiple of."""
        return 1

    @torch.jit.ignore
    def settings(self) -> dict[str, Any]:
        """Arguments that, with a number of channels, build another of its kind."""
        raise NotImplementedError

    @torch.jit.ignore
    def select(self, kept: Tensor) -> Self:
        """A copy for the channels ``kept``, sorted indices, int64."""
        weight = next(self.parameters())
        selected = type(self)(len(kept), **self.settings(), device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self._copy_kept(selected, kept)
        return selected.train(self.training)

    def _copy_kept(self, selected: Self, kept: Tensor) -> None:
        """Copy the parameters and statistics of the channels ``kept`` into the layer ``selected``."""
        raise NotImplementedError


def copy_kept_norm(source: nn.Module, target: nn.Module, kept: Tensor) -> None:
    """Affine and running statistics of the kept channels, and the settings that shape the update."""
    for name, tensor in source.state_dict().items():
        target.state_dict()[name].copy_(tensor[kept] if tensor.ndim else tensor)
    for name in ("eps", "momentum"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
