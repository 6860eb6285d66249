"""PartialNet: a hybrid backbone of partial attention convolutions.

Paper: Huang et al., "Partial Channel Network: Compute Fewer, Perform Better", arXiv:2502.01303, Sec. 3.3, Fig. 3 and
Table 9.

Importing this module registers ``partialnet_t0`` … ``partialnet_l`` with timm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d, get_act_layer, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import checkpoint_seq as run_checkpointed
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from partialnet.arguments import check_count, check_number, entries
from partialnet.layers import GaussianSE

from .blocks import (
    DilatedMerging,
    MixerSpec,
    OutputNorm,
    PartialNetBlock,
    PatchEmbed,
    PatchMerging,
    create_mixer,
    create_mlp_attention,
    parse_mixer,
)
from .released import convert_released, is_released

__all__ = ["PartialNet"]

SplitRatio = float | Sequence[float]


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
        global_pool: timm's pooling name; "" keeps the feature map, for networks without classifier.
        embed_dim: Channels of the first stage; doubled by every merging.
        depths: Number of blocks in each stage.
        split_ratio: Share of channels that PAT_ch and PAT_sf convolve: one number, or one for each block. A block of
            ratio 1 convolves all channels and has no attention.
        mixers: One mixer per stage; see ``MIXERS`` in ``blocks.py``. A mapping sets arguments of the block, for example
            ``{"name": "pat_ch", "attention": "srm"}`` or ``{"name": "pat_ch", "attention_scope": "full"}``.
        mlp_attention: Follow each MLP by PAT_sp; a mapping gives it arguments, such as ``{"attention_scope": "full"}``.
        mlp_ratio: Hidden channels of the MLP per channel.
        patch_size: Kernel and stride of the stem.
        output_stride: Most that the resolution is divided by: mergings beyond it keep the resolution, and convolutions
            behind them are dilated instead, for segmentation by the same weights. None sets no limit.
        head_hidden_size: Channels of the convolution before the classifier.
        out_norms: Add a BatchNorm for each stage's output, applied by ``forward_intermediates(norm=True)`` and
            ``features_only``, as the released detection backbones have.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        act_layer: Activation, a class, or a name that timm knows, such as "gelu" or "relu".
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, in_chans, H, W) → (B, num_classes). H and W are at least ``patch_size · 2^(stages − 1)`` (32), or
        ``output_stride``. Sizes that are not multiples of it are allowed: every strided convolution drops the rows and
        columns beyond its last whole window, at the bottom and at the right.

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
        output_stride: int | None = None,
        head_hidden_size: int = 1280,
        out_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | Callable[..., nn.Module] = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        depths, mixers = entries("depths", depths, "stage"), entries("mixers", mixers, "stage")
        if not depths:
            raise ValueError("depths=() leaves the network without stages; give the number of blocks in each stage.")
        if len(mixers) != len(depths):
            raise ValueError(f"mixers names {len(mixers)} stages, depths {len(depths)}; give one mixer for each stage.")
        check_count("in_chans", in_chans)
        check_count("embed_dim", embed_dim)
        check_count("patch_size", patch_size)
        check_count("head_hidden_size", head_hidden_size)
        check_count("num_classes", num_classes, least=0)
        if not all(isinstance(depth, Integral) and int(depth) >= 0 for depth in depths):
            raise ValueError(f"depths={depths!r} must be whole numbers of at least 0.")
        check_number("mlp_ratio", mlp_ratio)
        if not embed_dim * mlp_ratio >= 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} of {embed_dim} channels leaves the MLP no hidden channel.")
        check_number("drop_rate", drop_rate, 0, 1)
        check_number("drop_path_rate", drop_path_rate, 0, 1)
        strides = [patch_size * 2**index for index in range(len(depths))]
        if output_stride not in (None, *strides):
            raise ValueError(f"output_stride={output_stride!r} must be one of {strides}, or None.")
        dilations = [max(stride // (output_stride or stride), 1) for stride in strides]
        ratios = _ratio_per_block(split_ratio, sum(depths))
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        act = _activation(act_layer)

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info: list[dict[str, Any]] = []
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, strides[-1] // dilations[-1], **dd)

        stages: list[nn.Module] = []
        norms: list[nn.Module] = []
        first = 0
        for index, (depth, mixer) in enumerate(zip(depths, mixers, strict=True)):
            channels = embed_dim * 2**index
            blocks = [
                PartialNetBlock(
                    channels,
                    mixer=create_mixer(mixer, channels, ratios[block], dilations[index], dd),
                    mixer_residual=parse_mixer(mixer)[0] == "pat_sf",
                    mlp_attention=create_mlp_attention(mlp_attention, channels, dd),
                    mlp_ratio=mlp_ratio,
                    act_layer=act,
                    drop_path=drop_paths[block],
                    **dd,
                )
                for block in range(first, first + depth)
            ]
            first += depth
            merging: nn.Module = PatchMerging(channels // 2, **dd) if index else nn.Identity()
            if dilations[index] > 1:
                merging = DilatedMerging(channels // 2, dilations[index] // 2, **dd)
            stages.append(PartialNetStage(merging, blocks))
            norms.append(OutputNorm(channels, **dd) if out_norms else nn.Identity())
            self.feature_info.append(
                {"num_chs": channels, "reduction": strides[index] // dilations[index], "module": f"stages.{index}"}
            )
        self.stages = nn.Sequential(*stages)
        self.out_norms = nn.ModuleList(norms)

        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.head_hidden_size = head_hidden_size
        self.global_pool = _pooling(global_pool, num_classes)
        self.conv_head: nn.Module = nn.Conv2d(self.num_features, head_hidden_size, 1, bias=False, **dd)
        self.act: nn.Module = act()
        self.flatten: nn.Module = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier: nn.Module = _classifier(head_hidden_size, num_classes, **dd)
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Normal distribution of deviation 0.02 for every weight of a convolution or dense layer, biases 0.

        Args:
            needs_reset: Let all other layers reset theirs, too, such as norms and position tables, for a network that
                was trained or has come from the meta device by ``to_empty``.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, GaussianSE) or (needs_reset and hasattr(module, "reset_parameters")):
                module.reset_parameters()  # type: ignore[operator]

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
        """Recompute the blocks' activations in the backward pass, which trades time for memory.

        BatchNorms then see each batch twice, as in timm's other networks: their running statistics follow it faster.
        """
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last dense layer; Identity without classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of ``num_classes`` (0: none) and, if given, the pooling."""
        check_count("num_classes", num_classes, least=0)
        reference = next(self.parameters())
        global_pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool = _pooling(global_pool, num_classes)
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
            Last features and the list of the stages' outputs, (B, embed_dim · 2^i, H / (4 · 2^i), W / (4 · 2^i)).
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


