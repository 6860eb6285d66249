"""PATConv in inverted bottlenecks: before the expansion, where PartialNet's own blocks have it."""

from __future__ import annotations

import copy
from functools import partial

import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import Tensor, nn

from partialnet.layers import PATConv
from partialnet.layers.affine import can_be_folded, fold_input_affine, is_pointwise, with_fixed_weights
from partialnet.layers.attention import AttentionLike
from partialnet.layers.pat_conv import AttentionScope

from .convolutions import for_every_layer, pat_conv_like


class MixedExpansion(nn.Module):
    """PATConv, then the 1×1 convolution that expands the channels, (B, C, H, W) → (B, hidden, H / stride, W / stride).

    Args:
        mixer: Mixes positions of the narrow map.
        expand: 1×1 convolution.
    """

    def __init__(self, mixer: PATConv, expand: nn.Conv2d) -> None:
        super().__init__()
        self.mixer = mixer
        self.expand = expand

    def forward(self, x: Tensor) -> Tensor:
        """Mix, then expand."""
        return self.expand(self.mixer(x))

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The same at inference; what follows the gates is folded into the 1×1 convolution."""
        if not is_pointwise(self.expand) or not can_be_folded(self.mixer.conv):
            return self
        fixed = with_fixed_weights(copy.deepcopy(self))
        mixer, scale, shift = fixed.mixer.fuse_up_to_affine()
        return nn.Sequential(mixer, fold_input_affine(fixed.expand, scale, shift)).eval()


def mix_before_expansion(
    model: nn.Module,
    split_ratio: float = 1 / 4,
    attention: AttentionLike = "gaussian_se",
    attention_scope: AttentionScope = "partial",
) -> nn.Module:
    """Move the mixing of positions in timm's inverted bottlenecks to where the channels are few, in a copy.

    A depthwise convolution of the expanded channels, with its normalisation and activation, goes; a PATConv of the
    same kernel, stride and dilation comes before the expansion. A depthwise convolution without expansion, as in the
    first block, is replaced where it stands.

    Args:
        model: A network of timm's EfficientNet family, such as MobileNetV2.
        split_ratio: Share of the channels that is convolved.
        attention: See ``partialnet.layers.create_attention``; None or "none" passes the other channels through.
        attention_scope: "partial" or "full".

    Source: paper, Fig. 3: PAT_ch before the two 1×1 convolutions. Its Table 5 does not say where MobileNetV2 has it.
    """
    model = copy.deepcopy(model)
    attention = for_every_layer(attention)
    build = partial(pat_conv_like, split_ratio=split_ratio, attention=attention, attention_scope=attention_scope)
    for block in model.modules():
        if type(block) is InvertedResidual:
            channels = block.conv_pw.in_channels
            block.conv_pw = MixedExpansion(build(block.conv_dw, channels, channels), block.conv_pw)
            block.conv_dw = block.bn2 = nn.Identity()
        elif type(block) is DepthwiseSeparableConv:
            channels = block.conv_dw.in_channels
            block.conv_dw = build(block.conv_dw, channels, channels)
    return model
