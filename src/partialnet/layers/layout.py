"""Split and concatenate channels without losing the fast memory layout.

A slice of a feature map along its channels is a strided view. PyTorch's CPU BatchNorm falls back to a scalar loop on
such views, forward and backward, which is up to 9 times slower than the vectorised kernel on a dense copy. The
functions ``dense`` and ``concat_channels`` place the copies, which cost little, where a normalisation needs them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def dense(x: Tensor) -> Tensor:
    """Copy a channel slice, (B, C, H, W), into dense memory of the layout it was cut from; no copy if it is dense.

    ``torch.func.vmap`` knows one layout only.
    """
    if x.stride(1) == 1:
        one_layout = False
        if not torch.jit.is_scripting():
            one_layout = not torch.compiler.is_compiling() and is_transformed()
        if not one_layout:
            return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


class _Concat(torch.autograd.Function):
    """``torch.cat`` along channels whose backward returns dense gradients instead of strided views."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, first: Tensor, second: Tensor) -> Tensor:
        ctx.sizes = [first.shape[1], second.shape[1]]  # type: ignore[attr-defined]
        return torch.cat((first, second), 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        first, second = torch.split(grads[0], ctx.sizes, 1)  # type: ignore[attr-defined]
        return dense(first), dense(second)


def is_recorded() -> bool:
    """Whether a compiler or an exporter records which operations are called."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is active, which only know PyTorch's own operations."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def takes_plain_operations() -> bool:
    """Whether to use plain operations: custom autograd functions do not suit recording or transforms, nor no_grad."""
    return is_recorded() or not torch.is_grad_enabled() or is_transformed()


def concat_channels(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate (B, C1, H, W) and (B, C2, H, W) to (B, C1 + C2, H, W); gradients arrive dense in eager mode."""
    if torch.jit.is_scripting():
        return torch.cat((first, second), 1)
    if takes_plain_operations():
        return torch.cat((first, second), 1)
    return _concat(first, second)


@torch.jit.ignore
def _concat(first: Tensor, second: Tensor) -> Tensor:
    return _Concat.apply(first, second)
