"""Class maps, gates, scores and the pointing game, against what is worked out by other means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import Randomize, randomize_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.errors import UserError
from partialnet.explain import (
    METHODS,
    ClassMap,
    Explainer,
    deletion_and_insertion,
    play_pointing_game,
    read_boxes,
    read_gates,
    target_layers,
)
from partialnet.explain.boxes import _covered, match_categories
from partialnet.explain.cam import CLASSLESS_METHODS, to_image, to_position
from partialnet.layers import GaussianSE, SelfAttention2d, SpatialGate
from partialnet.preprocessing import Preprocessing

NAMES = ("tench, Tinca tinca", "English springer", "church", "golf ball")


def image(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def network(name: str = "partialnet_t0", size: int = 64, **model_args: Any) -> Checkpoint:
    checkpoint = create_checkpoint(name, **{"num_classes": 4, **model_args})
    randomize_parameters(checkpoint.model)
    checkpoint.input_config |= {"input_size": (3, size, size), "crop_pct": 1.0}
    return checkpoint


class RedFinder(nn.Module):
    """Class 0 is as probable as there is red in the image, class 1 as there is green."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 8, 8, bias=False)
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.weight[0, 0] = self.features.weight[1, 1] = 1 / 64

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.features(x).mean((2, 3))


def red_finder(size: int = 64) -> Explainer:
    config = {
        "input_size": (3, size, size),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    return Explainer(Checkpoint(RedFinder().eval(), "red_finder", {}, ("red", "green"), config))


def with_square(left: int, top: int, side: int, size: tuple[int, int], color: str = "red") -> Image.Image:
    picture = Image.new("RGB", size, "black")
    picture.paste(color, (left, top, left + side, top + side))
    return picture


# -- what the network sees ------------------------------------------------------------------------------------------


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


# -- class maps -----------------------------------------------------------------------------------------------------


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
    model, batch = explainer.model, explainer.prepare(picture)
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
    with pytest.raises(UserError, match="folded, its gates are merged"):
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
    with pytest.raises(UserError, match="1 channels"):
        Explainer(create_checkpoint("partialnet_t0", in_chans=1))


def test_a_map_that_is_not_a_number_is_refused() -> None:
    checkpoint = network()
    with torch.no_grad():
        checkpoint.model.get_parameter("classifier.weight").fill_(float("nan"))
    with pytest.raises(UserError, match="not a number"):
        Explainer(checkpoint).class_map(image(), 1)


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
    found = ClassMap(values, values, (0, 0, 8, 4), 0, 0.5, "gradcam", 4, "layer")
    statistics = found.statistics()
    assert (statistics["peak_x"], statistics["peak_y"]) == (6.5, 1.5)
    assert statistics["center_x"] == pytest.approx((6.5 + 0.5 * 2.5) / 1.5)
    assert statistics["center_y"] == pytest.approx(1.5)
    assert statistics["area_half"] == pytest.approx(2 / 32)


# -- gates ----------------------------------------------------------------------------------------------------------


def test_gates_say_what_the_layers_do(randomize: Randomize) -> None:
    x = torch.randn(2, 8, 5, 6)
    spatial = randomize(SpatialGate(8)).eval()
    torch.testing.assert_close(spatial(x), spatial.norm(x * spatial.gate(x)))  # type: ignore[operator]
    channel = randomize(GaussianSE(8)).eval()
    torch.testing.assert_close(channel(x), channel.norm(x * channel.gate(x)))  # type: ignore[operator]
    attention: Any = randomize(SelfAttention2d(8, 2)).eval()
    weights = attention.weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 30))
    value = attention.qkv(attention.norm(x.flatten(2).transpose(1, 2)))[:, :, 16:]
    value = value.unflatten(2, (2, 4)).transpose(1, 2)  # (B, heads, N, C / heads)
    expected = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected.transpose(1, 2).unflatten(2, (5, 6)))


