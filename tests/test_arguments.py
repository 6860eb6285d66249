"""Arguments of a kind that nobody can use are told in one sentence, which names them and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm_networks import small
from torch import nn

import partialnet
from partialnet import PartialNet, fold, replace_convs
from partialnet.layers import (
    DPConv,
    GaussianSE,
    PATConv,
    RelativePositionBias,
    SelfAttention2d,
    SpatialGate,
    create_attention,
)
from partialnet.search.network import make_dynamic, settle, with_ratios
from partialnet.search.objective import Objective
from partialnet.surgery import convert

CONVS = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))

LAYERS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    *((layer, {"channels": channels}, f"channels={channels!r} must be a whole number of at least 1")
      for layer in (GaussianSE, SpatialGate, SelfAttention2d) for channels in (0, -3, 3.5, "a", None)),
    (SelfAttention2d, {"channels": 16, "num_heads": 2.0}, "num_heads=2.0 does not divide the 16 attended channels"),
    (SelfAttention2d, {"channels": 16, "num_heads": "a"}, "num_heads='a' does not divide the 16 attended channels"),
    (RelativePositionBias, {"num_heads": 0}, "num_heads=0 must be a whole number of at least 1"),
    *((layer, {argument: value}, f"{argument}={value!r} must be a whole number, or the same one twice")
      for layer in (partial(PATConv, 16), partial(DPConv, 16)) for argument in ("kernel_size", "dilation")
      for value in ((3, 5), (3,), (3, 3, 3), 3.0, "3", None)),
    (PATConv, {"in_channels": 16, "stride": (2, 1)}, r"stride=(2, 1) must be a whole number, or the same one twice"),
    (PATConv, {"in_channels": 16, "stride": None}, "stride=None must be a whole number"),
    *((PATConv, {"in_channels": channels}, f"of {channels!r} channels: give a ratio")
      for channels in (64.0, "64", None)),
    (PATConv, {"in_channels": 16, "out_channels": "a"}, "of 'a' channels: give a ratio"),
    (PATConv, {"in_channels": 16, "split_ratio": "a"}, "split_ratio='a' of 16 channels: give a ratio"),
    (PATConv, {"in_channels": 16, "split_ratio": None}, "split_ratio=None of 16 channels: give a ratio"),
    (PATConv, {"in_channels": 16, "conv_norm": "batch"}, "conv_norm='batch' must build a layer"),
    (PATConv, {"in_channels": 16, "conv_norm": nn.ReLU()}, "conv_norm=ReLU() must build a layer"),
    (PATConv, {"in_channels": 16, "attention": lambda channels, device, dtype: channels}, "made 12 for 12 channels"),
    (create_attention, {"attention": "se", "channels": "a"}, "channels='a' must be a whole number"),
    (DPConv, {"channels": 48.0}, "channels=48.0 must be a whole number"),
    (DPConv, {"channels": 48, "split_ratio": None}, "split_ratio=None must be a number"),
    (DPConv, {"channels": 48, "min_channels": "a"}, "min_channels='a' must be a whole number"),
]  # fmt: skip

NETWORKS: list[tuple[dict[str, Any], str]] = [
    ({"depths": (), "mixers": ()}, "depths=() leaves the network without stages"),
    ({"depths": ()}, "depths=() leaves the network without stages"),
    ({"depths": 5}, "depths=5 must have an entry for each stage"),
    ({"depths": None}, "depths=None must have an entry for each stage"),
    ({"mixers": None}, "mixers=None must have an entry for each stage"),
    ({"mixers": "pat_ch"}, "mixers='pat_ch' must have an entry for each stage"),
    ({"mixers": (5,) * 4}, "Unknown mixer 5. Choose one of pat_ch"),
    ({"mixers": ({"name": ["pat_ch"]},) * 4}, "Unknown mixer ['pat_ch']. Choose one of pat_ch"),
    ({"split_ratio": "a"}, "split_ratio='a' must have an entry for each block"),
    ({"split_ratio": None}, "split_ratio=None must have an entry for each block"),
    ({"mlp_ratio": "a"}, "mlp_ratio='a' must be a number"),
    ({"mlp_ratio": float("inf")}, "mlp_ratio=inf must be a number"),
    ({"num_classes": "a"}, "num_classes='a' must be a whole number of at least 0"),
    ({"num_classes": 2.5}, "num_classes=2.5 must be a whole number of at least 0"),
    ({"drop_rate": "a"}, "drop_rate='a' must be between 0 and 1"),
    ({"act_layer": ["gelu"]}, "Unknown act_layer ['gelu']. Choose gelu, relu or a class"),
    ({"act_layer": nn.GELU()}, "Unknown act_layer GELU(approximate='none'). Choose gelu, relu or a class"),
]

FUNCTIONS: list[tuple[Callable[[], Any], str]] = [
    (lambda: small().reset_classifier("a"), "num_classes='a' must be a whole number of at least 0"),
    *((partial(function, value), "is not a network; build one first")
      for function in (fold, replace_convs, convert, make_dynamic, settle, partial(with_ratios, split_ratios={}))
      for value in ("partialnet_t0", None)),
    *((partial(fold, CONVS.eval(), size), message) for size, message in (
        ("a", "img_size='a' must be a whole number"), (5.5, "img_size=5.5 must be a whole number"),
        ((96.0, 96.0), "img_size=96.0 must be a whole number"), (0, "img_size=0 must be a whole number of at least 1"),
        ((96, 96, 96), "img_size=(96, 96, 96) must be height and width"))),
    (partial(replace_convs, CONVS, select=5), "select=5 is not a regular expression"),
    (partial(convert, CONVS, select=5), "select=5 is not a regular expression"),
    *((partial(replace_convs, CONVS, input_size=size), f"input_size={size!r} must be channels, height and width")
      for size in (224, (3,), "abc")),
    (partial(replace_convs, CONVS, input_size=(8, 4.0, 4)), "input_size=4.0 must be a whole number"),
    (partial(timm.create_model, "mobilenetv2_100_pat", attention=nn.Identity()), "would be shared by all layers"),
    (partial(timm.create_model, "converted", base=5), "no model named 5 to convert"),
    (partial(timm.create_model, "converted", surgery=5), "surgery must be a mapping of replace_convs' options"),
    (partial(timm.create_model, "planned", network=5), "no model named 5 to plan"),
    (partial(timm.create_model, "planned", split_ratios=["layer1"]), "split_ratios=['layer1'] must give a ratio"),
    (lambda: make_dynamic(small(), scope=5), "scope=5 is not a regular expression"),
    (lambda: with_ratios(small(), {"stages.0.blocks.0.mixer": "a"}), "stages.0.blocks.0.mixer='a' must be a number"),
    (partial(Objective, theta="a"), "theta='a' must be a number of at least 1"),
    (partial(Objective, beta=None), "beta=None must be a number"),
]  # fmt: skip


def refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("layer", "arguments", "message"), LAYERS)
def test_layers(layer: Callable[..., nn.Module], arguments: dict[str, Any], message: str) -> None:
    refuses(partial(layer, **arguments), message)


@pytest.mark.parametrize(("arguments", "message"), NETWORKS)
def test_networks(arguments: dict[str, Any], message: str) -> None:
    refuses(partial(PartialNet, **{"embed_dim": 8, "device": "meta", **arguments}), message)


@pytest.mark.parametrize(("call", "message"), FUNCTIONS)
def test_functions(call: Callable[[], Any], message: str) -> None:
    refuses(call, message)


def test_numbers_of_other_libraries_are_numbers() -> None:
    layer = PATConv(np.int64(16), kernel_size=np.int32(5), split_ratio=np.float32(0.5))
    assert (layer.conv.in_channels, layer.conv.kernel_size) == (8, (5, 5))
    sizes = {"depths": np.array([1, 0, 1, 1]), "embed_dim": np.int64(8), "split_ratio": np.float32(0.25)}
    model = PartialNet(**sizes, num_classes=3)
    assert fold(model.eval(), img_size=np.int64(32))(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_kernels_are_given_as_to_pytorchs_convolution() -> None:
    sides, side = PATConv(8, 16, (5, 5), (2, 2), (3, 3)), PATConv(8, 16, 5, 2, 3)
    assert str(sides) == str(side)
    sides.load_state_dict(side.state_dict())
    x = torch.rand(2, 8, 16, 12)
    assert torch.equal(sides.eval()(x), side.eval()(x))
    assert str(DPConv(8, (5, 5), (2, 2))) == str(DPConv(8, 5, 2))
    assert partialnet.fold(sides)(x).shape == (2, 16, 8, 6)
