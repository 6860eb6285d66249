"""The parts of PartialNet: stem, merging, blocks, and what blocks mix positions with.

Source: paper, Fig. 3 and Table 9.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, register_notrace_function
from torch import Tensor, nn

from partialnet.layers import DPConv, PATConv, SpatialGate, pat_ch, pat_sf, pat_sp
from partialnet.layers.affine import (
    ChannelAffine,
    batch_norm_affine,
    fold_batch_norm,
    fold_input_affine,
    keeps_forward,
    with_weights,
)
from partialnet.layers.eager import (
    EagerPATConv,
    PositionGate,
    PositionwiseLinear,
    activate_in_place,
    cached_parts,
    map_of,
    may_write_in_place,
    positions_of,
    rows_of,
)
from partialnet.layers.inference import Runtime, SplitSpatialGate, absorb_gate_scale, clipped_sigmoid

#: A mixer's name, or a mapping with its name under "name" and arguments for it, such as an attention or a scope.
MixerSpec = str | Mapping[str, Any]


def _regular_conv(channels: int, device: Any = None, dtype: Any = None) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)


def _depthwise_conv(channels: int, device: Any = None, dtype: Any = None) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False, device=device, dtype=dtype)


#: What can mix positions in a block: the paper's two blocks and the convolutions that its Table 6 compares them with.
MIXERS: dict[str, Callable[..., nn.Module]] = {
    "pat_ch": pat_ch,
    "pat_sf": pat_sf,
    "conv": _regular_conv,
    "dwconv": _depthwise_conv,
}
_SPLIT_MIXERS = ("pat_ch", "pat_sf")


def create_mixer(spec: MixerSpec, channels: int, split_ratio: float, dd: dict[str, Any]) -> nn.Module:
    """The mixer that ``spec`` describes; ``dd`` holds its parameters' device and dtype."""
    name, arguments = parse_mixer(spec)
    if name in _SPLIT_MIXERS:
        arguments = {"split_ratio": split_ratio, **arguments}
        if arguments["split_ratio"] == 1 and arguments.get("attention_scope", "partial") == "partial":
            # all channels are convolved, as a search may find; nothing is left to attend over
            return PATConv(channels, split_ratio=1, attention=None, **dd)
    try:
        return MIXERS[name](channels, **arguments, **dd)
    except TypeError as error:
        raise ValueError(f"Mixer {name!r} does not take {arguments}: {error}") from error


def parse_mixer(spec: MixerSpec) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a mixer; an unknown name raises ValueError."""
    arguments = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = arguments.pop("name", None)
    if name not in MIXERS:
        raise ValueError(f"Unknown mixer {name!r}. Choose one of {', '.join(MIXERS)}.")
    return str(name), arguments


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
        self, channels: int, hidden: int, act_layer: Callable[..., nn.Module], device: Any = None, dtype: Any = None
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
        device: Any = None,
        dtype: Any = None,
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
        """The block for inference: PAT_sp's convolution and all BatchNorms folded into the MLP."""
        return FoldedPartialNetBlock(copy.deepcopy(self))


