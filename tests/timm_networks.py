"""The variants as timm builds them, and a small network of the same kinds of layers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from torch import Tensor, nn

#: Channels of the first stage and number of blocks in each stage: the paper's Table 9, with the depths we read from it
VARIANTS = {
    "partialnet_t0": (32, (1, 2, 6, 4)),
    "partialnet_t1": (48, (1, 2, 6, 4)),
    "partialnet_t2": (64, (2, 2, 6, 4)),
    "partialnet_s": (96, (2, 2, 9, 4)),
    "partialnet_m": (128, (2, 3, 16, 4)),
    "partialnet_l": (160, (2, 3, 20, 4)),
}


#: A network of every kind of layer that is quick to build and run
SMALL: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 2, 1), "head_hidden_size": 40, "num_classes": 7}


every_variant = pytest.mark.parametrize("name", VARIANTS)


def small(randomize: Randomize | None = None, **kwargs: Any) -> nn.Module:
    model = timm.create_model("partialnet_t0", **{**SMALL, **kwargs})
    return model if randomize is None else randomize(model)


def images(size: int = 64, batch: int = 2, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_every_parameter_has_gradient(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is zero"
