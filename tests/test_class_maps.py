"""Class maps lie where the network looks, for every method and network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explained_networks import NAMES, image, network, red_finder, with_square
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from partialnet.checkpoint import create_checkpoint
from partialnet.errors import UserError
from partialnet.explain import METHODS, ClassMap, Explainer, read_gates, target_layers
from partialnet.explain.cam import CLASSLESS_METHODS, to_image, to_position
from partialnet.preprocessing import Preprocessing


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 400),
    st.integers(8, 400),
    st.sampled_from([(32, 32), (48, 32), (33, 64)]),
    st.sampled_from([0.8, 0.9, 1.0]),
    st.sampled_from(["center", "squash", "border"]),
)
def test_region_is_where_the_transform_looks(
    width: int, height: int, size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    """Ramps go through the real transform; their values tell which pixels of the image arrived where."""
    config = {
        "input_size": (3, *size),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }
    preprocess = Preprocessing(config)
    left, top, right, bottom = preprocess.region((width, height))
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    ramps = np.stack((255 * x, 255 * y, np.full_like(x, 255)), -1).round().astype(np.uint8)
    arrived = preprocess(Image.fromarray(ramps)).numpy()
    inside = np.argwhere(arrived[2] == 1)  # image, not border
    # 8 bits, and what the filter makes of the outermost pixels
    tolerance_x = 0.01 + 0.5 / width + 0.25 * (right - left) / size[1] / width
    tolerance_y = 0.01 + 0.5 / height + 0.25 * (bottom - top) / size[0] / height
    for row, column in inside[:: max(1, len(inside) // 7)]:
        seen_x = (left + (column + 0.5) / size[1] * (right - left)) / width
        seen_y = (top + (row + 0.5) / size[0] * (bottom - top)) / height
        assert arrived[0, row, column] == pytest.approx(seen_x, abs=tolerance_x)
        assert arrived[1, row, column] == pytest.approx(seen_y, abs=tolerance_y)


def test_a_map_lies_on_the_image_where_it_was_seen() -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 1
    placed = to_image(values, (20, 0, 100, 80), (120, 80), smooth=False)
    rows, columns = np.nonzero(placed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 60, 79)
    assert to_position((60.5, 20.5), (20, 0, 100, 80), (4, 4)) == (1, 2)
    with pytest.raises(UserError, match="does not see the point 10,5"):
        to_position((10, 5), (20, 0, 100, 80), (4, 4))


@pytest.mark.parametrize(("left", "top"), [(8, 8), (72, 40), (40, 88)])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "hirescam"])
def test_the_peak_lies_on_what_makes_the_class(method: str, left: int, top: int) -> None:
    picture = with_square(left, top, 24, (128, 128))
    found = red_finder().class_map(picture, 0, method)
    x, y = found.peak
    assert left <= x <= left + 24
    assert top <= y <= top + 24
    assert found.values.shape == (128, 128)
    assert found.values.max() == pytest.approx(1, abs=0.02)
    assert found.probability is not None
    assert found.probability > 0.5


def test_grad_cam_is_the_weighted_sum_of_features() -> None:
    """Equation 1 and 2 of Grad-CAM by plain autograd, at the resolution of the input."""
    explainer = Explainer(network())
    picture = image(64, 64)
    found = explainer.class_map(picture, 2)
    model, batch = explainer.model, explainer.prepare([picture])
    features = model.forward_features(batch).detach().requires_grad_()  # type: ignore[operator]
    model.forward_head(features)[0, 2].backward()  # type: ignore[operator]
    assert features.grad is not None
    expected = (features.grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu().detach()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    expected = F.interpolate(expected, (64, 64), mode="bilinear")[0, 0]
    torch.testing.assert_close(torch.from_numpy(found.at_input), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map(method: str) -> None:
    found = Explainer(network(size=64)).class_map(image(), 1, method)
    assert found.values.shape == (80, 96)
    assert np.isfinite(found.values).all()
    assert found.values.min() >= 0
    assert found.values.max() <= 1
    assert (found.target is None) == (method in CLASSLESS_METHODS)


@pytest.mark.parametrize(
    ("name", "size", "resolutions"),
    [
        ("partialnet_t0", 64, [16, 8, 4, 2]),
        ("fasternet_t0", 64, [16, 8, 4, 2]),
        ("resnet18", 64, [16, 8, 4, 2]),
        ("mobilenetv3_small_100", 64, [16, 8, 4, 2]),
        ("convnext_atto", 64, [16, 8, 4, 2]),
        ("swin_tiny_patch4_window7_224", 224, [56, 28, 14, 7]),
        ("vit_tiny_patch16_224", 224, [14]),
        ("resnet50_pat", 64, [16, 8, 4, 2]),
    ],
)
def test_stages_of_a_network_and_of_its_peers(name: str, size: int, resolutions: list[int]) -> None:
    checkpoint = create_checkpoint(name, num_classes=4)
    checkpoint.input_config |= {"input_size": (3, size, size)}
    explainer = Explainer(checkpoint)
    maps: dict[str, Tensor] = {}
    for layer in explainer.layers.values():
        layer.module.register_forward_hook(
            lambda _module, _inputs, output, layer=layer: maps.update({layer.name: layer.to_map(output)})
        )
    found = explainer.class_map(image(), 1)
    assert [maps[layer.name].shape[-1] for layer in explainer.layers.values()] == resolutions
    assert all(maps[layer.name].ndim == 4 for layer in explainer.layers.values())
    assert found.values.shape == (80, 96)


def test_tokens_become_a_map_in_their_order() -> None:
    """A patch that differs in one place differs in that place of the map of a vision transformer."""
    checkpoint = network("vit_tiny_patch16_224", 224)
    layer = target_layers(checkpoint.model, (3, 224, 224))[1]
    tokens = torch.zeros(1, 197, 3)
    tokens[0, 1 + 2 * 14 + 5] = 1
    assert layer.to_map(tokens)[0, 0].nonzero().tolist() == [[2, 5]]
    assert layer.name == "blocks.11.norm1"


def test_networks_that_return_features_have_maps_without_a_class() -> None:
    for name in ("partialnet_t0", "resnet18"):
        checkpoint = create_checkpoint(name, features_only=True)
        explainer = Explainer(checkpoint)
        assert explainer.default_method == "eigencam"
        found = explainer.class_map(image(), stage=2)
        assert found.target is None
        assert found.values.max() > 0
        with pytest.raises(UserError, match="no classes, which gradcam needs"):
            explainer.class_map(image(), method="gradcam")
        with pytest.raises(UserError, match="no classes"):
            explainer.find_class("dog")
    getter = create_checkpoint("partialnet_t0", features_only=True, out_norms=True)
    assert Explainer(getter).target_layer(3).name == "model.stages.2"


def test_later_layers_that_write_in_place_do_not_change_the_map() -> None:
    explainer, other = red_finder(), red_finder()
    other.model.forward = lambda x: 10 * other.model.features(x).sub_(0.3).mean((2, 3))  # type: ignore[method-assign, operator]
    picture = with_square(8, 8, 24, (64, 64))
    np.testing.assert_array_equal(explainer.class_map(picture, 0).values, other.class_map(picture, 0).values)


def test_any_network_has_stages() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(inplace=True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    assert [layer.name for layer in target_layers(model, (3, 32, 32)).values()] == ["0", "1"]
    with pytest.raises(ValueError, match="no layer whose output is a map"):
        target_layers(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))


@pytest.mark.parametrize("runtime", [None, "torch"])
def test_a_folded_network_gives_the_same_map(runtime: Any) -> None:
    checkpoint = network()
    whole = Explainer(checkpoint).class_map(image(), 1)
    folded = Explainer(checkpoint.fold(runtime=runtime))
    np.testing.assert_allclose(folded.class_map(image(), 1).values, whole.values, atol=2e-3)
    with pytest.raises(UserError, match="folded, so its gates are merged"):
        read_gates(folded, image())


def test_the_network_is_left_as_it_was() -> None:
    checkpoint = network()
    parameters = list(checkpoint.model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    explainer = Explainer(checkpoint)
    explainer.class_map(image())
    read_gates(explainer, image())
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)
    assert [index for index, parameter in enumerate(parameters) if parameter.grad is not None] == [1]
    assert all(torch.equal(before[name], tensor) for name, tensor in checkpoint.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in checkpoint.model.modules())


def test_classes_are_found_by_name_synonym_and_number() -> None:
    explainer = Explainer(replace(network(), class_names=NAMES))
    assert [explainer.find_class(text) for text in ("church", "English Springer", "Tinca tinca", "3")] == [2, 1, 0, 3]
    with pytest.raises(UserError, match=r"no class 'golfball'.*Similar names: golf ball"):
        explainer.find_class("golfball")
    with pytest.raises(UserError, match="no class '4'"):
        explainer.find_class("4")
    # names go before numbers
    assert Explainer(replace(network(), class_names=("3", "2", "1", "0"))).find_class("3") == 0


def test_what_does_not_exist_is_told() -> None:
    explainer = Explainer(network())
    with pytest.raises(UserError, match="no stage 5: partialnet_t0 has stages 1 to 4"):
        explainer.class_map(image(), stage=5)
    with pytest.raises(UserError, match=r"no method 'gradcan'\. Did you mean gradcam"):
        explainer.class_map(image(), method="gradcan")
    with pytest.raises(UserError, match="no class 9"):
        explainer.class_map(image(), 9)
    with pytest.raises(UserError, match="of 1 channel;"):
        Explainer(create_checkpoint("partialnet_t0", in_chans=1))


@pytest.mark.parametrize("parameter", ["classifier.weight", "classifier.bias"])
def test_what_is_not_a_number_is_refused(parameter: str) -> None:
    """The map, the answer, or both."""
    checkpoint = network()
    with torch.no_grad():
        checkpoint.model.get_parameter(parameter).fill_(float("nan"))
    explainer = Explainer(checkpoint)
    with pytest.raises(UserError, match="not a number"):
        explainer.class_map(image(), 1)
    with pytest.raises(UserError, match="not a number"):
        explainer.most_probable(image(), 3)
    assert explainer.class_map(image(), method="eigencam").target is None


def test_an_empty_map_says_so() -> None:
    found = red_finder().class_map(Image.new("RGB", (64, 64), "blue"), 0)
    assert found.empty
    assert found.statistics()["empty"]


def test_the_peak_at_a_border_is_the_place_of_the_layer() -> None:
    """Beyond the outermost positions a map is constant; the peak is not in the corner."""
    found = red_finder().class_map(with_square(0, 0, 16, (128, 128)), 0)
    assert found.peak == pytest.approx((8, 8), abs=1.5)


def test_statistics_of_a_map() -> None:
    values = np.zeros((4, 8), np.float32)
    values[1, 6] = 1
    values[1, 2] = 0.5
    found = ClassMap(values, (0, 0, 8, 4), (8, 4), 0, 0.5, "gradcam", 4, "layer")
    statistics = found.statistics()
    assert (statistics["peak_x"], statistics["peak_y"]) == (6.5, 1.5)
    assert statistics["center_x"] == pytest.approx((6.5 + 0.5 * 2.5) / 1.5)
    assert statistics["center_y"] == pytest.approx(1.5)
    assert statistics["area_half"] == pytest.approx(2 / 32)


def test_methods_exist_in_the_library() -> None:
    """The library renames nothing that we name."""
    cam = pytest.importorskip("pytorch_grad_cam")
    assert all(hasattr(cam, name) for name in METHODS.values())
