"""What tests of folding any network share: random statistics, the check of what was folded, two layers to combine."""

from __future__ import annotations

import torch
from folding import outputs, relative_error, snapshot
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from partialnet import fold
from partialnet.layers.affine import ChannelAffine, FeatureAffine


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    """float64 in evaluation mode with random weights and statistics; some scales are negative."""
    statistics = ("weight", "bias", "running_mean", "running_var")
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name == "running_var" or (name == "weight" and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5)
                if name == "weight":
                    tensor.mul_(torch.randint(0, 2, tensor.shape) * 2 - 1)
            elif tensor.ndim > 1 and isinstance(tensor, nn.Parameter):
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            elif isinstance(tensor, nn.Parameter) or name in statistics:
                tensor.normal_(std=0.3)
    return model.double().eval()


def batch_norms(model: nn.Module) -> list[str]:
    kinds = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) or "BatchNorm" in str(module)]


def affines(model: nn.Module) -> int:
    return sum(isinstance(module, (ChannelAffine, FeatureAffine)) for module in model.modules())


def check(model: nn.Module, *inputs: Tensor, tolerance: float = 1e-9) -> nn.Module:
    """The folded network, after checking it, its original, and what a second folding makes of it."""
    state = snapshot(model)
    folded = fold(model)
    assert relative_error(model, folded, *inputs) <= tolerance
    pairs = zip(outputs(folded, *inputs), outputs(fold(folded), *inputs), strict=True)
    assert all(torch.equal(once, twice) for once, twice in pairs)
    assert batch_norms(folded) == []
    assert not any(module.training for module in folded.modules())
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return folded


def images(channels: int = 3, *size: int) -> Tensor:
    return torch.randn(2, channels, *(size or (12, 10)), dtype=torch.float64)


class Parts(nn.Module):
    """Two convolutions, each with its BatchNorm, for networks to combine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