def test_gates_of_a_network_by_stage_and_block() -> None:
    explainer = Explainer(network(size=96))
    gates = read_gates(explainer, image())
    assert [(gate.stage, gate.index) for gate in gates.spatial] == [
        (stage, block + 1) for stage, depth in enumerate((1, 2, 6, 4), 1) for block in range(depth)
    ]
    assert [gate.stage for gate in gates.channel] == [1, 2, 2, *[3] * 6]
    assert [gate.stage for gate in gates.attention] == [4] * 4
    assert gates.spatial[0].values.shape == (24, 24)
    assert gates.channel[0].values.shape == (24,)
    assert gates.attention[0].values.shape == (4, 3, 3, 3, 3)
    assert all(0 <= gate.values.min() <= gate.values.max() <= 1 for gate in (*gates.spatial, *gates.channel))
    # a point in the lower right corner of what is seen, which is the middle 80 of 96 columns
    (_, weights), *_ = gates.attention_from((87, 79))
    np.testing.assert_array_equal(weights, gates.attention[0].values[:, 2, 2])
    statistics = gates.statistics()
    json.dumps(statistics)
    assert len(statistics["spatial"]) == 13
    assert all(0 <= head <= 1.001 for head in statistics["attention"][0]["entropy"])


def test_gates_of_converted_networks_and_of_others() -> None:
    gates = read_gates(Explainer(network("resnet50_pat")), image())
    assert [sum(gate.stage == stage for gate in gates.channel) for stage in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert not gates.spatial
    assert not read_gates(Explainer(network("resnet18")), image())


# -- deletion and insertion -----------------------------------------------------------------------------------------


def test_deletion_and_insertion_of_a_known_network() -> None:
    explainer = red_finder()
    picture = with_square(0, 0, 32, (64, 64))
    right = explainer.class_map(picture, 0)
    wrong = replace(right, at_input=1 - right.at_input)
    good, bad = (deletion_and_insertion(explainer, picture, found, num_steps=16) for found in (right, wrong))
    assert good.areas()["deletion"] < bad.areas()["deletion"]
    assert good.areas()["insertion"] > bad.areas()["insertion"]
    whole = explainer.probabilities(picture)[0]
    assert (good.deletion[0], good.insertion[-1]) == pytest.approx((whole, whole))
    assert good.deletion[-1] == pytest.approx(0.5)  # nothing is left: both classes are equal
    # the square is a quarter of the image: with a quarter of the pixels everything is back
    assert good.insertion[4] >= whole - 1e-3
    again = deletion_and_insertion(explainer, picture, right, num_steps=16, batch_size=3)
    np.testing.assert_allclose(again.deletion, good.deletion, atol=1e-6)


def test_scores_need_a_class() -> None:
    explainer = Explainer(network())
    with pytest.raises(ValueError, match="of no class"):
        deletion_and_insertion(explainer, image(), explainer.class_map(image(), method="eigencam"))


# -- the pointing game ----------------------------------------------------------------------------------------------


def coco(path: Path, entries: list[tuple[str, tuple[int, int], str, list[float]]]) -> Path:
    categories = sorted({entry[2] for entry in entries})
    names = sorted({(entry[0], entry[1]) for entry in entries})
    content = {
        "categories": [{"id": index + 7, "name": name} for index, name in enumerate(categories)],
        "images": [
            {"id": index, "file_name": name, "width": size[0], "height": size[1]}
            for index, (name, size) in enumerate(names)
        ],
        "annotations": [
            {
                "image_id": names.index((name, size)),
                "category_id": categories.index(category) + 7,
                "bbox": box,
                "iscrowd": 0,
            }
            for name, size, category, box in entries
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_the_pointing_game_counts_hits_misses_and_chance(tmp_path: Path) -> None:
    size = (128, 128)
    with_square(8, 8, 32, size).save(tmp_path / "hit.png")
    with_square(80, 80, 32, size).save(tmp_path / "miss.png")
    Image.new("RGB", size, "blue").save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with_square(0, 0, 8, (64, 64)).save(tmp_path / "resized.png")
    with_square(0, 0, 30, (256, 128)).save(tmp_path / "cropped.png")
    with_square(0, 0, 30, size).save(tmp_path / "unlisted.png")
    file = coco(
        tmp_path / "instances.json",
        [
            ("hit.png", size, "Red", [8, 8, 32, 32]),
            ("hit.png", size, "blue", [0, 0, 4, 4]),
            ("miss.png", size, "Red", [8, 8, 64, 64]),
            ("empty.png", size, "Red", [0, 0, 128, 128]),
            ("broken.png", size, "Red", [0, 0, 9, 9]),
            ("resized.png", size, "Red", [0, 0, 9, 9]),
            ("cropped.png", (256, 128), "Red", [0, 0, 30, 30]),
        ],
    )
    explainer, boxes = red_finder(), read_boxes(file)
    classes = match_categories(explainer, boxes)
    assert classes == {"Red": 0}
    game = play_pointing_game(explainer, sorted(tmp_path.glob("*.png")), boxes, classes)
    rounds = {point.path.stem: point for point in game.points}
    assert {name: point.hit for name, point in rounds.items()} == {"hit": True, "miss": False, "empty": False}
    assert rounds["empty"].peak is None
    assert rounds["empty"].center_hit
    assert rounds["hit"].area == pytest.approx(1 / 16)
    assert rounds["hit"].difficult
    assert not rounds["miss"].difficult
    assert [path.name for path, _ in game.unseen] == ["cropped.png"]
    assert sorted(path.name for path, _ in game.skipped) == ["broken.png", "resized.png"]
    figures = game.as_dict()
    assert figures["num_points"] == 3
    assert figures["hits"] == pytest.approx(1 / 3)
    assert figures["chance"] == pytest.approx((1 / 16 + 1 / 4 + 1) / 3)


def test_covered_area_counts_overlap_once() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [90, 90, 200, 200]], float)
    assert _covered(boxes, (0, 0, 100, 100)) == pytest.approx((100 + 100 - 25 + 100) / 10_000)
    assert _covered(boxes, (20, 20, 40, 40)) == 0


def test_categories_are_matched_by_name_or_as_given(tmp_path: Path) -> None:
    explainer = Explainer(replace(network(), class_names=NAMES))
    entries = [("a.png", (8, 8), name, [0.0, 0.0, 4.0, 4.0]) for name in ("dog", "golf-ball", "tench")]
    boxes = read_boxes(coco(tmp_path / "a.json", entries))
    assert match_categories(explainer, boxes) == {"golf-ball": 3, "tench": 0}
    assert match_categories(explainer, boxes, {"English springer": "dog"})["dog"] == 1
    with pytest.raises(UserError, match=r"no category 'dgo'. Similar names: dog"):
        match_categories(explainer, boxes, {"church": "dgo"})
    with pytest.raises(UserError, match="say which belong together with --category"):
        match_categories(Explainer(network()), boxes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no complete JSON file"),
        ("[]", "no COCO file"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        (
            '{"categories": [], "images": [], "annotations": [{"bbox": [0, 0, 1, 1], "image_id": 3}]}',
            "3 is missing or refers to nothing",
        ),
        ('{"categories": [], "images": [], "annotations": [{"bbox": [0, 1]}]}', "no COCO file"),
    ],
)
def test_damaged_boxes_are_told_in_a_sentence(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "instances.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_boxes(file)
    with pytest.raises(UserError, match="no file"):
        read_boxes(tmp_path / "missing.json")


def test_registry_names_of_the_methods_exist() -> None:
    """The library renames nothing that we name."""
    cam = pytest.importorskip("pytorch_grad_cam")
    assert all(hasattr(cam, name) for name in METHODS.values())
    assert timm.is_model("partialnet_t0")
