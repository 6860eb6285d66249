"""PATConv, partial attention convolution: convolve some channels, attend over the others, concatenate."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrize

from partialnet.arguments import one_side
from partialnet.errors import UserError

from .affine import (
    ChannelAffine,
    absorbs_input_affine,
    batch_norm_affine,
    fold_input_affine,
    is_affine,
    is_linear_layer,
    keeps_forward,
    with_fixed_weights,
    with_weights,
)
from .attention import AttentionLike, create_attention
from .eager import EagerPATConv
from .gaussian_se import EagerGaussianGate, GaussianGate, GaussianSE
from .inference import Runtime
from .layout import concat_channels, dense
from .self_attention import SelfAttention2d
from .spatial_gate import SpatialGate

AttentionScope = Literal["partial", "full"]

# symbolic tracing takes them as they are, for they look at values
torch.fx.wrap("concat_channels")
torch.fx.wrap("dense")


class PATConv(nn.Module):
    """Split the channels once, convolve one part, attend over the other, concatenate.

    A drop-in for a k×k convolution: ``split_ratio`` of the channels is convolved, which costs ``split_ratio``² of the
    multiply–adds, and a cheap attention supplies the rest with the global view that a convolution lacks.

    Where the layer changes the resolution or the channel count, the attended part is average-pooled by the stride and,
    if its channel count changes, projected by a 1×1 convolution without bias before the attention.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels, split by the same ratio; ``in_channels`` if None.
        kernel_size: Odd. The convolution is padded so that the resolution is kept, divided by the stride, rounded up.
            This, ``stride`` and ``dilation`` may be given as two equal numbers, too.
        stride: Step of the convolution and window of the pooling.
        dilation: Spacing of the kernel's taps.
        split_ratio: Share of channels that is convolved, r_p in the paper; rounded down to whole channels. 1 convolves
            all channels and needs ``attention=None`` or ``attention_scope="full"``.
        attention: What happens to the other channels; see ``create_attention``. None passes them through, which is
            FasterNet's partial convolution.
        attention_scope: "partial" attends over the channels that are not convolved; "full" over all channels, after
            the concatenation (the paper's Table 3).
        conv_first: The leading channels are convolved and the trailing attended; False swaps the two.
        conv_norm: Builds the layer applied to the convolved part before the convolution, such as ``nn.BatchNorm2d``;
            called with the channel count and the keywords ``device`` and ``dtype``.
        bias: Give the convolution a bias.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉).

    Raises:
        ValueError: The ratio leaves a part without channels, the kernel is even, or the attention is unknown.

    Source: paper, Eq. 1 and Fig. 1; stride and channel change are ours, the paper has equal counts and stride 1.

    Example:
        >>> PATConv(64, attention="eca")(torch.rand(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
        >>> PATConv(64, 128, stride=2)(torch.rand(2, 64, 14, 14)).shape
        torch.Size([2, 128, 7, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        *,
        split_ratio: float = 1 / 4,
        attention: AttentionLike = "gaussian_se",
        attention_scope: AttentionScope = "partial",
        conv_first: bool = True,
        conv_norm: Callable[..., nn.Module] | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        kernel_size, stride = one_side("kernel_size", kernel_size), one_side("stride", stride)
        dilation = one_side("dilation", dilation)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size} must be odd and positive, so that both parts keep one resolution."
            )
        if stride < 1 or dilation < 1:
            raise ValueError(f"stride={stride} and dilation={dilation} must be at least 1.")
        if attention_scope not in ("partial", "full"):
            raise ValueError(f"attention_scope={attention_scope!r} must be 'partial' or 'full'.")
        if conv_norm is not None and (isinstance(conv_norm, nn.Module) or not callable(conv_norm)):
            raise UserError(f"conv_norm={conv_norm!r} must build a layer, as nn.BatchNorm2d does, or be None.")
        passes_all = attention is None or attention_scope == "full"
        self.conv_channels = split_channels(in_channels, split_ratio, allow_all=passes_all)
        self.attn_channels = in_channels - self.conv_channels
        self.in_channels, self.out_channels = in_channels, out_channels
        conv_out = split_channels(out_channels, split_ratio, allow_all=passes_all)
        attn_out = out_channels - conv_out
        self.attention_scope = attention_scope
        self.conv_first = conv_first

        self.normalizes_conv = conv_norm is not None
        self.conv_norm: nn.Module = (
            nn.Identity() if conv_norm is None else conv_norm(self.conv_channels, device=device, dtype=dtype)
        )
        self.conv = nn.Conv2d(
            self.conv_channels,
            conv_out,
            kernel_size,
            stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.attn_proj = _projection(self.attn_channels, attn_out, stride, device, dtype)
        self.projects_attended = not isinstance(self.attn_proj, nn.Identity)
        attended = out_channels if attention_scope == "full" else attn_out
        self.attn = create_attention(attention, attended, device=device, dtype=dtype)

    @property
    def split_ratio(self) -> float:
        """Share of the input channels that is convolved, after rounding to whole channels."""
        return self.conv_channels / (self.conv_channels + self.attn_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.attn_channels == 0:
            return self.attn(self.conv(self.conv_norm(x)))
        if self.conv_first:
            to_convolve, to_attend = torch.split(x, [self.conv_channels, self.attn_channels], 1)
        else:
            to_attend, to_convolve = torch.split(x, [self.attn_channels, self.conv_channels], 1)
        if self.normalizes_conv:
            to_convolve = dense(to_convolve)
        convolved = self.conv(self.conv_norm(to_convolve))
        attended = self.attn_proj(to_attend) if self.projects_attended else to_attend
        if self.attention_scope == "partial":
            attended = self.attn(attended)
        parts = (convolved, attended) if self.conv_first else (attended, convolved)
        x = concat_channels(parts[0], parts[1])
        if self.attention_scope == "full":
            x = self.attn(x)
        return x

    @torch.jit.ignore
    def fuse_up_to_affine(self) -> tuple[PATConv, Tensor, Tensor]:
        """The folded layer, and a scale and a shift, (out_channels,), still to be applied to its output.

        A following 1×1 convolution absorbs them. They are 1 and 0 for convolved channels and for an attention that
        does not end in a BatchNorm. What does not fold is part of both layers: call it on a copy.
        """
        folded = copy.copy(self)
        folded._modules = dict(self._modules)
        if is_affine(self.conv_norm) and not isinstance(self.conv_norm, nn.Identity):
            affine = batch_norm_affine(self.conv_norm, self.conv.weight[0, :, 0, 0])
            if absorbs_input_affine(self.conv):
                folded.conv_norm, folded.conv = nn.Identity(), fold_input_affine(self.conv, *affine)
            else:
                folded.conv_norm = ChannelAffine(*affine)
        folded.normalizes_conv = not isinstance(folded.conv_norm, nn.Identity)
        if parametrize.is_parametrized(folded.conv):
            folded.conv = with_weights(self.conv, self.conv.weight, self.conv.bias)

        attended = self.out_channels - (0 if self.attention_scope == "full" else self.conv.out_channels)
        weight = self.conv.weight.detach()
        scale, shift = weight.new_ones(attended), weight.new_zeros(attended)
        if keeps_forward(self.attn, GaussianSE) and self.attn.can_be_folded():
            folded.attn, scale, shift = self.attn.fuse_up_to_affine()
        elif keeps_forward(self.attn, SelfAttention2d) or keeps_forward(self.attn, SpatialGate):
            fused = self.attn.fuse()
            folded.attn = folded.attn if fused is self.attn else fused
        if self.attention_scope == "partial":
            convolved = self.conv.out_channels
            parts = (weight.new_ones(convolved), scale), (weight.new_zeros(convolved), shift)
            scale, shift = (torch.cat(part if self.conv_first else part[::-1]) for part in parts)
        return folded.eval(), scale, shift

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The same function at inference without BatchNorm; the layer itself if its convolution was replaced."""
        if not is_linear_layer(self.conv):
            return self
        folded, scale, shift = with_fixed_weights(copy.deepcopy(self)).fuse_up_to_affine()
        if not keeps_forward(self.attn, GaussianSE) or not self.attn.can_be_folded():
            return folded
        if isinstance(self.attn.norm, nn.Identity):
            return folded
        return nn.Sequential(folded, ChannelAffine(scale, shift)).eval()

    @torch.jit.ignore
    def for_runtime(self, runtime: Runtime) -> nn.Module:
        """The form of a folded layer that suits a runtime."""
        if not is_linear_layer(self.conv):
            return self
        keeps_shape = self.conv.stride == (1, 1) and self.conv.in_channels == self.conv.out_channels
        plain = isinstance(self.attn_proj, nn.Identity) and self.attention_scope == "partial"
        mixes_positions = self.conv.kernel_size != (1, 1) and not self.normalizes_conv
        pads_zeros = self.conv.padding_mode == "zeros" and not isinstance(self.conv, Conv2dSame)
        suits = keeps_shape and plain and mixes_positions and pads_zeros
        if runtime != "torch" or not suits or self.attn_channels == 0:
            return self
        gate = None
        if isinstance(self.attn, GaussianGate) and self.attn.dense:
            around = (self.conv_channels, 0) if self.conv_first else (0, self.conv_channels)
            gate = EagerGaussianGate(self.attn, *around)
        attn = None if gate is not None or isinstance(self.attn, nn.Identity) else self.attn
        return EagerPATConv(self.conv, attn, gate, self.conv_channels, self.conv_first)

    def extra_repr(self) -> str:
        return f"split_ratio={self.split_ratio:.4g}, attention_scope={self.attention_scope}"


def split_channels(channels: int, split_ratio: float, allow_all: bool = False) -> int:
    """Number of convolved channels, ``channels · split_ratio`` rounded down; both parts keep at least one channel.

    Raises:
        ValueError: A part would be empty (``allow_all`` permits an empty attended part).
    """
    least = 1 if allow_all else 2
    try:
        possible = operator.index(channels) >= least and math.isfinite(split_ratio)
    except TypeError:
        possible = False
    if not possible:
        raise ValueError(
            f"split_ratio={split_ratio!r} of {channels!r} channels: give a ratio in (0, 1] of {least} or more channels."
        )
    # the tolerance lets ratios that are quotients of whole channel counts come out exactly
    conv_channels = math.floor(channels * split_ratio + 1e-6)
    most = channels if allow_all else channels - 1
    if not 1 <= conv_channels <= most:
        part = "convolved" if conv_channels < 1 else "attended"
        remedy = f"between {1 / channels:.4g} and {most / channels:.4g}"
        if conv_channels >= channels:
            remedy += ", or attention=None to convolve all channels"
        raise ValueError(
            f"split_ratio={split_ratio} of {channels} channels leaves no {part} channel. Choose a ratio {remedy}."
        )
    return conv_channels


def _projection(
    in_channels: int, out_channels: int, stride: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Module:
    """Bring the attended part to the output's resolution and channel count."""
    layers: list[nn.Module] = []
    if stride > 1:
        layers.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
    if in_channels != out_channels:
        layers.append(nn.Conv2d(in_channels, out_channels, 1, bias=False, device=device, dtype=dtype))
    if len(layers) == 1:
        return layers[0]
    return nn.Sequential(*layers) if layers else nn.Identity()


def pat_ch(
    channels: int,
    split_ratio: float = 1 / 4,
    attention: AttentionLike = "gaussian_se",
    attention_scope: AttentionScope = "partial",
    dilation: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> PATConv:
    """Partial channel-attention block: convolve 3×3 the leading channels, gate the others by Gaussian-SE (Fig. 8a).

    (B, C, H, W) → (B, C, H, W); for arguments and errors see ``PATConv``.
    """
    return PATConv(
        channels,
        dilation=dilation,
        split_ratio=split_ratio,
        attention=attention,
        attention_scope=attention_scope,
        device=device,
        dtype=dtype,
    )


def pat_sp(
    channels: int,
    split_ratio: float = 1 / 2,
    attention: AttentionLike = "spatial_gate",
    attention_scope: AttentionScope = "partial",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> PATConv:
    """Partial spatial-attention block: gate the positions of the leading half, convolve 1×1 the normalised last half.

    (B, C, H, W) → (B, C, H, W); for arguments and errors see ``PATConv``. The block follows an MLP, into whose last
    layer its convolution folds (Fig. 8b). The paper's Table 9 prints a ratio of 1/4; only 1/2 gives its parameter
    counts.
    """
    return PATConv(
        channels,
        kernel_size=1,
        split_ratio=split_ratio,
        attention=attention,
        attention_scope=attention_scope,
        conv_first=False,
        conv_norm=nn.BatchNorm2d,
        device=device,
        dtype=dtype,
    )


def pat_sf(
    channels: int,
    split_ratio: float = 1 / 4,
    num_heads: int = 4,
    attention_scope: AttentionScope = "partial",
    dilation: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> PATConv:
    """Partial self-attention block: convolve 3×3 the leading channels, self-attention over the others (Fig. 8c).

    (B, C, H, W) → (B, C, H, W); for arguments and errors see ``PATConv`` and ``SelfAttention2d``.
    """
    return PATConv(
        channels,
        dilation=dilation,
        split_ratio=split_ratio,
        attention=partial(SelfAttention2d, num_heads=num_heads, dilation=dilation),
        attention_scope=attention_scope,
        device=device,
        dtype=dtype,
    )