class FoldedPartialNetBlock(nn.Module):
    """``PartialNetBlock`` at inference.

    With y the output of the MLP, into whose second convolution PAT_sp's is merged, and a the gate:
    ``x + y · (passed + gated · a) + shift``. ``gated`` is the scale of the BatchNorm behind the gate on gated channels
    and 0 elsewhere, ``passed`` is 1 on the other channels. Runtimes fuse this form into one pass, without the split and
    concatenation of PAT_sp.

    Source: paper, Sec. 3.1 (PAT_sp merges into the MLP); the algebra is ours.
    """

    def __init__(self, block: PartialNetBlock) -> None:
        super().__init__()
        self.mixer_residual = block.mixer_residual
        mixer, fc1 = block.mixer, fold_batch_norm(block.mlp.fc1, block.mlp.norm)
        if isinstance(mixer, DPConv):
            mixer = mixer.to_static()
        if keeps_forward(mixer, PATConv) and not block.mixer_residual:
            mixer, scale, shift = mixer.fuse_up_to_affine()
            fc1 = fold_input_affine(fc1, scale, shift)
        elif keeps_forward(mixer, PATConv):
            mixer = mixer.fuse()
        self.mixer = mixer
        self.fc1 = fc1
        self.act = block.mlp.act
        attention = block.mlp_attention
        self.fc2: nn.Module = block.mlp.fc2
        self.gate: nn.Module = attention
        if keeps_forward(attention, PATConv) and keeps_forward(attention.attn, SpatialGate):
            self.fc2 = _merge_convolution(block.mlp.fc2, attention)
            self.gate = _SpatialGate(attention)
        elif keeps_forward(attention, PATConv):
            self.gate = attention.fuse()
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
        if runtime == "torch" and isinstance(self.gate, (_SpatialGate, nn.Identity)):
            return EagerPartialNetBlock(self)
        if runtime == "onnxruntime" and isinstance(self.gate, _SpatialGate) and isinstance(self.fc2, nn.Conv2d):
            self.gate = self.gate.split_gate(self.fc2)
            self.fc2 = nn.Identity()
        return self


