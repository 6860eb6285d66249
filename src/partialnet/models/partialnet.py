"""PartialNet: a hybrid backbone of partial attention convolutions.

Paper: Huang et al., "Partial Channel Network: Compute Fewer, Perform Better", arXiv:2502.01303, Sec. 3.3, Fig. 3 and
Table 9.

Importing this module registers ``partialnet_t0`` … ``partialnet_l`` with timm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, SelectAdaptivePool2d, register_notrace_function, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import checkpoint_seq as run_checkpointed
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from partialnet.layers import GaussianSE, PATConv, SpatialGate, pat_ch, pat_sf, pat_sp
from partialnet.layers.affine import ChannelAffine, batch_norm_affine, fold_batch_norm, fold_input_affine, with_weights

from .released import convert_released, is_released

__all__ = ["MIXERS", "PartialNet"]

#: A mixer's name, or a mapping with its name under "name" and arguments for it, such as an attention or a scope.
MixerSpec = str | Mapping[str, Any]

SplitRatio = float | Sequence[float]


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


def _create_mixer(spec: MixerSpec, channels: int, split_ratio: float, dd: dict[str, Any]) -> nn.Module:
    name, arguments = _parse_mixer(spec)
    if name in _SPLIT_MIXERS:
        arguments = {"split_ratio": split_ratio, **arguments}
    try:
        return MIXERS[name](channels, **arguments, **dd)
    except TypeError as error:
        raise ValueError(f"Mixer {name!r} does not take {arguments}: {error}") from error


def _parse_mixer(spec: MixerSpec) -> tuple[str, dict[str, Any]]:
    arguments = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = arguments.pop("name", None)
    if name not in MIXERS:
        raise ValueError(f"Unknown mixer {name!r}. Choose one of {', '.join(MIXERS)}.")
    return str(name), arguments


def _create_mlp_attention(spec: bool | Mapping[str, Any], channels: int, dd: dict[str, Any]) -> nn.Module:
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
        return FoldedPartialNetBlock(self)


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
        if isinstance(mixer, PATConv) and not block.mixer_residual:
            mixer, scale, shift = mixer.fuse_up_to_affine()
            fc1 = fold_input_affine(fc1, scale, shift)
        elif isinstance(mixer, PATConv):
            mixer = mixer.fuse()
        self.mixer = mixer
        self.fc1 = fc1
        self.act = block.mlp.act
        self.fc2, attention = block.mlp.fc2, block.mlp_attention
        self.gate: nn.Module = attention
        if isinstance(attention, PATConv) and isinstance(attention.attn, SpatialGate):
            self.fc2 = _merge_convolution(self.fc2, attention)
            self.gate = _SpatialGate(attention)
        elif isinstance(attention, PATConv):
            self.gate = attention.fuse()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(x)
        if self.mixer_residual:
            x = x + mixed
            mixed = x
        return x + self.gate(self.fc2(self.act(self.fc1(mixed))))


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

    def forward(self, y: Tensor) -> Tensor:
        return y * (self.passed + self.gated * F.hardsigmoid(self.conv(y))) + self.shift


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


class PartialNetStage(nn.Module):
    """Merging (identity in the first stage), then the blocks of one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return run_checkpointed(self.blocks, x)
        return self.blocks(x)


