"""What tests of folded networks share: small networks with random statistics, and how far two of them differ."""

from __future__ import annotations

from typing import Any

import timm
import torch
from conftest import Randomize
from torch import Tensor, nn


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
def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    result = model(images)
    return list(result) if isinstance(result, (list, tuple)) else [result]


def relative_error(model: nn.Module, folded: nn.Module, images: Tensor) -> float:
    """Largest difference, as a share of the largest output; of the worst feature map if there are several."""
    errors = []
    expected, got = outputs(model, images), outputs(folded, images)
    assert len(expected) == len(got)
    for right, ours in zip(expected, got, strict=True):
        assert ours.shape == right.shape
        assert ours.dtype == right.dtype
        assert right.isfinite().all()
        # a network whose output ignored the image would hide every error
        assert (right[0] - right[-1]).abs().max() > 1e-3 * right.abs().max()
        errors.append(float((ours - right).abs().max() / right.abs().max()))
    return max(errors)


def small(**kwargs: Any) -> nn.Module:
    """partialnet_t0 with fewer channels."""
    return timm.create_model("partialnet_t0", **{"embed_dim": 16, "head_hidden_size": 40, "num_classes": 10, **kwargs})