class EagerPartialNetBlock(nn.Module):
    """``FoldedPartialNetBlock`` for eager PyTorch, (B, C, H, W) → (B, C, H, W).

    The MLP and PAT_sp's gate see a map in the channels_last layout as a matrix of positions, which takes neither copies
    nor PyTorch's slow 1×1 convolution. Without autograd they go through it part by part, so that a part's hidden
    features are still in the cache when the next layer reads them, and write in place. The hooks of the block's parts
    are then passed over.
    """

    def __init__(self, block: FoldedPartialNetBlock) -> None:
        super().__init__()
        self.mixer_residual = block.mixer_residual
        self.mixer = block.mixer
        fc2, self.gate = block.fc2, block.gate
        if isinstance(block.gate, _SpatialGate) and isinstance(fc2, nn.Conv2d):
            fc2, self.gate = block.gate.position_gate(fc2)
        self.fc1, self.act, self.fc2 = _positionwise(block.fc1), block.act, _positionwise(fc2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if may_write_in_place():
            return self._in_place(x)
        mixed = self.mixer(x)
        if self.mixer_residual:
            x = mixed = mixed + x
        return map_of(self.gate(self.fc2(self.act(self.fc1(positions_of(mixed))))) + positions_of(x), x)

    def _in_place(self, x: Tensor) -> Tensor:
        modules: dict[str, Any] = self._modules
        mixer, gate = modules["mixer"], modules["gate"]
        fc1, act, fc2 = modules["fc1"], modules["act"], modules["fc2"]
        mixed = mixer.in_place(x) if isinstance(mixer, EagerPATConv) else mixer(x)
        if self.mixer_residual:
            x = mixed.add_(x)
        positions, residual = positions_of(mixed), positions_of(x)
        y = torch.empty_like(residual)
        for rows in cached_parts(y.shape[0], fc1.out_features, y.element_size()):
            hidden = activate_in_place(act, fc1.product(rows_of(positions, rows)))
            part = fc2.product(hidden, out=rows_of(y, rows))
            if isinstance(gate, PositionGate):
                gate.in_place(part)
            part.add_(rows_of(residual, rows))
        return map_of(y, x)


def _positionwise(conv: nn.Module) -> PositionwiseLinear:
    assert isinstance(conv, nn.Conv2d)
    return PositionwiseLinear(conv.weight[:, :, 0, 0], conv.bias)


class _SpatialGate(nn.Module):
    """PAT_sp's gate with its BatchNorm, over all channels at once; (B, C, H, W) → (B, C, H, W)."""

    passed: Tensor

    def __init__(self, pat_sp: PATConv) -> None:
        super().__init__()
        gate: Any = pat_sp.attn
        row = gate.conv.weight.detach()[:, :, 0, 0]  # (1, number of gated channels)
        scale, shift = batch_norm_affine(gate.norm, row[0])
        padding = (0, pat_sp.out_channels - row.shape[1])
        self.conv = with_weights(gate.conv, F.pad(row, padding)[:, :, None, None], None)
        self.gated = nn.Parameter(F.pad(scale, padding)[:, None, None])
        self.register_buffer("passed", F.pad(torch.zeros_like(scale), padding, value=1.0)[:, None, None])
        self.shift = nn.Parameter(F.pad(shift, padding)[:, None, None])
        self.hard_sigmoid: Callable[[Tensor], Tensor] = F.hardsigmoid

    def forward(self, y: Tensor) -> Tensor:
        return y * (self.passed + self.gated * self.hard_sigmoid(self.conv(y))) + self.shift

    @torch.jit.ignore
    def for_runtime(self, runtime: Runtime) -> nn.Module:
        """The form that suits a runtime; OpenVINO fuses this one into a single pass."""
        if runtime == "openvino":
            self.hard_sigmoid = clipped_sigmoid
        return self

    def split_gate(self, fc2: nn.Conv2d) -> SplitSpatialGate:
        """The same gate together with the convolution before it."""
        return SplitSpatialGate(fc2, *self._gated())

    def position_gate(self, fc2: nn.Conv2d) -> tuple[nn.Conv2d, PositionGate]:
        """The convolution before the gate, and the same gate on a matrix of positions."""
        conv, scale, shift = self._gated()
        fc2, conv, left = absorb_gate_scale(fc2, conv, scale)
        return fc2, PositionGate(conv, left, shift)

    def _gated(self) -> tuple[nn.Conv2d, Tensor, Tensor]:
        """Convolution, scale, (gated channels,), and shift, (gated channels,), of the gated channels alone."""
        gated = int((self.passed == 0).sum())
        weight = self.conv.weight.detach()[:, :gated]
        return with_weights(self.conv, weight, None), self.gated[:gated, 0, 0], self.shift[:gated, 0, 0]


def _merge_convolution(fc2: nn.Conv2d, pat_sp: PATConv) -> nn.Conv2d:
    """One 1×1 convolution for ``fc2`` and the convolution of PAT_sp, with its BatchNorm, on the last channels."""
    conv = fold_input_affine(pat_sp.conv, *batch_norm_affine(pat_sp.conv_norm, pat_sp.conv.weight[0, :, 0, 0]))
    weight = fc2.weight.detach()[:, :, 0, 0]  # (C, hidden)
    kernel = conv.weight.detach()[:, :, 0, 0]
    attended, convolved = torch.split(weight, [pat_sp.attn_channels, pat_sp.conv_channels])
    bias = weight.new_zeros(kernel.shape[0]) if conv.bias is None else conv.bias.detach()
    return with_weights(
        fc2, torch.cat((attended, kernel @ convolved))[:, :, None, None], F.pad(bias, (pat_sp.attn_channels, 0))
    )


@register_notrace_function
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
        self, in_chans: int, embed_dim: int, patch_size: int, min_size: int, device: Any = None, dtype: Any = None
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
        """A stem whose convolution has absorbed the BatchNorm."""
        folded = copy.copy(self)
        folded._modules = {"proj": fold_batch_norm(self.proj, self.norm), "norm": nn.Identity()}
        return folded.eval()


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels by a 2×2 convolution of stride 2, and BatchNorm."""

    def __init__(self, channels: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, 2 * channels, 2, 2, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(2 * channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x))

    @torch.jit.ignore
    def fuse(self) -> nn.Conv2d:
        """Convolution and BatchNorm as one convolution."""
        return fold_batch_norm(self.reduction, self.norm)


class OutputNorm(nn.BatchNorm2d):
    """BatchNorm of a stage's output; nothing follows that could absorb it, so it folds to scale and shift."""

    @torch.jit.ignore
    def fuse(self) -> ChannelAffine:
        """Scale and shift at inference."""
        return ChannelAffine(*batch_norm_affine(self, self.weight)).eval()
