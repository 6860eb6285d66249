"""Folded layers in the form that one runtime runs fastest; every form computes the same function.

onnxruntime makes one pass over memory for each elementwise operation, OpenVINO fuses them, and eager PyTorch pays for
every call and every temporary tensor. ``partialnet.fold(..., runtime=...)`` puts these layers in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .affine import with_weights

#: What a folded network can be made for.
Runtime = Literal["torch", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnxruntime", "openvino")

#: A function of a map's positions, given which of them; None stands for all.
PositionwiseFunction = Callable[[slice | None], Tensor]

#: Most memory, in bytes, of an intermediate result of positions that are computed together: what a core's cache keeps.
CACHED_BYTES = 1 << 20


def may_write_in_place() -> bool:
    """Whether results may be written into tensors at hand: not under autograd, autocast, a compiler or an exporter."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


class PositionwiseLinear(nn.Module):
    """A 1×1 convolution as one matrix product over positions, (positions, C) → (positions, out_channels).

    In the channels_last layout a map is such a matrix. With the weight stored transposed, few positions take about 4/5
    of the time of ``nn.Conv2d`` on one thread.

    Args:
        weight: (out_channels, C).
        bias: (out_channels,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().t().contiguous())  # (C, out_channels)
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)

    def of(self, x: Tensor) -> PositionwiseFunction:
        """The output of some of the positions in ``x``, (positions, C)."""
        return lambda rows: self(rows_of(x, rows))


class PatchConv(PositionwiseLinear):
    """A convolution whose patches touch but do not overlap, as one matrix product, (B, C, H, W) → (B, O, H/k, W/k).

    1×1 convolutions and mergings of patches. PyTorch's own convolution lays out the weight anew at every call.

    Args:
        conv: Convolution for which ``is_patchwise`` holds.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
        self.in_channels, self.out_channels, self.kernel_size = conv.in_channels, conv.out_channels, conv.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.kernel_size
        height, width = x.shape[2] // rows, x.shape[3] // columns
        if rows == columns == 1:
            patches = positions_of(x)
        else:
            x = x[:, :, : height * rows, : width * columns].permute(0, 2, 3, 1)  # (B, H, W, C)
            x = x.reshape(-1, height, rows, width, columns, self.in_channels)
            patches = x.transpose(2, 3).reshape(-1, self.weight.shape[0])
        y = super().forward(patches)
        return y.view(-1, height, width, self.out_channels).permute(0, 3, 1, 2)


