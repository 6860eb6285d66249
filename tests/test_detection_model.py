"""Mask R-CNN with any backbone: building, folding, storing, and weights to start from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Randomize
from stored_networks import released_backbone
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

import partialnet
from partialnet.checkpoint import Checkpoint, create_checkpoint, load
from partialnet.detection.bench import as_table, bench_detectors, count_detector, write_detector_csv
from partialnet.detection.checkpoint import create_detector, load_detector
from partialnet.detection.config import DetectionConfig
from partialnet.detection.masks import encode_box_masks, encode_masks
from partialnet.detection.model import count_parameters, create_mask_rcnn
from partialnet.detection.weights import load_weights
from partialnet.errors import UserError
from partialnet.folding.batch_norms import is_batch_norm
from partialnet.training.optimization import create_optimizer

TINY: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 1, 1)}
CATEGORIES = {1: "person", 18: "dog", 90: "toothbrush"}
#: Parameters in millions as the paper's Table 11 prints them
PAPER_PARAMS = {"partialnet_s": 46.9, "partialnet_l": 122.0, "resnet50": 44.2, "poolformer_s24": 41.0}


def tiny(**settings: Any) -> Any:
    # narrow heads and few proposals, as the paper's heads would cost most of the time of a tiny detector
    light = {"pyramid_channels": 32, "num_proposals": 20, "num_sampled": 32}
    settings = {"model_args": TINY, "img_size": (96, 128), **light, **settings}
    return create_detector("partialnet_t0", CATEGORIES, **settings)


def photos() -> list[Tensor]:
    return [torch.rand(3, 60, 90), torch.rand(3, 100, 70)]


def targets(images: list[Tensor]) -> list[dict[str, Tensor]]:
    found = []
    for image in images:
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        mask[:, 10:40, 15:50] = 1
        box = torch.tensor([[15.0, 10.0, 50.0, 40.0]])
        found.append({"boxes": box, "labels": torch.tensor([2]), "masks": mask})
    return found


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER_PARAMS)
def test_parameters_are_the_papers(name: str) -> None:
    model = create_mask_rcnn(name, 80)
    parts = count_parameters(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parts.values()) == total
    assert total / 1e6 == pytest.approx(PAPER_PARAMS[name], rel=0.01)
    # mmdetection's heads have one output less for the background in two places: 4 · 1025 + 257 parameters
    assert parts["boxes"] + parts["masks"] == 16_949_985 + 4 * 1025 + 257
    assert parts["proposals"] == 593_935


def test_it_detects_and_learns() -> None:
    detector = tiny(score_thresh=0.0, detections_per_img=7)
    images = photos()
    with torch.no_grad():
        found = detector.model(images)
    for image, answer in zip(images, found, strict=True):
        assert set(answer) == {"boxes", "labels", "scores", "masks"}
        assert 0 < len(answer["boxes"]) <= 7
        assert answer["masks"].shape[1:] == (1, *image.shape[1:])
        assert answer["labels"].min() >= 1
        assert answer["labels"].max() <= len(CATEGORIES)
    detector.model.train()
    losses = detector.model(images, targets(images))
    sum(losses.values()).backward()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert all(bool(loss.isfinite()) for loss in losses.values())
    idle = [name for name, parameter in detector.model.named_parameters() if parameter.grad is None]
    assert idle == []


def test_boxes_keep_their_pixels_under_autocast() -> None:
    """As in training on a GPU, where bf16 is the default: it would round pixel 1003 to 1004."""
    model = tiny(score_thresh=0.0, detections_per_img=7, img_size=(64, 1280)).model
    seen: dict[str, Any] = {}
    model.rpn.anchor_generator.register_forward_hook(lambda module, inputs, out: seen.update(anchors=out))
    model.roi_heads.box_roi_pool.register_forward_hook(lambda module, inputs, out: seen.update(regions=inputs[1]))
    images = [torch.rand(3, 64, 1250)] * 2
    with torch.no_grad():
        model.find(images)
        expected = seen["anchors"]
        with torch.autocast("cpu", torch.bfloat16):
            found = model.find(images)[0]
            assert model.backbone(torch.rand(1, 3, 96, 128))["0"].dtype == torch.bfloat16
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(seen["anchors"], expected, strict=True))
    objects = targets(images)
    objects[0]["boxes"] += torch.tensor([1003.3, 0.7, 1003.9, 0.9])
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        sum(model(images, objects).values()).backward()
    assert seen["regions"][0].dtype == torch.float32
    assert (seen["regions"][0] == objects[0]["boxes"]).all(1).any()  # objects are among what is learnt from
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_masks_left_in_their_boxes_are_the_same() -> None:
    detector = tiny(score_thresh=0.0, detections_per_img=7)
    images = photos()
    with torch.no_grad():
        whole, parts = detector.model(images), detector.model.find(images)  # type: ignore[operator]
    for image, one, other in zip(images, whole, parts, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("boxes", "labels", "scores"))
        expected = encode_masks(one["masks"][:, 0] > 0.5)
        size = (image.shape[1], image.shape[2])
        assert encode_box_masks(other["box_masks"], other["boxes"], size) == expected
        assert len(expected) > 0


def test_a_strip_seen_first_changes_no_later_image(randomize: Randomize) -> None:
    """torchvision's pooling takes the strides from the first image, 14×96 pixels above 18 rows of zeros here."""
    model: Any = randomize(tiny(score_thresh=0).model)
    fresh, image = copy.deepcopy(model), photos()[0]
    with torch.no_grad():
        model([torch.rand(3, 20, 180)])
        (after,), (expected,) = model.find([image]), fresh.find([image])
    for name in ("boxes", "scores", "box_masks"):
        torch.testing.assert_close(after[name], expected[name])


