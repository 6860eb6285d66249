"""BatchNorm with the statistics of all processes' images."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from timm.layers import convert_sync_batchnorm as convert_for_gpu
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from partialnet.replacement import replace_modules


def convert_sync_batchnorm(network: nn.Module, on_gpu: bool) -> nn.Module:
    """The network with every BatchNorm sharing its statistics over processes; parameters and their names stay."""
    return replace_modules(network, _for_gpu if on_gpu else _for_any_device)


def _for_gpu(module: nn.Module) -> nn.Module:
    # layer by layer, as timm's own walk through a network passes over second names
    return convert_for_gpu(module) if isinstance(module, _BatchNorm) else module


def _for_any_device(module: nn.Module) -> nn.Module:
    replaced = isinstance(module, _BatchNorm) and module.affine and module.track_running_stats
    return SyncBatchNorm(module) if replaced else module


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the images of all processes, on any device; torch's own, ``nn.SyncBatchNorm``, needs a GPU.

    Like that one it is no ``nn.BatchNorm2d``, so that layers which shorten one's computation leave it alone.

    Args:
        norm: The layer whose parameters and buffers it takes over; of timm's ``BatchNormAct2d`` also the activation.
    """

    def __init__(self, norm: nn.Module) -> None:
        assert isinstance(norm, _BatchNorm)
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.training = norm.training
        # under timm's names, so that an activation's parameters keep theirs
        self.drop = norm.drop if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) → (B, C, …)."""
        y = self._normalise(x) if self.training and dist.is_initialized() else super().forward(x)
        return self.act(self.drop(y))

    def _normalise(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        wide = x.float()
        count = torch.tensor([x.numel() / x.shape[1]], device=x.device)
        sums = _Sum.apply(torch.cat((wide.sum(dims), count)))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # the variance from centred values, in a second exchange: E[x²] − E[x]² loses digits
        centred = wide - mean.view(shape)
        var = _Sum.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * count / (count - 1), momentum)
        y = centred * (torch.rsqrt(var + self.eps) * self.weight).view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # stands for BatchNorm of any dimension


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient of the sum of all losses is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