def _ratio_per_block(split_ratio: SplitRatio, num_blocks: int) -> Sequence[float]:
    if isinstance(split_ratio, Real):
        return [float(split_ratio)] * num_blocks
    ratios = entries("split_ratio", split_ratio, "block")
    if len(ratios) != num_blocks:
        raise ValueError(
            f"split_ratio has {len(ratios)} entries for {num_blocks} blocks; give one number or {num_blocks}."
        )
    return ratios


def _activation(act_layer: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if callable(act_layer) and not isinstance(act_layer, nn.Module):
        return act_layer
    activations: dict[str, Callable[..., nn.Module]] = {"gelu": nn.GELU, "relu": partial(nn.ReLU, inplace=True)}
    if isinstance(act_layer, str) and act_layer:
        with suppress(KeyError):
            return activations.get(act_layer) or get_act_layer(act_layer)
    raise ValueError(
        f"Unknown act_layer {act_layer!r}. Choose gelu, relu or a class, or another name of timm's, such as silu."
    )


def _pooling(global_pool: str, num_classes: int) -> SelectAdaptivePool2d:
    if global_pool not in ("avg", "max", "avgmax", ""):
        raise ValueError(f"global_pool={global_pool!r} is not possible. Choose avg, max, avgmax or ''.")
    if num_classes and not global_pool:
        raise ValueError(
            "global_pool='' leaves a feature map, which a classifier cannot take; give num_classes=0 as well."
        )
    return SelectAdaptivePool2d(pool_type=global_pool)


def _classifier(
    features: int, num_classes: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    if num_classes <= 0:
        return nn.Identity()
    classifier = nn.Linear(features, num_classes, device=device, dtype=dtype)
    _draw(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


def _draw(weight: Tensor) -> None:
    """Draw from a normal distribution of deviation 0.02, truncated at 6 deviations."""
    # timm maps the smallest of its 2^24 random numbers to the bound, which would be ±2 by default
    trunc_normal_(weight, std=0.02, a=-0.12, b=0.12)


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
    stages = tuple(range(len(entries("depths", kwargs["depths"], "stage"))))
    features: dict[str, Any] = {"out_indices": stages, "flatten_sequential": True}
    if kwargs.get("out_norms"):
        features = {"out_indices": stages, "feature_cls": "getter", "norm": True}
        kind = kwargs.get("feature_cls", "getter")
        if kwargs.get("features_only") and kind not in ("getter", FeatureGetterNet):
            raise ValueError(f"feature_cls={kind!r} does not support out_norms; leave it out, or give 'getter'.")
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
