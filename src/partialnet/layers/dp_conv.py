"""DPConv, dynamic partial convolution: how many channels are convolved is learned, then fixed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partialnet.arguments import check_count, check_number, one_side

from .affine import compute_weights
from .attention import AttentionLike, create_attention
from .layout import is_transformed
from .leading_conv import LeadingConv2d
from .partial_attention import PartialAttention
from .pat_conv import PATConv

_Number = TypeVar("_Number", int, Tensor)

#: Distance of a fresh gate from the threshold at which it flips.
INITIAL_GATE = 0.5
#: The same for a gate that was put in order, which leaves it undecided.
UNDECIDED_GATE = 1e-3


def _binary(values: Tensor) -> Tensor:
    """1 where the values are positive, else 0; gradients pass where they lie within [−1, 1]."""
    passed = torch.where(values.abs() <= 1, values, values.detach())  # clamp's gradient at ±1 is 0 in some versions
    return (values > 0).to(values.dtype) + (passed - passed.detach())


def _zero_of(module: nn.Module) -> Tensor:
    """0 with a gradient of zeros for each parameter: distributed training waits for a gradient of every one."""
    return 0 * torch.stack([parameter.sum() for parameter in module.parameters()]).sum()


@contextmanager
def known_gates(layers: Iterable[DPConv]) -> Iterator[None]:
    """Read the gates of all layers at once, so that a GPU is waited for once instead of in each layer.

    Within it the layers do not read their gates again: they must stay as they are until the layers have been used.
    """
    unknown = [layer for layer in layers if layer._values is None]
    values = torch.cat([layer.gates.detach() for layer in unknown]).tolist() if unknown else []
    try:
        for layer in unknown:
            layer._values, values = values[: len(layer.gates)], values[len(layer.gates) :]
        yield
    finally:
        for layer in unknown:
            layer._values = None


class DPConv(nn.Module):
    """A partial convolution whose number of convolved channels is learned by gradient descent.

    With c = q·2^K channels, q odd, K binary gates g say which channels take part: the relation matrix is
    U = U_1 ⊗ … ⊗ U_K ⊗ 1_q with U_k = g_k·1 + (1 − g_k)·I. The mask m_i = Π_k (1 − bit_k(i)·(1 − g_k)), over the bits
    of i // q, the most significant first, keeps the block of U that a partial convolution computes: U ⊙ m = m·mᵀ.
    Where the gates are in order, zeros before ones, the block is the leading q·2^Σg channels.

    The output is m_i·conv_i + (1 − m_i)·rest_i, rest being the input or its attention, in training as in evaluation.
    Mask and gates are differentiable: a channel that is not convolved has a gradient towards being convolved. While the
    gates are in order only the block is convolved, and the layer costs less than a dense convolution.

    Args:
        channels: Number of channels c, even.
        kernel_size: Odd.
        dilation: Spacing of the kernel's taps.
        split_ratio: Share of channels that the fresh layer convolves, rounded down to a block that the gates can form.
        attention: What happens to the other channels, as in ``PATConv``: "gaussian_se", "srm", "spatial_gate",
            "self_attention", a function that builds one of these, or None to pass them through.
        min_channels: Least number of convolved channels; the gates of smaller blocks are fixed. None takes what the
            attention needs: self-attention's heads divide what the convolution leaves.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, C, H, W) → (B, C, H, W).

    Attributes:
        gates: Learned values g̃, (number of free gates,).

    Raises:
        ValueError: ``channels`` is odd, the kernel is even, dilation or ratio is too small, or the attention cannot be
            computed for a changing number of channels.

    Source: paper, Sec. 3.2, Eqs. 2–5. Channel counts that are no power of two, the attention and the differentiable
    mask are ours; Eq. 5 prints the reciprocal of the block's width.

    Example:
        >>> conv = DPConv(48, attention=None)
        >>> conv(torch.rand(2, 48, 14, 14)).shape, conv.split_ratio
        (torch.Size([2, 48, 14, 14]), 0.25)
    """

    #: The gates' values, where ``known_gates`` has read them.
    _values: list[float] | None = None

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int] = 3,
        dilation: int | tuple[int, int] = 1,
        *,
        split_ratio: float = 1 / 4,
        attention: AttentionLike = "gaussian_se",
        min_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kernel_size, dilation = one_side("kernel_size", kernel_size), one_side("dilation", dilation)
        check_count("channels", channels, least=0)
        check_number("split_ratio", split_ratio)
        if channels < 2 or channels % 2:
            raise ValueError(f"channels={channels} must be even: the gates halve the channels.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd and positive, so that the resolution is kept.")
        if dilation < 1:
            raise ValueError(f"dilation={dilation} must be at least 1.")
        self.channels = channels
        self.num_gates = (channels & -channels).bit_length() - 1  # K: how often 2 divides c
        self.group = channels >> self.num_gates  # q
        self.conv = LeadingConv2d(
            channels,
            channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.attn = create_attention(attention, channels, device=device, dtype=dtype)
        if not isinstance(self.attn, (nn.Identity, PartialAttention)):
            raise ValueError(
                f"{type(self.attn).__name__} cannot attend over a changing number of channels. Use gaussian_se, srm, "
                "spatial_gate, self_attention or None."
            )
        step = self.attn.subset_step if isinstance(self.attn, PartialAttention) else 1
        least = step if min_channels is None else min_channels
        check_count("min_channels", least)
        blocks = self.blocks
        fixed = next((ones for ones, block in enumerate(blocks) if block >= least and block % step == 0), None)
        if fixed is None or channels % step:
            raise ValueError(
                f"No block of {channels} channels has at least {least} and is a multiple of {step}: gates form blocks "
                f"of {', '.join(map(str, blocks))}."
            )
        self.num_fixed = fixed
        if not blocks[fixed] <= channels * split_ratio + 1e-6 <= channels + 1e-3:
            raise ValueError(
                f"split_ratio={split_ratio} of {channels} channels: choose a ratio from "
                f"{blocks[fixed] / channels:.4g} to 1."
            )
        ones = max(ones for ones, block in enumerate(blocks) if block <= channels * split_ratio + 1e-6)
        free = self.num_gates - fixed
        values = torch.full((free,), -INITIAL_GATE, device=device, dtype=dtype)
        values[free - (ones - fixed) :] = INITIAL_GATE
        self.gates = nn.Parameter(values)

    @property
    def blocks(self) -> list[int]:
        """Numbers of channels that gates in order can convolve, for 0 to K gates at 1."""
        return [self.group << ones for ones in range(self.num_gates + 1)]

    # -- what the gates say -----------------------------------------------------------------------------------------

    def binary_gates(self) -> Tensor:
        """g, (K,), zeros and ones, differentiable by the clipped straight-through estimator (Eq. 3)."""
        return F.pad(_binary(self.gates), (0, self.num_fixed), value=1.0)

    def mask(self) -> Tensor:
        """m, (C,): 1 for channels that are convolved, 0 for the others (Eq. 5)."""
        mask = torch.ones(self.group, device=self.gates.device, dtype=self.gates.dtype)
        for gate in reversed(self.binary_gates().unbind()):
            mask = torch.cat((mask, gate * mask))  # ⊗ of (1, g_k) and what follows
        return mask

    @property
    def conv_channels(self) -> int:
        """Number of channels that are convolved now."""
        return self._block()[0]

    @property
    def split_ratio(self) -> float:
        """Share of the channels that is convolved now."""
        return self.conv_channels / self.channels

    @property
    def in_order(self) -> bool:
        """Whether all gates at 0 come before those at 1, so that the convolved channels lead."""
        return self._block()[1]

    def _block(self) -> tuple[int, bool]:
        """How many channels are convolved, and whether they lead. A GPU is waited for, so it is asked once."""
        binary = [value > 0 for value in (self.gates.tolist() if self._values is None else self._values)]
        return self.group << (sum(binary) + self.num_fixed), binary == sorted(binary)

    @torch.no_grad()
    def clamp_gates(self) -> None:
        """Put gates beyond ±1 back to ±1, where they have a gradient; call it after every step of the optimiser."""
        self.gates.clamp_(-1.0, 1.0)

    @torch.no_grad()
    def put_gates_in_order(self) -> None:
        """Flip the gates that keep zeros from coming before ones; if they are in order, nothing changes.

        The nearest order is chosen: the one whose flipped gates have the smallest summed distance from the threshold,
        and of two equally near the one with fewer convolved channels.
        """
        values = self.gates.tolist()
        # gates before `zeros` are to be at 0, the others at 1
        distances = [
            sum(value for value in values[:zeros] if value > 0) - sum(value for value in values[zeros:] if value <= 0)
            for zeros in range(len(values) + 1)
        ]
        zeros = max(range(len(values) + 1), key=lambda count: (-distances[count], count))
        for index, value in enumerate(values):
            if (value > 0) == (index < zeros):
                self.gates[index] = UNDECIDED_GATE if index >= zeros else -UNDECIDED_GATE

    def order_loss(self) -> Tensor:
        """ψ, a scalar: Σ |g̃_k| + |g̃_{k+1}| over neighbours of which the first is at 1 and the second at 0 (Eq. 8).

        Its gradient pulls both towards the threshold until the nearer one flips, so that any order is mended within
        2·Σ|g̃| / step steps. Eq. 8 sums over an index that its term lacks; this is our reading.
        """
        first, second = self.gates[:-1], self.gates[1:]
        wrong = ((first > 0) & (second <= 0)).to(first.dtype)
        return (wrong * (first.abs() + second.abs())).sum()

    def complexity(self, count: str = "grouped") -> Tensor:
        """ζ, a scalar in at least float32, differentiable: how many kernels the convolution has.

        Args:
            count: "grouped", all of U, c·q·2^Σg (Eq. 6); or "partial", the block alone, (q·2^Σg)² (Eq. 7).

        Raises:
            ValueError: ``count`` is neither of them.
        """
        gates = self.binary_gates()
        # half precision cannot count: float16 ends at 65504 kernels, bfloat16 has 8 bits
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        return self._kernels(self.group * (1 + gates).prod(), count)

    def num_kernels(self, count: str = "grouped") -> int:
        """The same as a number, from ``conv_channels``."""
        return self._kernels(self.conv_channels, count)

    def _kernels(self, width: _Number, count: str) -> _Number:
        """Kernels of a block of ``width`` channels."""
        if count == "grouped":
            return self.channels * width
        if count == "partial":
            return width * width
        raise ValueError(f"count={count!r} must be 'grouped' or 'partial'.")

    # -- computing --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask().to(self.conv.weight.dtype)
        passes = isinstance(self.attn, nn.Identity)
        # compilers and transforms have no way to tell how many channels the block has
        known = not torch.compiler.is_compiling() and not is_transformed()
        block = self._block() if known else None
        rest: Tensor | None = None
        if not passes and (block is None or block[0] < self.channels):
            rest = self.attn(x, 1 - mask)
        elif not passes:
            # the mask's gradient needs what attention over no channel makes of the map; all others of it are 0
            with torch.no_grad():
                rest = self.attn(x, 1 - mask)
            mask = mask + _zero_of(self.attn)
        return self.conv(x, mask=mask, ones=block, rest=rest)

    @torch.no_grad()
    def to_static(self) -> PATConv:
        """The static layer with the learned number of channels, the same weights and the same outputs.

        Where every channel is convolved there is nothing to attend over, and its attention is None.

        Raises:
            ValueError: The gates are out of order; train with ``order_loss`` until ``in_order``.
        """
        if not self.in_order:
            raise ValueError("The gates of this DPConv are out of order; keep training with its order_loss.")
        compute_weights(self.conv)
        width = self.conv_channels
        kept = torch.arange(width, self.channels, device=self.conv.weight.device)
        static = PATConv(
            self.channels,
            kernel_size=self.conv.kernel_size[0],
            dilation=self.conv.dilation[0],
            split_ratio=width / self.channels,
            attention=self.attn.select(kept) if len(kept) and isinstance(self.attn, PartialAttention) else None,
            device=self.conv.weight.device,
            dtype=self.conv.weight.dtype,
        )
        static.conv.weight.copy_(self.conv.weight[:width, :width])
        return static.train(self.training)

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The static layer for inference, without BatchNorm."""
        return self.to_static().fuse()

    def extra_repr(self) -> str:
        return f"{self.channels}, split_ratio={self.split_ratio:.4g}, gates={self.num_gates}, fixed={self.num_fixed}"
