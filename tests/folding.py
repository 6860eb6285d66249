"""What tests of folded networks share: settings, small networks with random statistics, how far two of them differ."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from conftest import Randomize
from torch import Tensor, nn

from partialnet.layers import GaussianSE, PATConv, SelfAttention2d, SpatialGate, pat_ch, pat_sf, pat_sp

PAT_CH_3 = ("pat_ch", "pat_ch", "pat_ch")

#: Settings of the paper's ablations and others that a user may choose, as arguments of PartialNet
SETTINGS: dict[str, dict[str, Any]] = {
    "no attention": {"mixers": (*({"name": "pat_ch", "attention": None},) * 3, "pat_sf")},
    "SRM": {"mixers": (*({"name": "pat_ch", "attention": "srm"},) * 3, "pat_sf")},
    "SE": {"mixers": (*({"name": "pat_ch", "attention": "se"},) * 3, "pat_sf")},
    "ECA": {"mixers": (*({"name": "pat_ch", "attention": "eca"},) * 3, "pat_sf")},
    "CBAM": {"mixers": (*({"name": "pat_ch", "attention": "cbam"},) * 3, "pat_sf")},
    "gate without norm": {
        "mixers": (*({"name": "pat_ch", "attention": partial(GaussianSE, normalize=False)},) * 3, "pat_sf")
    },
    "PAT_ch full": {"mixers": (*({"name": "pat_ch", "attention_scope": "full"},) * 3, "pat_sf")},
    "PAT_sf full": {"mixers": (*PAT_CH_3, {"name": "pat_sf", "attention_scope": "full"})},
    "PAT_sf, 2 heads": {"mixers": (*PAT_CH_3, {"name": "pat_sf", "num_heads": 2})},
    "PAT_sp full": {"mlp_attention": {"attention_scope": "full"}},
    "all full": {
        "mixers": (
            *({"name": "pat_ch", "attention_scope": "full"},) * 3,
            {"name": "pat_sf", "attention_scope": "full"},
        ),
        "mlp_attention": {"attention_scope": "full"},
    },
    "conv": {"mixers": ("conv", "conv", "conv", "pat_sf")},
    "conv everywhere": {"mixers": ("conv",) * 4},
    "depthwise conv": {"mixers": ("dwconv", "dwconv", "dwconv", "pat_sf")},
    "PAT_ch in stage 4": {"mixers": ("pat_ch",) * 4},
    "PAT_sf everywhere": {"mixers": ("pat_sf",) * 4},
    "no PAT_sp": {"mlp_attention": False},
    "no PAT_sp, PAT_ch in stage 4": {"mlp_attention": False, "mixers": ("pat_ch",) * 4},
    "PAT_sp of 1/4": {"mlp_attention": {"split_ratio": 0.25}},
    "PAT_sp without gate": {"mlp_attention": {"attention": None}},
    "PAT_sp with Gaussian-SE": {"mlp_attention": {"attention": "gaussian_se"}},
    "PAT_sp with a gate that is not normalised": {
        "mlp_attention": {"attention": partial(SpatialGate, normalize=False)}
    },
    "a ratio for each block": {"split_ratio": [1 / 2, *[1 / 4] * 6, *[1 / 8] * 6]},
    "wide MLP": {"mlp_ratio": 3.0},
    "ReLU": {"act_layer": "relu"},
    "output stride of 8": {"output_stride": 8},
    "other input and head": {"in_chans": 1, "num_classes": 7, "global_pool": "max", "head_hidden_size": 24},
    "no classifier": {"num_classes": 0},
    "feature map": {"num_classes": 0, "global_pool": ""},
}

#: What a setting that is given block by block becomes in a network of one block for each stage
ONE_BLOCK: dict[str, dict[str, Any]] = {"a ratio for each block": {"split_ratio": [1 / 2, 1 / 4, 1 / 4, 1 / 8]}}


def trained(model: nn.Module, randomize: Randomize, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Random weights and statistics; about half of the normalisations' scales are negative."""
    randomize(model)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)) and module.weight is not None:
            signs = torch.randint(0, 2, module.weight.shape) * 2 - 1
            with torch.no_grad():
                module.weight.mul_(signs)
    return model.to(dtype).eval()


@torch.no_grad()
def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """All tensors that a network gives, in order; it may write into what it is given."""
    return _flat(model(*[x.clone() for x in inputs]))


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in (result.values() if isinstance(result, dict) else result) for tensor in _flat(part)]


def relative_error(model: nn.Module, folded: nn.Module, *inputs: Tensor) -> float:
    """Largest difference, as a share of the largest output; of the worst if there are several."""
    errors = []
    expected, got = outputs(model, *inputs), outputs(folded, *inputs)
    assert len(expected) == len(got)
    for right, ours in zip(expected, got, strict=True):
        assert ours.shape == right.shape
        assert ours.dtype == right.dtype
        assert right.isfinite().all()
        # a network whose output ignored the image would hide every error
        assert (right[0] - right[-1]).abs().max() > 1e-4 * right.abs().max()
        errors.append(float((ours - right).abs().max() / right.abs().max()))
    return max(errors)


def small(**kwargs: Any) -> nn.Module:
    """partialnet_t0 with fewer channels."""
    return timm.create_model("partialnet_t0", **{"embed_dim": 16, "head_hidden_size": 40, "num_classes": 10, **kwargs})


def assert_no_batch_norm(model: nn.Module) -> None:
    left = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    assert not left
    affine = [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m.elementwise_affine]
    assert not affine


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class SmallCnn(nn.Module):
    """Plain convolutions and every layer of ours, used directly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.shrink = PATConv(16, 32, stride=2, bias=True)
        self.named = nn.ModuleDict({"channel": pat_ch(32), "spatial": pat_sp(32), "self": pat_sf(32)})
        self.listed = nn.ModuleList(
            [
                GaussianSE(32),
                GaussianSE(32, dense=False),
                GaussianSE(32, normalize=False),
                SpatialGate(32),
                SpatialGate(32, normalize=False),
                SelfAttention2d(32),
                SelfAttention2d(32, normalize=False, relative_position=False),
                PATConv(32, kernel_size=5, dilation=2, split_ratio=0.5, conv_norm=nn.BatchNorm2d),
                PATConv(
                    32, kernel_size=1, conv_norm=nn.BatchNorm2d, conv_first=False, attention_scope="full", bias=True
                ),
                PATConv(32, split_ratio=1, attention="gaussian_se", attention_scope="full"),
                PATConv(32, attention=None),
                PATConv(32, attention="ese"),
                PATConv(32, conv_first=False, attention="spatial_gate"),
            ]
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.stem(x))
        for layer in (*self.named.values(), *self.listed):
            x = x + layer(x)
        return self.head(x.mean((2, 3)))