class PartialNet(nn.Module):
    """PartialNet classifier and backbone.

    Args:
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 leaves the classifier out.
        global_pool: timm's pooling name; "" keeps the feature map.
        embed_dim: Channels of the first stage; doubled by every merging.
        depths: Number of blocks in each stage.
        split_ratio: Share of channels that PAT_ch and PAT_sf convolve: one number, or one for each block.
        mixers: One mixer per stage; see ``MIXERS``. A mapping sets arguments of the block, for example
            ``{"name": "pat_ch", "attention": "srm"}`` or ``{"name": "pat_ch", "attention_scope": "full"}``.
        mlp_attention: Follow each MLP by PAT_sp; a mapping gives it arguments, such as ``{"attention_scope": "full"}``.
        mlp_ratio: Hidden channels of the MLP per channel.
        patch_size: Kernel and stride of the stem.
        head_hidden_size: Channels of the convolution before the classifier.
        out_norms: Add a BatchNorm for each stage's output, applied by ``forward_intermediates(norm=True)`` and
            ``features_only``, as the released detection backbones have.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        act_layer: Activation, a class, or the name "gelu" or "relu".
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, in_chans, H, W) → (B, num_classes). H and W are at least ``patch_size · 2^(stages − 1)`` (32). Sizes that
        are not multiples of it are allowed: every strided convolution drops the rows and columns beyond its last
        whole window, at the bottom and at the right.

    Raises:
        ValueError: An argument does not fit; the message names the value and what is allowed.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 2, 6, 4),
        split_ratio: SplitRatio = 1 / 4,
        mixers: Sequence[MixerSpec] = ("pat_ch", "pat_ch", "pat_ch", "pat_sf"),
        mlp_attention: bool | Mapping[str, Any] = True,
        mlp_ratio: float = 2.0,
        patch_size: int = 4,
        head_hidden_size: int = 1280,
        out_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | Callable[..., nn.Module] = "relu",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if len(mixers) != len(depths):
            raise ValueError(f"mixers names {len(mixers)} stages, depths {len(depths)}; give one mixer for each stage.")
        ratios = _ratio_per_block(split_ratio, sum(depths))
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        act = _activation(act_layer)

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info: list[dict[str, Any]] = []
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, patch_size * 2 ** (len(depths) - 1), **dd)

        stages: list[nn.Module] = []
        norms: list[nn.Module] = []
        first = 0
        for index, (depth, mixer) in enumerate(zip(depths, mixers, strict=True)):
            channels = embed_dim * 2**index
            blocks = [
                PartialNetBlock(
                    channels,
                    mixer=_create_mixer(mixer, channels, ratios[block], dd),
                    mixer_residual=_parse_mixer(mixer)[0] == "pat_sf",
                    mlp_attention=_create_mlp_attention(mlp_attention, channels, dd),
                    mlp_ratio=mlp_ratio,
                    act_layer=act,
                    drop_path=drop_paths[block],
                    **dd,
                )
                for block in range(first, first + depth)
            ]
            first += depth
            stages.append(PartialNetStage(PatchMerging(channels // 2, **dd) if index else nn.Identity(), blocks))
            norms.append(OutputNorm(channels, **dd) if out_norms else nn.Identity())
            self.feature_info.append(
                {"num_chs": channels, "reduction": patch_size * 2**index, "module": f"stages.{index}"}
            )
        self.stages = nn.Sequential(*stages)
        self.out_norms = nn.ModuleList(norms)

        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.head_hidden_size = head_hidden_size
        self.global_pool = _pooling(global_pool)
        self.conv_head: nn.Module = nn.Conv2d(self.num_features, head_hidden_size, 1, bias=False, **dd)
        self.act: nn.Module = act()
        self.flatten: nn.Module = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier: nn.Module = _classifier(head_hidden_size, num_classes, **dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Truncated normal of deviation 0.02 for every weight of a convolution or dense layer, biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, GaussianSE):
                module.reset_parameters()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay: the relative position tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("position_bias.table")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's parameter groups, for layer-wise decay: stem, then every merging and block (``coarse``: stage)."""
        return {
            "stem": r"^patch_embed",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^(?:out_norms|conv_head)", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass, which trades time for memory."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last dense layer; Identity without classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of ``num_classes`` (0: none) and, if given, the pooling."""
        reference = next(self.parameters())
        if global_pool is not None:
            self.global_pool = _pooling(global_pool)
            self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.num_classes = num_classes
        self.classifier = _classifier(
            self.head_hidden_size, num_classes, device=reference.device, dtype=reference.dtype
        )
        self.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of the stages, for dense prediction.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: Stages to return: the last n if a number, all if None.
            norm: Apply each stage's BatchNorm of ``out_norms``.
            stop_early: Do not run stages beyond the last one asked for.
            output_fmt: "NCHW".
            intermediates_only: Return the list alone, without the last features.

        Returns:
            Last features and the list of the stages' outputs, (B, embed_dim · 2^i, H / 4·2^i, W / 4·2^i).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: PartialNet returns NCHW feature maps only.")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates: list[Tensor] = []
        x = self.patch_embed(x)
        stages = self.stages[: last + 1] if stop_early and not torch.jit.is_scripting() else self.stages
        for index, stage in enumerate(stages):
            x = stage(x)
            if index in take:
                intermediates.append(self.out_norms[index](x) if norm else x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what ``forward_intermediates(indices=…)`` does not need, and return the stages' indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.out_norms = self.out_norms[: last + 1]
        if prune_norm:
            self.out_norms = nn.ModuleList(nn.Identity() for _ in self.out_norms)
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
            self.patch_embed.min_size = self.feature_info[last]["reduction"]
        if prune_head or shortened:
            self.conv_head = nn.Identity()
            self.act = nn.Identity()
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Images, (B, in_chans, H, W), to the last stage's features, (B, num_features, H / 32, W / 32)."""
        return self.stages(self.patch_embed(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to class logits, or to the classifier's input if ``pre_logits``."""
        x = self.flatten(self.act(self.conv_head(self.global_pool(x))))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _ratio_per_block(split_ratio: SplitRatio, num_blocks: int) -> list[float]:
    ratios = [split_ratio] * num_blocks if isinstance(split_ratio, (int, float)) else list(split_ratio)
    if len(ratios) != num_blocks:
        raise ValueError(
            f"split_ratio has {len(ratios)} entries for {num_blocks} blocks; give one number or {num_blocks}."
        )
    return ratios


def _activation(act_layer: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if callable(act_layer):
        return act_layer
    activations: dict[str, Callable[..., nn.Module]] = {"gelu": nn.GELU, "relu": partial(nn.ReLU, inplace=True)}
    if act_layer not in activations:
        raise ValueError(f"Unknown act_layer {act_layer!r}. Choose gelu, relu or a class.")
    return activations[act_layer]


def _pooling(global_pool: str) -> nn.Module:
    if global_pool not in ("avg", "max", "avgmax", ""):
        raise ValueError(f"global_pool={global_pool!r} is not possible. Choose avg, max, avgmax or ''.")
    return SelectAdaptivePool2d(pool_type=global_pool)


def _classifier(features: int, num_classes: int, device: Any = None, dtype: Any = None) -> nn.Module:
    if num_classes <= 0:
        return nn.Identity()
    classifier = nn.Linear(features, num_classes, device=device, dtype=dtype)
    trunc_normal_(classifier.weight, std=0.02)
    nn.init.zeros_(classifier.bias)
    return classifier


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's checkpoint filter: the authors' layout becomes ours, ours stays as it is."""
    return convert_released(state_dict).state_dict if is_released(state_dict) else state_dict


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "classifier",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2502.01303",
        "paper_name": "Partial Channel Network: Compute Fewer, Perform Better",
        "origin_url": "https://github.com/haiduo/PartialNet",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {f"partialnet_{size}.untrained": _cfg() for size in ("t0", "t1", "t2", "s", "m", "l")}
)


def _create_partialnet(variant: str, pretrained: bool = False, **kwargs: Any) -> PartialNet:
    features: dict[str, Any] = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    if kwargs.get("out_norms"):
        features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter", "norm": True}
    return build_model_with_cfg(
        PartialNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=features,
        **kwargs,
    )


@register_model
def partialnet_t0(pretrained: bool = False, **kwargs: Any) -> PartialNet:
    """PartialNet-T0: 4.3 M parameters, 0.25 G multiply–adds at 224² when folded."""
    args: dict[str, Any] = {"embed_dim": 32, "depths": (1, 2, 6, 4), "act_layer": "gelu"}
    return _create_partialnet("partialnet_t0", pretrained, **{**args, **kwargs})


@register_model
def partialnet_t1(pretrained: bool = False, **kwargs: Any) -> PartialNet:
    """PartialNet-T1: 7.8 M parameters, 0.55 G multiply–adds at 224² when folded."""
    args: dict[str, Any] = {"embed_dim": 48, "depths": (1, 2, 6, 4), "act_layer": "gelu", "drop_path_rate": 0.02}
    return _create_partialnet("partialnet_t1", pretrained, **{**args, **kwargs})


@register_model
def partialnet_t2(pretrained: bool = False, **kwargs: Any) -> PartialNet:
    """PartialNet-T2: 12.6 M parameters, 1.03 G multiply–adds at 224² when folded."""
    args: dict[str, Any] = {"embed_dim": 64, "depths": (2, 2, 6, 4), "drop_path_rate": 0.05}
    return _create_partialnet("partialnet_t2", pretrained, **{**args, **kwargs})


@register_model
def partialnet_s(pretrained: bool = False, **kwargs: Any) -> PartialNet:
    """PartialNet-S: 29.0 M parameters, 2.71 G multiply–adds at 224² when folded."""
    args: dict[str, Any] = {"embed_dim": 96, "depths": (2, 2, 9, 4), "drop_path_rate": 0.1}
    return _create_partialnet("partialnet_s", pretrained, **{**args, **kwargs})


@register_model
def partialnet_m(pretrained: bool = False, **kwargs: Any) -> PartialNet:
    """PartialNet-M: 61.3 M parameters, 6.69 G multiply–adds at 224² when folded."""
    args: dict[str, Any] = {"embed_dim": 128, "depths": (2, 3, 16, 4), "drop_path_rate": 0.2}
    return _create_partialnet("partialnet_m", pretrained, **{**args, **kwargs})


@register_model
def partialnet_l(pretrained: bool = False, **kwargs: Any) -> PartialNet:
    """PartialNet-L: 104.4 M parameters, 11.91 G multiply–adds at 224² when folded."""
    args: dict[str, Any] = {"embed_dim": 160, "depths": (2, 3, 20, 4), "drop_path_rate": 0.3}
    return _create_partialnet("partialnet_l", pretrained, **{**args, **kwargs})
