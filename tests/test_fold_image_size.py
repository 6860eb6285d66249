"""Folding for one image size: position tables become constants, and other sizes are refused."""

from __future__ import annotations

import pytest
import timm
import torch
from conftest import Randomize
from folding import (
    SmallCnn,
    assert_no_batch_norm,
    outputs,
    relative_error,
    small,
    snapshot,
    trained,
)
from stored_networks import assert_bitwise_equal
from timm.utils import reparameterize_model
from torch import Tensor, nn

from partialnet import fold
from partialnet.layers import (
    PATConv,
    RelativePositionBias,
    SelfAttention2d,
    pat_sf,
)


@pytest.mark.parametrize("name", ["partialnet_t0", "partialnet_t2"])
@pytest.mark.parametrize("img_size", [64, (64, 128)])
def test_one_image_size(name: str, img_size: int | tuple[int, int], randomize: Randomize) -> None:
    model = trained(timm.create_model(name, num_classes=10), randomize)
    folded = fold(model, img_size)
    assert not [name for name, module in folded.named_modules() if isinstance(module, RelativePositionBias)]
    assert_no_batch_norm(folded)
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    assert relative_error(model, folded, images) < 1e-9
    assert relative_error(model, fold(fold(model), img_size), images) < 1e-9
    for twice in (fold(folded), fold(folded, img_size), reparameterize_model(folded)):
        assert_bitwise_equal(twice.state_dict(), folded.state_dict())


def test_one_image_size_of_features(randomize: Randomize) -> None:
    model = trained(small(features_only=True, out_norms=True), randomize)
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    assert relative_error(model, fold(model, (96, 64)), images) < 1e-9


def test_one_image_size_of_own_network(randomize: Randomize) -> None:
    model = trained(SmallCnn(), randomize)
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    assert relative_error(model, fold(model, (40, 56)), images) < 1e-9


def test_one_image_size_of_a_network_that_begins_with_a_patconv(randomize: Randomize) -> None:
    model = nn.Sequential(PATConv(3, 32, stride=2, split_ratio=1 / 3), nn.BatchNorm2d(32), nn.ReLU(), pat_sf(32))
    model = trained(model, randomize)
    images = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    assert relative_error(model, fold(model, (12, 16)), images) < 1e-9


def test_other_size_than_folded_for_is_refused(randomize: Randomize) -> None:
    folded = fold(trained(small(), randomize), 64)
    with pytest.raises(ValueError, match=r"folded for a 2×2 map but got 3×3.*without img_size"):
        folded(torch.randn(1, 3, 96, 96, dtype=torch.float64))


def test_too_small_size_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        fold(small().eval(), 16)


def test_one_image_size_leaves_the_original(randomize: Randomize) -> None:
    model = trained(small(), randomize)
    state = snapshot(model)
    fold(model, 64)
    assert_bitwise_equal(model.state_dict(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())
    outputs(model, torch.randn(1, 3, 96, 64, dtype=torch.float64))


def test_fixed_size_where_a_layer_sees_two(randomize: Randomize) -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mixer = nn.Conv2d(3, 32, 1), pat_sf(32)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            levels = (x, nn.functional.avg_pool2d(x, 2))
            return torch.stack([self.mixer(level).mean((2, 3)) for level in levels])

    model = trained(Pyramid(), randomize)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(fold(model, 12)(x), model(x))


def test_parts_of_networks_take_no_size() -> None:
    with pytest.raises(ValueError, match=r"8×8 pixels; fold parts of networks.*without img_size"):
        fold(SelfAttention2d(32).eval(), 8)