def test_regions_are_pooled_as_torchvision_pools_them() -> None:
    pool = tiny().model.roi_heads.box_roi_pool
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    maps = {str(level): torch.rand(1, 8, 256 >> level, 384 >> level) for level in range(4)}
    corners = torch.rand(40, 2) * 500
    boxes = torch.cat([corners, corners + torch.rand(40, 2) * 10 ** (1 + torch.rand(40, 1) * 2)], 1)
    torch.testing.assert_close(pool(maps, [boxes], [(1024, 1536)]), theirs(maps, [boxes], [(1024, 1536)]))


def test_images_are_normalised_as_the_backbone_wants() -> None:
    model = create_mask_rcnn("partialnet_t0", 1, model_args=TINY)
    assert model.transform.image_mean == pytest.approx((0.485, 0.456, 0.406))
    inception = create_mask_rcnn("mobilenetv3_small_050", 1)
    assert inception.transform.image_mean == pytest.approx(
        create_checkpoint("mobilenetv3_small_050").input_config["mean"]
    )


@pytest.mark.parametrize(
    ("name", "strides", "anchors"),
    [
        ("resnet10t", (4, 8, 16, 32), (32, 64, 128, 256, 512)),
        ("mambaout_femto", (4, 8, 16, 32), (32, 64, 128, 256, 512)),  # (B, H, W, C)
        ("shvit_s1", (16, 32), (128, 256, 512)),
    ],
)
def test_pyramid_follows_the_feature_maps(name: str, strides: tuple[int, ...], anchors: tuple[int, ...]) -> None:
    model = create_mask_rcnn(name, 2, img_size=(64, 96), score_thresh=0, detections_per_img=3, num_proposals=20)
    assert model.backbone.maps.strides == strides
    assert tuple(size for (size,) in model.rpn.anchor_generator.sizes) == anchors
    with torch.no_grad():
        levels = model.backbone(torch.rand(1, 3, 64, 96))
        (found,) = model([torch.rand(3, 64, 96)])
    assert [tuple(level.shape[1:]) for level in levels.values()][:-1] == [(256, 64 // s, 96 // s) for s in strides]
    assert len(found["boxes"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_tiny_patch16_224", "16, 16, 16"),
        ("levit_128s", "any size"),
        ("no_such_network", "no model named"),
        ("torchvision:resnet18", "torchvision:resnet18 gives no feature maps, which a detector needs"),
    ],
)
def test_unfit_backbones_are_refused(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        create_mask_rcnn(name, 2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"img_size": (800, 600)}, "img_size"),
        ({"drop_path": 0.1}, "no setting 'drop_path'"),
        ({"model_args": {"depths": (1, 2)}}, "cannot be built"),
        ({"model_args": {"in_chans": 1}}, r"3 channels, but partialnet_t0 is to take 1; leave out in_chans\."),
        ({"model_args": {"name": "resnet18"}}, "unexpected keyword argument 'name'"),
        ({"model_args": {"class_names": ["cat"]}}, "unexpected keyword argument 'class_names'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        create_detector("partialnet_t0", CATEGORIES, **settings)


def test_stochastic_depth_is_the_papers_for_detection() -> None:
    def last(**settings: Any) -> float:
        rates = [
            float(module.drop_prob)
            for module in create_mask_rcnn("partialnet_s", 1, model_args=TINY, **settings).modules()
            if type(module).__name__ == "DropPath"
        ]
        return rates[-1] if rates else 0.0

    assert last() == pytest.approx(0.15)
    assert last(drop_path_rate=0.3) == pytest.approx(0.3)


def test_frozen_norms_do_not_learn_but_new_ones_do() -> None:
    model = tiny(frozen_bn=True).model.train()
    norms = [module for module in model.backbone.maps.modules() if is_batch_norm(module)]
    assert norms
    assert all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)
    before = {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name}
    images = photos()
    model(images[:1], targets(images[:1]))  # a single image suffices: no statistics of a batch
    changed = {name for name, tensor in model.named_buffers() if name in before and not tensor.equal(before[name])}
    assert changed
    assert all(name.startswith("backbone.out_norms.") for name in changed)


@pytest.mark.parametrize(
    ("name", "num_stages", "frozen"),
    [
        ("partialnet_t0", 1, ("patch_embed.", "stages_0.")),
        ("partialnet_t0", 3, ("patch_embed.", "stages_0.", "stages_1.", "stages_2.")),
        ("resnet10t", 2, ("conv1.", "bn1.", "layer1.", "layer2.")),
        ("mobilenetv3_small_050", 1, ("conv_stem.", "bn1.", "blocks.0.")),
    ],
)
def test_frozen_stages_stay_as_they_are(name: str, num_stages: int, frozen: tuple[str, ...]) -> None:
    arguments = TINY if name == "partialnet_t0" else {}
    model = create_mask_rcnn(
        name, 3, model_args=arguments, drop_path_rate=0.5, pyramid_channels=16, num_proposals=20, masks=False
    )
    maps = model.backbone.maps
    maps.freeze(num_stages)
    model.train()
    learning = {name: parameter.requires_grad for name, parameter in maps.body.named_parameters()}
    assert learning == {name: not name.startswith(frozen) for name in learning}
    assert not all(learning.values())
    assert any(learning.values())
    for place, module in maps.body.named_modules():  # stochastic depth in them, too
        if place:
            assert module.training == (not f"{place}.".startswith(frozen)), place
    before = {name: value.clone() for name, value in maps.body.state_dict().items() if "running" in name}
    with torch.no_grad():
        model.backbone(torch.rand(2, 3, 64, 96))
    for name, value in maps.body.state_dict().items():
        if name in before:
            assert value.equal(before[name]) == name.startswith(frozen), name


def test_more_frozen_stages_than_there_are_are_refused() -> None:
    with pytest.raises(UserError, match="frozen_stages is 5, but the backbone has only 4 stages"):
        tiny().model.backbone.maps.freeze(5)


# -- groups of parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["partialnet_t0", "resnet10t", "mobilenetv3_small_050", "poolformer_s12"])
def test_backbones_learn_and_decay_as_their_classifiers(name: str) -> None:
    """What timm says of a classifier's parameters holds for the backbone's; what is new learns at the full rate."""
    arguments = TINY if name == "partialnet_t0" else {}
    groups = []
    for model in (
        create_checkpoint(name, **arguments).model,
        create_mask_rcnn(name, 2, model_args=arguments, pyramid_channels=16),
    ):
        optimizer = create_optimizer(model, DetectionConfig(layer_decay=0.5, weight_decay=0.1), 1e-3)
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups.append(
            {
                names[parameter]: (group["lr_scale"], group["weight_decay"])
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
        )
    classifier, detector = groups
    body = "backbone.maps.body."
    expected = {
        form: group
        for name, group in classifier.items()
        for form in (f"{body}{name}", f"{body}{name.replace('.', '_', 1)}")
    }
    own = {name: group for name, group in detector.items() if name.startswith(body)}
    assert own == {name: expected[name] for name in own}
    assert min(scale for scale, _ in own.values()) < 0.1
    assert {scale for name, (scale, _) in detector.items() if name not in own} == {1.0}
    tables = {name for name in own if name.endswith("position_bias.table")}
    assert bool(tables) == (name == "partialnet_t0")
    plain = create_optimizer(model, DetectionConfig(weight_decay=0.1), 1e-3)
    decayed = {
        names[parameter] for group in plain.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    assert decayed == {name for name, (_, decay) in detector.items() if decay}
    assert not decayed & tables


# -- folding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen_bn", [False, True])
@pytest.mark.parametrize("name", ["partialnet_t0", "resnet10t", "mambaout_femto"])
def test_folding_reaches_into_detectors(name: str, frozen_bn: bool, randomize: Randomize) -> None:
    arguments = TINY if name == "partialnet_t0" else {}
    model = create_mask_rcnn(
        name, 3, model_args=arguments, frozen_bn=frozen_bn, img_size=(64, 96), score_thresh=0, detections_per_img=5
    )
    randomize(model.double())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = partialnet.fold(model)
    assert [name for name, module in folded.named_modules() if is_batch_norm(module)] == []
    assert all(type(norm) is nn.Identity for norm in folded.backbone.out_norms), "the pyramid absorbs them"
    batch = torch.rand(2, 3, 64, 96).double()
    images = [image.double() for image in photos()]
    with torch.no_grad():
        for a, b in zip(model.backbone(batch).values(), folded.backbone(batch).values(), strict=True):
            assert (a - b).abs().max() <= 1e-9 * a.abs().max()
        for a, b in zip(model(images), folded(images), strict=True):
            assert a["labels"].equal(b["labels"])
            for key in ("boxes", "scores", "masks"):
                torch.testing.assert_close(a[key], b[key], rtol=1e-7, atol=1e-7)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_folding_reaches_through_a_backbone_of_full_depth() -> None:
    """What it takes to follow a network grows with its depth, and must not be what ends the following."""
    folded = partialnet.fold(create_mask_rcnn("partialnet_t0", 3, img_size=(64, 96)).eval())
    assert all(type(norm) is nn.Identity for norm in folded.backbone.out_norms)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoint_is_all_that_is_needed(tmp_path: Path, randomize: Randomize) -> None:
    detector = tiny(score_thresh=0.0, detections_per_img=10, frozen_bn=True)
    randomize(detector.model)
    detector.model.transform.image_mean = [0.4, 0.5, 0.6]
    detector.training = {"epoch": 3, "seed": 7}
    path = detector.save(tmp_path)
    (tmp_path / "config.json").unlink()
    again = load_detector(path)
    assert list(again.categories.items()) == list(CATEGORIES.items())
    assert again.img_size == (96, 128)
    assert again.training == {"epoch": 3, "seed": 7}
    images = photos()
    with torch.no_grad():
        for a, b in zip(detector.model(images), again.model(images), strict=True):
            assert all(a[key].equal(b[key]) for key in a)
    assert json.dumps(again.config()) == json.dumps(detector.config())


def test_folded_checkpoint(tmp_path: Path, randomize: Randomize) -> None:
    detector = tiny(score_thresh=0.0, detections_per_img=10)
    randomize(detector.model)
    folded = detector.fold()
    folded.save(tmp_path)
    again = load_detector(tmp_path)
    assert again.folded
    batch = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        levels = zip(again.model.backbone(batch).values(), folded.model.backbone(batch).values(), strict=True)
        assert all(a.equal(b) for a, b in levels)
    with pytest.raises(UserError, match="folded"):
        load_weights(tiny(), tmp_path)


def test_tasks_are_not_taken_for_one_another(tmp_path: Path) -> None:
    tiny().save(tmp_path / "detector")
    create_checkpoint("partialnet_t0", **TINY).save(tmp_path / "classifier")
    with pytest.raises(UserError, match="is a detector"):
        load(tmp_path / "detector")
    with pytest.raises(UserError, match="is a detector"):
        load(tmp_path / "detector" / "model.safetensors")
    with pytest.raises(UserError, match="is a classifier"):
        load_detector(tmp_path / "classifier")
    with pytest.raises(UserError, match="no file or folder"):
        load_detector(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("categories", [], "categories"),
        ("categories", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "id of its own"),
        ("std", [1, 0, 1], "above 0"),
        ("detector", "yolo", "yolo"),
        ("settings", {"hidden": 3}, "hidden"),
        ("settings", {"pyramid_channels": 0}, "at least 1"),
        ("settings", {"pyramid_channels": "wide"}, "cannot be used"),
        ("architecture", "resnet1", "no model named"),
        ("task", "poetry", "unknown task"),
    ],
)
def test_damaged_configurations_are_told(tmp_path: Path, key: str, value: Any, told: str) -> None:
    from partialnet.checkpoint.stored_network import save_network

    detector = tiny()
    save_network(tmp_path, detector.model, {**detector.config(), key: value})
    with pytest.raises(UserError, match=told) as raised:
        load_detector(tmp_path)
    assert "\n" not in str(raised.value)


# -- weights to start from ---------------------------------------------------------------------------------------------


def saved_classifier(folder: Path, name: str, randomize: Randomize, **arguments: Any) -> Checkpoint:
    classifier = create_checkpoint(name, **arguments)
    randomize(classifier.model)
    classifier.save(folder)
    return classifier


@pytest.mark.parametrize("frozen_bn", [False, True])
@pytest.mark.parametrize("name", ["partialnet_t0", "resnet10t", "shvit_s1", "mobilenetv3_small_050"])
def test_classifier_gives_its_layers_to_the_backbone(
    name: str, frozen_bn: bool, tmp_path: Path, randomize: Randomize
) -> None:
    arguments = TINY if name == "partialnet_t0" else {}
    classifier = saved_classifier(tmp_path, name, randomize, **arguments)
    detector = create_detector(name, CATEGORIES, model_args=arguments, frozen_bn=frozen_bn)
    report = load_weights(detector, tmp_path)
    own = detector.model.backbone.maps.state_dict()
    assert f"{len(own)} of {len(own)} tensors" in report
    assert "NEW" not in report
    expected = create_checkpoint(name, features_only=True, **arguments).model
    # the feature maps are the classifier's: computed by its own modules under its own names
    given = classifier.model.state_dict()
    renamed = {key: given.get(key, given.get(key.replace("_", ".", 1))) for key in expected.state_dict()}
    if all(tensor is not None for tensor in renamed.values()):
        expected.load_state_dict(renamed)
        x = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            maps, levels = expected.eval()(x), detector.model.backbone.maps.levels
            for item, level in zip(detector.model.backbone.maps(x), levels, strict=True):
                torch.testing.assert_close(item, maps[level], rtol=1e-4, atol=1e-4)


def test_normalisation_comes_with_the_weights(tmp_path: Path) -> None:
    classifier = create_checkpoint("partialnet_t0", **TINY)
    classifier.input_config["mean"] = [0.5, 0.5, 0.5]
    classifier.save(tmp_path)
    detector = tiny()
    assert "mean 0.5, 0.5, 0.5" in load_weights(detector, tmp_path)
    assert detector.mean == [0.5, 0.5, 0.5]


def test_nothing_matched_is_an_error(tmp_path: Path, randomize: Randomize) -> None:
    saved_classifier(tmp_path, "resnet10t", randomize)
    with pytest.raises(UserError, match="None of the") as raised:
        load_weights(tiny(), tmp_path)
    assert "resnet10t" in str(raised.value)
    with pytest.raises(UserError, match="untrained"):
        load_weights(tiny(), "partialnet_t0")


def test_authors_detection_backbone_gives_its_norms_too(tmp_path: Path, randomize: Randomize) -> None:
    from partialnet.models import PartialNet

    network = randomize(PartialNet(**TINY, out_norms=True, act_layer="gelu"))
    path = tmp_path / "backbone.pth"
    torch.save({"state_dict": released_backbone(network)}, path)
    detector = tiny()
    report = load_weights(detector, path)
    assert "output norms" not in report
    assert "NEW" not in report
    for index, norm in enumerate(detector.model.backbone.out_norms):
        assert norm.running_var.equal(network.out_norms[index].running_var)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network.eval().forward_intermediates(x, norm=True, intermediates_only=True)
        for a, b in zip(detector.model.backbone.normalised_maps(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_detector_gives_all_but_what_tells_categories(tmp_path: Path, randomize: Randomize) -> None:
    other = tiny()
    randomize(other.model)
    other.save(tmp_path)
    same = tiny()
    load_weights(same, tmp_path)
    theirs = other.model.state_dict()
    assert all(tensor.equal(theirs[name]) for name, tensor in same.model.state_dict().items())
    # as many categories, of other meaning
    fresh = create_detector("partialnet_t0", {1: "a", 2: "b", 3: "c"}, **other.settings)
    before = fresh.model.roi_heads.box_predictor.cls_score.weight.clone()
    assert "the weights are for 3 other categories" in load_weights(fresh, tmp_path)
    assert fresh.model.roi_heads.box_predictor.cls_score.weight.equal(before)
    assert fresh.model.rpn.head.cls_logits.weight.equal(other.model.rpn.head.cls_logits.weight)


def test_categories_that_both_know_come_along(tmp_path: Path, randomize: Randomize) -> None:
    """By their names, whatever ids and order: a score, four numbers of a box and a mask for each."""
    other = tiny()
    randomize(other.model)
    other.save(tmp_path)
    detector = create_detector("partialnet_t0", {7: "toothbrush", 5: "lamp", 3: "person"}, **other.settings)
    before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
    report = load_weights(detector, tmp_path)
    assert "know 2 of the 3 categories (toothbrush, person); new are lamp." in report
    assert "NEW" not in report
    own, theirs = detector.model.state_dict(), other.model.state_dict()
    for name, rows in (
        ("box_predictor.cls_score", 1),
        ("box_predictor.bbox_pred", 4),
        ("mask_predictor.mask_fcn_logits", 1),
    ):
        for leaf in ("weight", "bias"):
            mine, fresh, given = (state[f"roi_heads.{name}.{leaf}"] for state in (own, before, theirs))
            for ours, source, place in ((0, given, 0), (1, given, 3), (2, fresh, 2), (3, given, 1)):
                expected = source[place * rows : (place + 1) * rows]
                assert mine[ours * rows : (ours + 1) * rows].equal(expected), (name, leaf, ours)
    subset = create_detector("partialnet_t0", {18: "dog"}, **other.settings)
    assert "know all categories, 1 of the 3 that the weights are for" in load_weights(subset, tmp_path)
    assert subset.model.roi_heads.box_predictor.cls_score.bias.equal(
        theirs["roi_heads.box_predictor.cls_score.bias"][[0, 2]]
    )


def test_heads_of_another_width_are_new(tmp_path: Path) -> None:
    other = tiny(pyramid_channels=16)
    other.save(tmp_path)
    assert load_detector(tmp_path).model.backbone.out_channels == 16
    detector = tiny()
    report = load_weights(detector, tmp_path)
    assert "NEW, because they are missing there or have another shape: backbone.fpn" in report
    theirs = other.model.backbone.maps.state_dict()
    assert all(tensor.equal(theirs[name]) for name, tensor in detector.model.backbone.maps.state_dict().items())


# -- measuring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [256, 40])
def test_counts_agree_with_closed_forms(c: int) -> None:
    row = count_detector("resnet10t", (64, 96), c)
    levels = [(64 // s) * (96 // s) for s in (4, 8, 16, 32)]
    lateral = sum(n * width * c for n, width in zip(levels, (64, 128, 256, 512), strict=True))
    assert row.macs_g["pyramid"] * 1e9 == pytest.approx(lateral + sum(levels) * 9 * c * c)
    assert row.macs_g["proposals"] * 1e9 == pytest.approx((sum(levels) + 1 * 2) * (9 * c * c + c * 15))
    assert row.macs_g["boxes"] * 1e9 == pytest.approx(1000 * (c * 49 * 4 * c + 16 * c * c + 4 * c * 81 * 5))
    mask = 4 * 9 * c * c * 196 + 4 * c * c * 196 + c * 81 * 784
    assert row.macs_g["masks"] * 1e9 == pytest.approx(100 * mask)
    boxes = c * 49 * 4 * c + 4 * c + 16 * c * c + 4 * c + (4 * c + 1) * 81 * 5
    assert row.params_m["boxes"] * 1e6 == pytest.approx(boxes)
    masks = 4 * (9 * c * c + c) + 4 * c * c + c + (c + 1) * 81
    assert row.params_m["masks"] * 1e6 == pytest.approx(masks)


def test_measuring_a_trained_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its run folder or its file, with its own width, categories and heads, beside a backbone of another width."""
    monkeypatch.setattr("partialnet.detection.bench._CANDIDATES", 3)
    monkeypatch.setattr("partialnet.detection.bench._LAYOUT_SIZE", (64, 96))
    categories = {1: "cat", 7: "dog"}
    settings: dict[str, Any] = {"pyramid_channels": 16, "model_args": {"depths": (1, 1, 1, 1)}, "masks": False}
    file = create_detector("partialnet_t0", categories, img_size=(40, 50), **settings).save(tmp_path / "run")
    run = str(tmp_path / "run")
    rows = bench_detectors(["resnet10t", run], run, size=(64, 96), pyramid_channels=(8,), min_rounds=1, progress=False)
    assert [(row.model, row.pyramid_channels) for row in rows] == [("resnet10t", 8), (run, 16)]
    assert rows[1].timing is not None
    assert rows[1].timing.ratio == 1
    assert "masks" in rows[0].macs_g
    counted = count_detector(str(file), (64, 96))
    assert counted.macs_g == rows[1].macs_g
    assert "masks" not in counted.macs_g
    boxes = 16 * 49 * 64 + 64 + 64 * 64 + 64 + 65 * 3 * 5
    assert counted.params_m["boxes"] * 1e6 == pytest.approx(boxes)
    create_detector("partialnet_t0", categories, **settings).fold().save(tmp_path / "folded")
    with pytest.raises(UserError, match="is folded already"):
        count_detector(str(tmp_path / "folded"), (64, 96))
    with pytest.raises(UserError):
        count_detector(str(tmp_path), (64, 96))


def test_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialnet.detection.bench._CANDIDATES", 3)
    monkeypatch.setattr("partialnet.detection.bench._LAYOUT_SIZE", (64, 96))
    rows = bench_detectors(
        ["partialnet_t0"],
        "partialnet_t0",
        size=(64, 96),
        pyramid_channels=(32, 16),
        min_rounds=1,
        progress=False,
    )
    assert [(row.model, row.pyramid_channels) for row in rows] == [("partialnet_t0", 32), ("partialnet_t0", 16)]
    ratios = [row.timing.ratio for row in rows if row.timing is not None]
    assert len(ratios) == 2
    assert ratios[0] == 1
    shown = [line.split() for line in as_table(rows).splitlines()[1:]]
    assert [line[:2] for line in shown] == [["partialnet_t0", "32"], ["partialnet_t0", "16"]]
    for line, row in zip(shown, rows, strict=True):
        assert float(line[3]) == pytest.approx(row.total_macs_g, abs=5e-5)
    write_detector_csv(tmp_path / "rows.csv", rows)
    table = (tmp_path / "rows.csv").read_text()
    assert table.count("\n") == 3
    assert table.startswith("backbone,pyramid_channels,")
    with pytest.raises(UserError, match="multiples of 32"):
        bench_detectors(["resnet10t"], "resnet10t", size=(60, 90))
