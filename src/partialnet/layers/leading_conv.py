"""Convolution of a block of leading channels that knows what convolving other channels would change.

A searched layer needs the gradient of its channel mask, also for channels that are not convolved. The mask is binary,
so most of a masked dense convolution multiplies by zero: what remains are the block itself, forward and backward, and
for the mask the kernels' gradients in the rows and columns that the block shares with the other channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from .layout import dense


class LeadingConv2d(nn.Conv2d):
    """``m·conv(m·x) + (1 − m)·rest`` for a mask m of zeros and ones, from C to C channels, without bias and groups.

    All inputs have their gradients, the mask too, as if it were a product with each channel. It is a layer of its own,
    and the features its only positional input, so that hooks see what they see of any convolution, and those that
    compute its weight are called.

    Shape:
        ``forward(x, mask=…, ones=…, rest=…)`` with features and ``rest``, (B, C, H, W), and ``mask``, (C,), floating
        point → (B, C, H, W).
    """

    def forward(  # type: ignore[override]
        self, input: Tensor, *, mask: Tensor, ones: tuple[int, bool] | None, rest: Tensor | None
    ) -> Tensor:
        """Convolve the channels at 1.

        Args:
            input: Features.
            mask: m.
            ones: Number of ones in the mask, at least 1, and whether they lead; None if nobody can know, as while a
                compiler records: then all channels are convolved.
            rest: What the channels at 0 become; None passes ``input`` through.
        """
        if ones is None:
            weight = self.weight * torch.outer(mask, mask)[:, :, None, None]
            convolved = self._conv_forward(input, weight, None)
            rest = input if rest is None else rest
            return torch.addcmul(convolved, rest, (1 - mask)[:, None, None].to(rest.dtype))
        width, lead = ones
        if lead:
            return self._convolve(input, self.weight, mask, width, rest)
        # sort the channels and put them back
        order = mask.detach().argsort(descending=True, stable=True)
        weight = self.weight.index_select(0, order).index_select(1, order)
        rest = None if rest is None else rest.index_select(1, order)
        y = self._convolve(input.index_select(1, order), weight, mask[order], width, rest)
        return y.index_select(1, order.argsort())

    def _convolve(self, x: Tensor, weight: Tensor, mask: Tensor, width: int, rest: Tensor | None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # the function below is out of its reach
            x, weight = (value.to(torch.get_autocast_dtype(x.device.type)) for value in (x, weight))
        y: Tensor = _LeadingConv.apply(x, weight, mask, rest, width, self.padding, self.dilation)
        return y


class _LeadingConv(torch.autograd.Function):
    """``LeadingConv2d`` where the ones of the mask lead, ``width`` of them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        rest: Tensor | None,
        width: int,
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask, rest)
        ctx.width, ctx.geometry = width, {"padding": padding, "dilation": dilation}
        y = F.conv2d(x[:, :width], weight[:width, :width], None, **ctx.geometry)
        return y if width == x.shape[1] else torch.cat((y, (x if rest is None else rest)[:, width:]), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask, rest = ctx.saved_tensors
        width, geometry = ctx.width, ctx.geometry
        (grad,) = grads
        leading, others = (dense(part.to(x.dtype)) for part in grad.tensor_split([width], 1))
        x_leading, x_others = (dense(part) for part in x.tensor_split([width], 1))
        block = weight[:width, :width]

        grad_x = conv2d_input(x_leading.shape, block, leading, **geometry)
        grad_weight = conv2d_weight(x_leading, block.shape, leading, **geometry)
        # sums over kernels and maps are the mask's own in precision: float16 would overflow
        products = (grad_weight * block).sum((2, 3), dtype=mask.dtype)
        if width < x.shape[1]:
            grad_x = torch.cat((grad_x, others if rest is None else torch.zeros_like(others)), 1)
            grad_weight = F.pad(grad_weight, (0, 0, 0, 0, *(0, x.shape[1] - width) * 2))

        grad_rest = grad_mask = None
        if rest is not None and ctx.needs_input_grad[3]:
            grad_rest = grad.clone()
            grad_rest[:, :width] = 0
        if ctx.needs_input_grad[2]:
            # of channel i by its output: <gradient, conv_i − rest_i>; as an input: what its column of kernels adds
            below, right = weight[width:, :width], weight[:width, width:]
            as_output, as_input = [products.sum(1)], [products.sum(0)]
            if width < x.shape[1]:
                of_rows = conv2d_weight(x_leading, below.shape, others, **geometry) * below
                of_columns = conv2d_weight(x_others, right.shape, leading, **geometry) * right
                as_output.append(of_rows.sum((1, 2, 3), dtype=mask.dtype))
                as_input.append(of_columns.sum((0, 2, 3), dtype=mask.dtype))
            passed = (grad * (x if rest is None else rest)).sum((0, 2, 3), dtype=mask.dtype)
            grad_mask = torch.cat(as_output) + torch.cat(as_input) - passed
        return grad_x, grad_weight, grad_mask, grad_rest, None, None, None
