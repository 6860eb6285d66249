"""Class maps where networks keep their features in an order of their own, and of images where nothing is found."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from partialnet.explain.cam import ClassMap
from partialnet.explain.layers import target_layers


@pytest.mark.parametrize("name", ["hiera_tiny_224", "volo_d1_224"])
def test_maps_are_in_the_order_of_the_image(name: str) -> None:
    """Against timm's own feature maps: Hiera's tokens are grouped by windows, VOLO's channels come last."""
    model = timm.create_model(name).eval()
    x = torch.rand(1, 3, 224, 224)
    stage, layer = min(target_layers(model, (3, 224, 224)).items())
    seen: list[Tensor] = []
    layer.module.register_forward_hook(lambda module, inputs, output: seen.append(layer.to_map(output)))
    with torch.no_grad():
        model(x)
        maps = model.forward_intermediates(x, intermediates_only=True)
    expected = [item for item in maps if item.shape == seen[0].shape]
    assert any(torch.allclose(seen[0], item, atol=1e-4) for item in expected), stage


def test_an_empty_map_has_its_peak_in_the_middle() -> None:
    empty = np.zeros((3000, 4000), np.float32)
    found = ClassMap(empty, np.zeros((224, 224), np.float32), (500.0, 0.0, 3500.0, 3000.0), None, None, "eigen", 4, "x")
    assert found.peak == (2000.0, 1500.0)
