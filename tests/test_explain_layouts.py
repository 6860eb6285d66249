"""Class maps where networks keep their features in an order of their own, and of images where nothing is found."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from partialnet.checkpoint import create_checkpoint
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
    empty = np.zeros((224, 224), np.float32)
    found = ClassMap(empty, (500.0, 0.0, 3500.0, 3000.0), (4000, 3000), None, None, "eigen", 4, "x")
    assert found.peak == (2000.0, 1500.0)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224", "deit_tiny_patch16_224"])
def test_tokens_with_and_without_those_of_no_place(name: str) -> None:
    """CaiT's and XCiT's layers have patches only, though they have a class token, DeiT's have both; by hand."""
    model = timm.create_model(name).eval()
    (layer,) = target_layers(model, (3, 224, 224)).values()
    seen: list[Tensor] = []
    layer.module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(torch.rand(1, 3, 224, 224))
    patches = seen[0][0, -14 * 14 :]
    found = layer.to_map(seen[0])[0]
    assert found.shape == (model.num_features, 14, 14)
    torch.testing.assert_close(found[:, 3, 5], patches[3 * 14 + 5])


@pytest.mark.parametrize(("name", "last"), [("swin_t", "permute"), ("swin_v2_t", "permute"), ("maxvit_t", "blocks.3")])
def test_stages_of_networks_with_windows_and_channels_last(name: str, last: str) -> None:
    """torchvision's Swin keeps the channels last; its table of positions and MaxViT's windows are no maps."""
    model = create_checkpoint(f"torchvision:{name}").model
    found = target_layers(model, (3, 224, 224))
    sizes: dict[int, tuple[int, ...]] = {}
    for stage, layer in found.items():
        layer.module.register_forward_hook(
            lambda module, inputs, output, stage=stage, layer=layer: sizes.update({stage: layer.to_map(output).shape})
        )
    with torch.no_grad():
        model(torch.rand(1, 3, 224, 224))
    assert {stage: shape[2:] for stage, shape in sizes.items()} == {1: (56, 56), 2: (28, 28), 3: (14, 14), 4: (7, 7)}
    assert found[4].name == last
