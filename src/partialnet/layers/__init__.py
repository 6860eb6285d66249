"""Layers: partial attention convolution and the attentions it is built with."""

from .attention import ATTENTIONS, AttentionLike, create_attention
from .dp_conv import DPConv
from .gaussian_se import GaussianSE
from .pat_conv import PATConv, pat_ch, pat_sf, pat_sp
from .self_attention import RelativePositionBias, SelfAttention2d
from .spatial_gate import SpatialGate

__all__ = [
    "ATTENTIONS",
    "AttentionLike",
    "DPConv",
    "GaussianSE",
    "PATConv",
    "RelativePositionBias",
    "SelfAttention2d",
    "SpatialGate",
    "create_attention",
    "pat_ch",
    "pat_sf",
    "pat_sp",
]
