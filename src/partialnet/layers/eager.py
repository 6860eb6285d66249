"""Folded layers in the form that eager PyTorch runs fastest; every form computes the same function.

Calls are expensive. On the CPU a matrix product leaves little of Python and PyTorch in the caches, so that with one
image and a small network the calls take much of the time. On a GPU every call is a kernel, and most kernels do nothing
but read and write a map; a matrix product also adds its bias, where a convolution needs a second kernel.

So these layers have a method ``in_place``, for use without autograd, autocast and compilers. It writes into existing
tensors and calls no modules, so their hooks do not run. It reads ``_modules`` and ``_parameters`` directly, which saves
the Python function by which ``nn.Module`` looks attributes up.

``partialnet.fold(..., runtime="torch")`` puts these layers in; an attention's form stands beside the attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeGuard

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad

from .affine import is_linear_layer

#: Most memory, in bytes, of an intermediate result of positions that are computed together: what a core's cache keeps.
CACHED_BYTES = 1 << 20

#: What a cache fetches and keeps at once, in bytes.
CACHE_LINE = 64


def may_write_in_place(x: Tensor) -> bool:
    """Whether results computed from ``x`` may be written into existing tensors.

    Not under autograd, autocast, a compiler, an exporter or ``torch.func``.
    """
    # called in every block, so the functions of ``layout`` that ask the same are written out
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu")
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def positions_of(x: Tensor) -> Tensor:
    """A map, (B, C, H, W), as a matrix, (B·H·W, C): a view in the channels_last layout, else a copy."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def map_of(positions: Tensor, like: Tensor) -> Tensor:
    """A matrix of positions, (B·H·W, C), as a map, (B, C, H, W), of the batch and size of the map ``like``."""
    return positions.view(like.shape[0], like.shape[2], like.shape[3], positions.shape[1]).permute(0, 3, 1, 2)