def is_patchwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``module`` is a convolution whose stride is its kernel, without padding, dilation and groups.

    Stems are none: to gather patches of an image's three channels costs more than the matrix product saves.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.in_channels >= 8
        and module.stride == module.kernel_size
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def cached_parts(positions: int, features: int, element_size: int) -> list[slice | None]:
    """Equal parts of a map's positions whose features, taken together, stay in the threads' caches; None is all."""
    at_once = CACHED_BYTES * torch.get_num_threads() // (features * element_size)
    parts = -(-positions // max(at_once, 1))
    if parts <= 1:  # 0 for an empty batch
        return [None]
    step = -(-positions // parts)
    return [slice(start, start + step) for start in range(0, positions, step)]


def rows_of(x: Tensor, rows: slice | None) -> Tensor:
    """The given rows, for which no call into PyTorch is made where they are all."""
    return x if rows is None else x[rows]


def activate_in_place(act: nn.Module, x: Tensor) -> Tensor:
    """``act`` of a tensor that nobody else needs, without a second one where PyTorch can do that."""
    if type(act) is nn.ReLU:
        return torch.relu_(x)
    if type(act) is nn.GELU:
        return torch.ops.aten.gelu_(x, approximate=act.approximate)
    return act(x)


def positions_of(x: Tensor) -> Tensor:
    """A map, (B, C, H, W), as a matrix, (B·H·W, C): a view in the channels_last layout, else a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class InPlacePATConv(nn.Module):
    """PATConv of one size and channel gates that writes both parts into one tensor, (B, C, H, W) → (B, C, H, W).

    For eager PyTorch, where a concatenation is one more pass over the map.

    Args:
        conv: Convolution of the convolved channels that keeps their number and resolution.
        attn: Gate of the others, a ``GaussianGate``.
        conv_channels: Number of convolved channels.
        conv_first: Whether they are the leading ones.
    """

    def __init__(self, conv: nn.Conv2d, attn: nn.Module, conv_channels: int, conv_first: bool) -> None:
        super().__init__()
        self.conv, self.attn = conv, attn
        self.conv_channels, self.conv_first = conv_channels, conv_first
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        to_convolve, to_attend = self._split(x)
        gate = self._gate(x)
        if not may_write_in_place():
            parts = (self.conv(to_convolve), to_attend * gate)
            return torch.cat(parts if self.conv_first else parts[::-1], 1)
        out = torch.empty_like(x)
        convolved, attended = self._split(out)
        convolved.copy_(self.conv(to_convolve))
        torch.mul(to_attend, gate, out=attended)
        return out

    def projection(self, x: Tensor, linear: PositionwiseLinear) -> PositionwiseFunction:
        """``linear`` of the output's positions, for which one image needs no output.

        ``W [a; g ∘ b] = W_a a + (W_b diag(g)) b``: the gate goes into the weight where that is smaller than the map.
        """
        if x.shape[0] > 1 or not may_write_in_place():
            return linear.of(positions_of(self(x)))
        to_convolve, to_attend = self._split(x)
        for_convolved, for_attended = self._split(linear.weight, 0)  # (channels, features) each
        gate = self._gate(x).flatten()
        attended = positions_of(to_attend)  # a view: matrix products take rows that are farther apart
        if len(attended) > linear.weight.shape[1]:
            for_attended = for_attended * gate[:, None]
        else:
            attended = attended * gate
        convolved = positions_of(self.conv(to_convolve))

        def project(rows: slice | None) -> Tensor:
            y = torch.addmm(linear.bias, rows_of(attended, rows), for_attended)
            return y.addmm_(rows_of(convolved, rows), for_convolved)

        return project

    def _gate(self, x: Tensor) -> Tensor:
        """Weight of each attended channel, (B, channels, 1, 1)."""
        if not may_write_in_place():
            return self.attn.gate(self._split(x)[1])  # type: ignore[operator]
        return self.attn.gate_within(x, self.conv_channels if self.conv_first else 0)  # type: ignore[operator]

    def _split(self, x: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        """Convolved and attended channels."""
        others = x.shape[dim] - self.conv_channels
        if self.conv_first:
            return x.narrow(dim, 0, self.conv_channels), x.narrow(dim, self.conv_channels, others)
        return x.narrow(dim, others, self.conv_channels), x.narrow(dim, 0, others)


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


class MapSelfAttention(nn.Module):
    """Self-attention whose dense layers are 1×1 convolutions on the map, (B, C, H, W) → (B, C, H, W).

    For onnxruntime and OpenVINO: their convolutions are faster than their dense layers on few tokens, and heads are
    then cut out of the map without transposing. Three separate convolutions save the split of one.

    Args:
        norm: Normalisation of the map.
        qkv: Dense layer to queries, keys and values; the scale of the logits is in its weight.
        proj: Dense layer of the output.
        position_bias: Layer that gives the bias, (heads, N, N), of (H, W); or None.
        num_heads: Number of heads.
    """

    def __init__(
        self, norm: nn.Module, qkv: nn.Linear, proj: nn.Linear, position_bias: nn.Module | None, num_heads: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm
        weights, biases = qkv.weight.detach().chunk(3), qkv.bias.detach().chunk(3)
        self.query, self.key, self.value = (
            pointwise(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.position_bias = position_bias
        self.proj = pointwise(proj.weight.detach(), None if proj.bias is None else proj.bias.detach())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.norm(x)
        query, key, value = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        logits = query.transpose(-2, -1) @ key
        if self.position_bias is not None:
            logits = logits + self.position_bias(*size)
        x = value @ logits.softmax(-1).transpose(-2, -1)
        return self.proj(x.flatten(1, 2).unflatten(2, size))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, heads, C / heads, N)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1))


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


class PositionGate(nn.Module):
    """PAT_sp's gate on positions, (positions, C) → (positions, C); without autograd it overwrites its input.

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
        self.eval()

    def forward(self, y: Tensor) -> Tensor:
        gated = self.shift.shape[0]
        attended = y[:, :gated]
        gate = F.hardsigmoid(torch.mm(attended, self.weight), inplace=may_write_in_place())
        if self.scale is not None:
            gate = gate * self.scale
        if may_write_in_place():
            torch.addcmul(self.shift, attended, gate, out=attended)
            return y
        return torch.cat((torch.addcmul(self.shift, attended, gate), y[:, gated:]), 1)


class TokenSelfAttention(nn.Module):
    """Self-attention on tokens for eager PyTorch in the channels_last layout, (B, C, H, W) → (B, C, H, W).

    Args:
        norm: LayerNorm over channels, applied to tokens, (B, N, C); or Identity.
        qkv: Dense layer to queries, keys and values; the scale of the logits is in its weight.
        proj: Dense layer of the output.
        position_bias: Layer that gives the bias, (heads, N, N), of (H, W); or None.
        num_heads: Number of heads.
    """

    def __init__(
        self, norm: nn.Module, qkv: nn.Linear, proj: nn.Linear, position_bias: nn.Module | None, num_heads: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm
        self.qkv = PositionwiseLinear(qkv.weight, qkv.bias)
        self.position_bias = position_bias
        self.proj = PositionwiseLinear(proj.weight, proj.bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x.permute(0, 2, 3, 1)).reshape(-1, channels)  # (B·N, C)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, C / heads) each
        logits = query @ key.transpose(-2, -1)
        if self.position_bias is not None:
            logits = logits + self.position_bias(height, width)
        tokens = (logits.softmax(-1) @ value).transpose(1, 2).reshape(-1, channels)
        return self.proj(tokens).view(batch, height, width, channels).permute(0, 3, 1, 2)
