"""What tests of layers against plain transcriptions of their definitions share."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

exactly = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
few_examples = settings(max_examples=25, deadline=None, derandomize=True)


def leaf(*shape: int) -> Tensor:
    """Random values that get a gradient."""
    return torch.randn(shape, requires_grad=True)


def batch_norm(norm: Any, x: Tensor) -> Tensor:
    """What a BatchNorm of ``x``, (B, C, H, W), is, and does to its statistics in training."""
    if norm.training or norm.running_mean is None:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = norm.running_mean, norm.running_var
    if norm.training and norm.running_mean is not None:
        norm.num_batches_tracked += 1
        rate = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
        unbiased = x.detach().var((0, 2, 3), unbiased=True)
        norm.running_mean.mul_(1 - rate).add_(rate * mean.detach())
        norm.running_var.mul_(1 - rate).add_(rate * unbiased)
    x = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    x = x if norm.weight is None else x * norm.weight[:, None, None]
    return x if norm.bias is None else x + norm.bias[:, None, None]
