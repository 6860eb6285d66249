"""The parts of PartialNet: stem, merging, blocks, and what blocks mix positions with.

Source: paper, Fig. 3 and Table 9.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from partialnet.layers import DPConv, PATConv, SpatialGate, pat_ch, pat_sf, pat_sp
from partialnet.layers.affine import (
    ChannelAffine,
    batch_norm_affine,
    can_be_folded,
    fold_batch_norm,
    fold_input_affine,
    is_pointwise,
    keeps_forward,
    with_fixed_weights,
    with_weights,
)
from partialnet.layers.spatial_gate import FoldedSpatialGate

from .folded_block import FoldedPartialNetBlock

#: A mixer's name, or a mapping with its name under "name" and arguments for it, such as an attention or a scope.
MixerSpec = str | Mapping[str, Any]


def _regular_conv(
    channels: int,
    dilation: int = 1,
    groups: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, 1, dilation, dilation, groups, bias=False, device=device, dtype=dtype)


def _depthwise_conv(
    channels: int, dilation: int = 1, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    return _regular_conv(channels, dilation, channels, device, dtype)


#: What can mix positions in a block: the paper's two blocks and the convolutions that its Table 6 compares them with.
MIXERS: dict[str, Callable[..., nn.Module]] = {
    "pat_ch": pat_ch,
    "pat_sf": pat_sf,
    "conv": _regular_conv,
    "dwconv": _depthwise_conv,
}
_SPLIT_MIXERS = ("pat_ch", "pat_sf")


def create_mixer(spec: MixerSpec, channels: int, split_ratio: float, dilation: int, dd: dict[str, Any]) -> nn.Module:
    """The mixer that ``spec`` describes; ``dd`` holds its parameters' device and dtype."""
    name, arguments = parse_mixer(spec)
    if dilation > 1:
        arguments = {"dilation": dilation, **arguments}
    if name in _SPLIT_MIXERS:
        arguments = {"split_ratio": split_ratio, **arguments}
        if arguments["split_ratio"] == 1 and arguments.get("attention_scope", "partial") == "partial":
            # all channels are convolved, as a search may find; nothing is left to attend over
            return PATConv(channels, dilation=dilation, split_ratio=1, attention=None, **dd)
    try:
        return MIXERS[name](channels, **arguments, **dd)
    except TypeError as error:
        raise ValueError(f"Mixer {name!r} does not take {arguments}: {error}") from error


def parse_mixer(spec: MixerSpec) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a mixer; an unknown name raises ValueError."""
    arguments = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in MIXERS:
        raise ValueError(f"Unknown mixer {name!r}. Choose one of {', '.join(MIXERS)}.")
    return name, arguments


def create_mlp_attention(spec: bool | Mapping[str, Any], channels: int, dd: dict[str, Any]) -> nn.Module:
    """PAT_sp with the given arguments, or Identity for False."""
    if spec is False:
        return nn.Identity()
    if spec is not True and not isinstance(spec, Mapping):
        raise ValueError(f"mlp_attention={spec!r} must be True, False or a mapping of PAT_sp's arguments.")
    arguments = {} if spec is True else spec
    try:
        return pat_sp(channels, **arguments, **dd)
    except TypeError as error:
        raise ValueError(f"PAT_sp does not take {arguments}: {error}") from error


class Mlp(nn.Module):
    """Two 1×1 convolutions without bias around BatchNorm and activation, (B, C, H, W) → (B, C, H, W)."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        act_layer: Callable[..., nn.Module],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(hidden, device=device, dtype=dtype)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.norm(self.fc1(x))))


class PartialNetBlock(nn.Module):
    """Mix positions, then channels, with a residual connection; (B, C, H, W) → (B, C, H, W).

    v1, stages 1–3: ``x + DropPath(PAT_sp(MLP(mixer(x))))``. v2, with self-attention:
    ``x = x + mixer(x)``, then ``x + DropPath(PAT_sp(MLP(x)))``. Source: paper, Figs. 3a and 3d.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        mixer_residual: bool,
        mlp_attention: nn.Module,
        mlp_ratio: float,
        act_layer: Callable[..., nn.Module],
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mixer_residual = mixer_residual
        self.mixer = mixer
        self.mlp = Mlp(channels, int(channels * mlp_ratio), act_layer, device=device, dtype=dtype)
        self.mlp_attention = mlp_attention
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(x)
        if self.mixer_residual:
            x = x + mixed
            mixed = x
        return x + self.drop_path(self.mlp_attention(self.mlp(mixed)))

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The block for inference: PAT_sp's convolution and all BatchNorms folded into the MLP.

        The block itself if one of its layers was replaced, for example by an adapter; its parts can still be folded.
        """
        if not keeps_forward(self.mlp, Mlp):
            return self
        parts: list[nn.Module] = [self.mlp.norm]
        pointwise: list[nn.Module] = [self.mlp.fc1, self.mlp.fc2]
        for part in (self.mixer, self.mlp_attention):
            parts += [part.conv] if isinstance(part, PATConv) else []
        attention = self.mlp_attention
        if isinstance(attention, PATConv) and isinstance(attention.attn, SpatialGate):
            parts += [attention.conv_norm, attention.attn.norm]
            gate = attention.attn.conv
            if isinstance(gate, nn.Conv2d) and gate.bias is not None:  # for which its folded forms have no place
                return self
            pointwise += [attention.conv, gate]
        if not can_be_folded(*parts) or not all(is_pointwise(conv) for conv in pointwise):
            return self
        return _folded(with_fixed_weights(copy.deepcopy(self)))