def cached_parts(x: Tensor, features: int) -> list[slice | None]:
    """Split positions, (positions, C), into equal parts whose ``features`` fit the CPU threads' caches.

    The result [None] means all positions at once, as on a GPU, which needs many to be busy.
    """
    if x.is_cuda:
        return [None]
    positions = x.shape[0]
    at_once = CACHED_BYTES * torch.get_num_threads() // (features * x.element_size())
    parts = -(-positions // max(at_once, 1))
    if parts <= 1:  # 0 for an empty batch
        return [None]
    step = -(-positions // parts)
    return [slice(start, start + step) for start in range(0, positions, step)]


def rows_of(x: Tensor, rows: slice | None) -> Tensor:
    """``x[rows]``; ``x`` itself, without a call into PyTorch, if ``rows`` is None."""
    return x if rows is None else x[rows]


def activate_in_place(act: nn.Module, x: Tensor) -> Tensor:
    """``act(x)``, written into ``x`` where PyTorch has an in-place form."""
    if type(act) is nn.ReLU:
        return torch.relu_(x)
    if type(act) is BiasedReLU:
        return torch.clamp_min_(x, act.floor)
    if type(act) is nn.GELU and act.approximate == "none":
        # functional.gelu is torch._C._nn.gelu, and has no in-place form
        return torch._C._nn.gelu_(x)  # type: ignore[attr-defined]
    return act(x)


def spread_rows(matrix: Tensor) -> Tensor:
    """The same matrix, (R, C), with an odd number of cache lines from one row to the next.

    With a power of two, the values of a column compete for a few sets of the cache and evict one another, which makes
    products of few positions and many weights slow.
    """
    in_line = max(CACHE_LINE // matrix.element_size(), 1)
    lines = -(-matrix.shape[1] // in_line) | 1
    return matrix.new_zeros(matrix.shape[0], lines * in_line)[:, : matrix.shape[1]].copy_(matrix)


class PositionwiseLinear(nn.Module):
    """A 1×1 convolution as one matrix product over positions, (positions, C) → (positions, out_channels).

    In the channels_last layout a map is such a matrix. With the weight stored transposed, few positions take about 4/5
    of the time of ``nn.Conv2d`` on one thread.

    Args:
        weight: (out_channels, C).
        bias: (out_channels,), or None.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(spread_rows(weight.detach().t()))  # (C, out_channels)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self.out_features = weight.shape[0]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def product(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The same without hooks, written into ``out`` if it is given."""
        parameters: dict[str, Any] = self._parameters  # for speed, see above
        bias = parameters["bias"]
        if bias is None:
            return torch.mm(x, parameters["weight"], out=out)
        return torch.addmm(bias, x, parameters["weight"], out=out)

    # copies and other data types would lose the space between the weight's rows; files do without it

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._spread()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._spread()
        return self

    def _spread(self) -> None:
        if self.weight.is_contiguous():
            self.weight.data = spread_rows(self.weight.data)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            destination[f"{prefix}weight"] = destination[f"{prefix}weight"].contiguous()


class BiasedReLU(nn.Module):
    """ReLU that includes the bias b of the layer before it and leaves b out of its output: ``relu(x + b) − b``.

    That is max(x, −b). ``addmm`` writes the bias to all positions before it adds the product; this saves that pass over
    memory.

    Args:
        bias: (C,), of the last dimension.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.floor = nn.Parameter(-bias.detach())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.floor)


def pass_bias_on(
    fc1: PositionwiseLinear, fc2: PositionwiseLinear
) -> tuple[PositionwiseLinear, nn.Module, PositionwiseLinear]:
    """The two layers and the ReLU between them, with both biases added after the second layer."""
    if fc1.bias is None:
        return fc1, nn.ReLU(), fc2
    bias = fc1.bias.detach()
    behind = bias @ fc2.weight.detach() if fc2.bias is None else torch.addmv(fc2.bias, fc2.weight.t(), bias).detach()
    return (
        PositionwiseLinear(fc1.weight.t(), None),
        BiasedReLU(bias),
        PositionwiseLinear(fc2.weight.t(), behind),
    )


class PatchConv(PositionwiseLinear):
    """A convolution whose patches touch but do not overlap, as one matrix product, (B, C, H, W) → (B, O, H/k, W/k).

    For 1×1 convolutions and patch merging. PyTorch's own convolution rearranges the weight at every call.

    Args:
        conv: Convolution for which ``is_patchwise`` holds.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
        self.in_channels, self.out_channels, self.kernel_size = conv.in_channels, conv.out_channels, conv.kernel_size

    def forward(self, input: Tensor) -> Tensor:  # the name by which a convolution may be called
        x = input
        rows, columns = self.kernel_size
        height, width = x.shape[2] // rows, x.shape[3] // columns
        if rows == columns == 1:
            patches = positions_of(x)
        else:
            x = x[:, :, : height * rows, : width * columns].permute(0, 2, 3, 1)  # (B, H, W, C)
            x = x.reshape(-1, height, rows, width, columns, self.in_channels)
            patches = x.transpose(2, 3).reshape(-1, self.weight.shape[0])
        y = self.product(patches)
        return y.view(-1, height, width, self.out_channels).permute(0, 3, 1, 2)


def is_patchwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``module`` is a convolution whose stride is its kernel, without padding, dilation and groups.

    Stems do not count: gathering patches of an image's three channels costs more than the matrix product saves.
    """
    return (
        is_linear_layer(module)
        and isinstance(module, nn.Conv2d)
        and not isinstance(module, Conv2dSame)  # pads what its size asks for
        and module.in_channels >= 8
        and module.stride == module.kernel_size
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


class EagerPATConv(nn.Module):
    """PATConv that keeps its input's shape and writes both parts into one tensor, (B, C, H, W) → (B, C, H, W).

    Args:
        conv: Convolution of the convolved channels that keeps their number and resolution.
        attn: Attention over the others, (B, channels, H, W) → (B, channels, H, W); or None.
        gate: Gate in its place: weights of the others, (B, channels, 1, 1), from the whole map, (B, C, H, W).
        conv_channels: Number of convolved channels.
        conv_first: Whether they are the leading ones.
    """

    def __init__(
        self, conv: nn.Conv2d, attn: nn.Module | None, gate: nn.Module | None, conv_channels: int, conv_first: bool
    ) -> None:
        super().__init__()
        self.conv, self.attn, self.gate = conv, attn, gate
        self.conv_channels, self.conv_first = conv_channels, conv_first
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if may_write_in_place(x):
            return self.in_place(x)
        to_convolve, to_attend = self._split(x)
        attended = to_attend if self.attn is None else self.attn(to_attend)
        if self.gate is not None:
            attended = attended * self.gate(x)
        parts = (self.conv(to_convolve), attended)
        return torch.cat(parts if self.conv_first else parts[::-1], 1)

    def in_place(self, x: Tensor) -> Tensor:
        """The same without autograd, in the channels_last layout."""
        modules = self._modules  # for speed, see above
        conv: Any = modules["conv"]
        attn: Any = modules.get("attn")
        gate: Any = modules.get("gate")
        weight, bias = conv._parameters["weight"], conv._parameters["bias"]
        to_convolve, to_attend = self._split(x)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        convolved, attended = self._split(out)
        convolved.copy_(torch.conv2d(to_convolve, weight, bias, 1, conv.padding, conv.dilation, conv.groups))
        if gate is not None:
            torch.mul(to_attend, gate.in_place(x), out=attended)
        else:
            attended.copy_(to_attend if attn is None else attn.forward(to_attend))
        return out

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Convolved and attended channels."""
        others = x.shape[1] - self.conv_channels
        if self.conv_first:
            return x.narrow(1, 0, self.conv_channels), x.narrow(1, self.conv_channels, others)
        return x.narrow(1, others, self.conv_channels), x.narrow(1, 0, others)
