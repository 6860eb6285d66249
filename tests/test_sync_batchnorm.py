"""Which BatchNorms share their statistics between processes."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from partialnet.training.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm


class Shared(nn.Module):
    """One layer under two names, another one in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(4)
        norm = BatchNormAct2d(4)
        self.left, self.right = nn.Sequential(nn.Conv2d(4, 4, 1), norm), nn.Sequential(nn.Conv2d(4, 4, 3), norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.second(self.left(self.first(x))))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_layer_with_two_names_is_converted_under_both(on_gpu: bool) -> None:
    network = Shared()
    tensors = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    converted = convert_sync_batchnorm(network, on_gpu)
    kind = nn.SyncBatchNorm if on_gpu else SyncBatchNorm
    assert isinstance(converted.first, kind)
    assert converted.second is converted.first
    assert isinstance(converted.left[1], kind)
    assert converted.right[1] is converted.left[1]
    assert isinstance(converted.left[1].act, nn.ReLU)
    assert {name: tensor.data_ptr() for name, tensor in converted.state_dict().items()} == tensors


def test_one_process_computes_what_it_did() -> None:
    network = Shared().double()
    x = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    expected = copy.deepcopy(network)
    torch.testing.assert_close(convert_sync_batchnorm(network, on_gpu=False)(x), expected(x))
    torch.testing.assert_close(network.first.running_var, expected.first.running_var)


def test_layers_without_statistics_stay() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False))
    before = list(network)
    assert list(convert_sync_batchnorm(network, on_gpu=False)) == before
