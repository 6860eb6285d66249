"""A scale and a shift per channel: what BatchNorm is at inference, and how convolutions absorb it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAffine(nn.Module):
    """``x * scale + shift`` with one scale and one shift for each channel, (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale[:, None, None].clone())
        self.shift = nn.Parameter(shift[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def batch_norm_affine(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, both (C,), of a BatchNorm at inference; of Identity 1 and 0, shaped like ``like``, (C,).

    Raises:
        ValueError: ``norm`` is in training mode, keeps no running statistics, or is no BatchNorm.
    """
    if isinstance(norm, nn.Identity):
        return torch.ones_like(like), torch.zeros_like(like)
    if isinstance(norm, ChannelAffine):
        return norm.scale.detach().flatten(), norm.shift.detach().flatten()
    if norm.training:
        raise ValueError(
            "A network in training mode cannot be folded, its statistics still change. Call .eval() first."
        )
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        raise ValueError(f"{type(norm).__name__} has no running statistics and cannot be folded.")
    scale = torch.rsqrt(variance + float(norm.eps))  # type: ignore[arg-type]
    shift = -mean * scale
    if isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor):
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return scale.detach(), shift.detach()


def with_weights(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution of ``conv``'s geometry with other weights; channel counts follow from the weight."""
    folded = nn.Conv2d(
        weight.shape[1] * conv.groups,
        weight.shape[0],
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        bias is not None,
        conv.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    folded.weight.data.copy_(weight)
    if bias is not None and folded.bias is not None:
        folded.bias.data.copy_(bias)
    return folded.eval()


def fold_output_affine(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """The convolution that gives ``conv(x) * scale + shift``; scale and shift are (out_channels,)."""
    weight = conv.weight.detach() * scale[:, None, None, None]
    bias = shift if conv.bias is None else conv.bias.detach() * scale + shift
    return with_weights(conv, weight, bias)


def fold_input_affine(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """The convolution that gives ``conv(x * scale + shift)``; scale and shift are (in_channels,).

    Exact for a 1×1 convolution without padding; with padding the shift would be missing at the border.

    Raises:
        ValueError: ``conv`` is padded or grouped.
    """
    if any(conv.padding) or conv.groups != 1:
        raise ValueError("Only a convolution without padding and groups can absorb a shift of its input.")
    weight = conv.weight.detach()
    bias = torch.einsum("oihw,i->o", weight, shift)
    if conv.bias is not None:
        bias = bias + conv.bias.detach()
    return with_weights(conv, weight * scale[None, :, None, None], bias)


def fold_batch_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """The convolution that gives ``norm(conv(x))`` at inference."""
    return fold_output_affine(conv, *batch_norm_affine(norm, conv.weight[:, 0, 0, 0]))