def _folded(block: PartialNetBlock) -> FoldedPartialNetBlock:
    """The folded block, of which parts of ``block`` become a part."""
    mixer, gate = block.mixer, block.mlp_attention
    fc1, fc2 = fold_batch_norm(block.mlp.fc1, block.mlp.norm), block.mlp.fc2
    if isinstance(mixer, DPConv):
        mixer = mixer.to_static()
    if keeps_forward(mixer, PATConv) and not block.mixer_residual:
        mixer, scale, shift = mixer.fuse_up_to_affine()
        fc1 = fold_input_affine(fc1, scale, shift)
    elif keeps_forward(mixer, PATConv):
        mixer = mixer.fuse()
    if keeps_forward(gate, PATConv) and keeps_forward(gate.attn, SpatialGate):
        fc2, gate = _merge_convolution(fc2, gate), FoldedSpatialGate(gate.attn, gate.out_channels)
    elif keeps_forward(gate, PATConv):
        gate = gate.fuse()
    return FoldedPartialNetBlock(mixer, fc1, block.mlp.act, fc2, gate, block.mixer_residual)


def _merge_convolution(fc2: nn.Conv2d, pat_sp: PATConv) -> nn.Conv2d:
    """One 1×1 convolution for ``fc2`` and the convolution of PAT_sp, with its BatchNorm, on the last channels."""
    conv = fold_input_affine(pat_sp.conv, *batch_norm_affine(pat_sp.conv_norm, pat_sp.conv.weight[0, :, 0, 0]))
    weight = fc2.weight.detach()[:, :, 0, 0]  # (C, hidden)
    kernel = conv.weight.detach()[:, :, 0, 0]
    attended, convolved = torch.split(weight, [pat_sp.attn_channels, pat_sp.conv_channels])
    bias = weight.new_zeros(weight.shape[0]) if fc2.bias is None else fc2.bias.detach().clone()
    bias[pat_sp.attn_channels :] = kernel @ bias[pat_sp.attn_channels :]
    if conv.bias is not None:
        bias[pat_sp.attn_channels :] += conv.bias.detach()
    return with_weights(fc2, torch.cat((attended, kernel @ convolved))[:, :, None, None], bias)


@torch.fx.wrap
@torch.jit.unused
def check_size(x: Tensor, min_size: int) -> None:
    """Raise ValueError if images are smaller than one position of the last feature map."""
    if min(x.shape[-2:]) < min_size:
        raise ValueError(
            f"Images of {x.shape[-2]}×{x.shape[-1]} pixels are too small: the network divides the resolution by "
            f"{min_size}. Enlarge them to at least {min_size}×{min_size}."
        )


class PatchEmbed(nn.Module):
    """Stem: a convolution whose stride is its kernel, and BatchNorm. Pixels beyond a whole patch are dropped.

    It refuses images below ``min_size``, here, where extractors of features that rebuild the network pass as well.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        patch_size: int,
        min_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.min_size = min_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=False, device=device, dtype=dtype)
        self.norm: nn.Module = nn.BatchNorm2d(embed_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
            check_size(x, self.min_size)
        return self.norm(self.proj(x))

    @torch.jit.ignore
    def fuse(self) -> PatchEmbed:
        """A stem whose convolution has absorbed the BatchNorm; the stem itself if one of them was replaced."""
        if not can_be_folded(self.proj, self.norm):
            return self
        folded = copy.copy(self)
        proj = with_fixed_weights(copy.deepcopy(self.proj))
        folded._modules = {"proj": fold_batch_norm(proj, self.norm), "norm": nn.Identity()}
        return folded.eval()


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels by a 2×2 convolution of stride 2, and BatchNorm."""

    def __init__(
        self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, 2 * channels, 2, 2, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(2 * channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x))

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """Convolution and BatchNorm as one convolution; the merging itself if one of them was replaced."""
        if not can_be_folded(self.reduction, self.norm):
            return self
        return fold_batch_norm(with_fixed_weights(copy.deepcopy(self.reduction)), self.norm)


class DilatedMerging(PatchMerging):
    """A merging that keeps the resolution: at every other position it computes what the merging of stride 2 does.

    Its 2×2 taps are ``dilation`` positions apart; beyond the border, at the bottom and at the right, there are zeros.
    """

    def __init__(
        self, channels: int, dilation: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(channels, device, dtype)
        self.reduction.stride, self.reduction.dilation = (1, 1), (dilation, dilation)
        self.pad = nn.ZeroPad2d((0, dilation, 0, dilation))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(self.pad(x)))

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """Padding, then convolution and BatchNorm as one convolution."""
        folded = super().fuse()
        return folded if folded is self else nn.Sequential(self.pad, folded).eval()


class OutputNorm(nn.BatchNorm2d):
    """BatchNorm of a stage's output; nothing follows that could absorb it, so it folds to scale and shift."""

    @torch.jit.ignore
    def fuse(self) -> ChannelAffine:
        """Scale and shift at inference."""
        return ChannelAffine(*batch_norm_affine(self, self.weight)).eval()
