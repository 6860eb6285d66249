"""Detection batches are the same however they are read, and can always be learnt from."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import evaluated_images, write_set
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from partialnet.detection.annotations import DetectionImages
from partialnet.detection.batches import (
    DetectionBatch,
    detection_eval_loader,
    detection_train_loader,
)
from partialnet.detection.config import DetectionConfig
from partialnet.detection.data_sources import open_detection_data
from partialnet.detection.evaluator import to_detections
from partialnet.detection.resizing import DetectorTransform, resized_size
from partialnet.detection.transforms import prepare
from partialnet.errors import UserError

SETTINGS = {"img_size": (40, 64), "workers": 0, "seed": 1}
RESIZE = DetectorTransform((40, 64), [0.0] * 3, [1.0] * 3, size_divisible=16).eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DetectionImages:
    return evaluated_images(write_set(tmp_path_factory.mktemp("set"), 22))


@pytest.fixture
def with_unreadable(tmp_path: Path) -> DetectionImages:
    root = Path(write_set(tmp_path / "set", 22))
    for number in (4, 17):
        (root / "images" / f"{number:03}.jpg").write_bytes(b"broken")
    return evaluated_images(str(root))


def train(images: DetectionImages, epoch: int = 0, **settings: Any) -> list[DetectionBatch]:
    place = {name: settings.pop(name) for name in ("first_batch", "rank", "world_size") if name in settings}
    config = DetectionConfig(**{"batch_size": 4, **SETTINGS, **settings})
    return list(detection_train_loader(images, config, epoch, **place))


def same_targets(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same(one: DetectionBatch, other: DetectionBatch) -> bool:
    assert one.targets is not None
    assert other.targets is not None
    return (
        torch.equal(one.indices, other.indices)
        and one.unreadable == other.unreadable
        and all(map(torch.equal, one.images, other.images))
        and all(map(same_targets, one.targets, other.targets))
    )


def test_batches_do_not_depend_on_workers_or_the_start(with_unreadable: DetectionImages) -> None:
    alone = train(with_unreadable, random_scales=(0.8, 1.0, 1.2))
    assert [len(batch) for batch in alone] == [4] * 5
    assert sorted({index for batch in alone for index in batch.unreadable}) == [4, 17]
    for workers in (0, 2):
        again = train(with_unreadable, random_scales=(0.8, 1.0, 1.2), workers=workers, first_batch=2)
        assert len(again) == 3
        assert all(map(same, alone[2:], again)), workers


def test_processes_share_the_batch_of_one(images: DetectionImages) -> None:
    whole = train(images, batch_size=6, epoch=2, random_scales=(0.8, 1.0))
    parts = [
        train(images, batch_size=2, epoch=2, random_scales=(0.8, 1.0), rank=rank, world_size=3) for rank in range(3)
    ]
    assert [len(part) for part in parts] == [len(whole)] * 3 == [3] * 3
    for number, batch in enumerate(whole):
        shared = [part[number] for part in parts]
        assert torch.equal(torch.cat([part.indices for part in shared]), batch.indices)
        pixels = [image for part in shared for image in part.images]
        targets = [target for part in shared for target in part.targets or []]
        assert all(map(torch.equal, pixels, batch.images))
        assert all(map(same_targets, targets, batch.targets or []))


def test_every_image_at_most_once_an_epoch_and_epochs_differ(images: DetectionImages) -> None:
    epochs = [[index for batch in train(images, epoch=epoch) for index in batch.indices.tolist()] for epoch in (0, 1)]
    for indices in epochs:
        assert len(indices) == len(set(indices)) == 20
    assert epochs[0] != epochs[1]
    assert epochs[0] != [index for batch in train(images, seed=2) for index in batch.indices.tolist()]


def test_wide_and_tall_images_come_apart(images: DetectionImages) -> None:
    batches = train(images)
    shapes = [{image.shape[2] >= image.shape[1] for image in batch.images} for batch in batches]
    assert sum(len(shape) == 2 for shape in shapes) <= 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_masks_and_pixels_stay_together(images: DetectionImages, mirrored: bool) -> None:
    """Every mask fills its box, and the colours of squares are where their boxes are."""
    for batch in train(images, horizontal_flip=float(mirrored), img_size=(96, 200)):
        for index, pixels, target in zip(batch.indices.tolist(), batch.images, batch.targets or [], strict=True):
            known = images.instances(index)
            boxes, labels = known.boxes[~known.crowd], known.labels[~known.crowd]
            assert pixels.dtype == torch.uint8
            height, width = pixels.shape[1:]
            assert (height, width) == resized_size(tuple(images.sizes[index].tolist()), (96, 200))  # type: ignore[arg-type]
            assert target["masks"].shape == (len(labels), height, width)
            assert target["labels"].tolist() == labels.tolist()
            scale = width / int(images.sizes[index, 1])
            for mask, box, before, label in zip(target["masks"], target["boxes"], boxes, labels, strict=True):
                # the points of a kite are thinner than a pixel
                tolerance = 1.5 if images.class_names[label - 1] == "square" else 6
                left, top, right, bottom = box.tolist()
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert abs(rows[0] - top) <= tolerance
                assert abs(rows[-1] + 1 - bottom) <= tolerance
                assert abs(columns[0] - left) <= tolerance
                assert abs(columns[-1] + 1 - right) <= tolerance
                expected = (width - before[2] * scale) if mirrored else before[0] * scale
                assert left == pytest.approx(expected, abs=0.02)
                inside = pixels[:, int(top + bottom) // 2, int(left + right) // 2]
                assert int(inside.max()) > 150  # a plain colour, not the dark noise around


def test_objects_too_thin_to_be_seen_are_not_learnt(images: DetectionImages) -> None:
    index = int(images.num_instances.argmax())
    known = images.instances(index)
    size = tuple(images.sizes[index].tolist())
    _, target = prepare(images.read(index), known, size, (2, 3))  # type: ignore[arg-type]
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    assert (sides >= 1).all()
    assert len(target["masks"]) == len(target["labels"]) == len(sides) < int((~known.crowd).sum())
    assert target["boxes"].shape == (len(sides), 4)


def test_evaluation_sees_every_image_once_in_its_own_size(with_unreadable: DetectionImages) -> None:
    for workers in (0, 2):
        parts = [
            list(detection_eval_loader(with_unreadable, RESIZE, batch_size=3, rank=rank, world_size=2, workers=workers))
            for rank in range(2)
        ]
        batches = [batch for part in parts for batch in part]
        indices = [index for batch in batches for index in batch.indices.tolist()]
        assert sorted(indices) == [index for index in range(22) if index not in (4, 17)]
        assert sorted(index for batch in batches for index in batch.unreadable) == [4, 17]
        for batch in batches:
            for index, pixels in zip(batch.indices.tolist(), batch.images, strict=True):
                assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(with_unreadable.read(index)))


def test_only_images_that_come_to_one_size_are_evaluated_together(images: DetectionImages) -> None:
    sizes = set()
    for batch in detection_eval_loader(images, RESIZE, batch_size=5, workers=0):
        together = RESIZE(batch.inputs())[0].tensors.shape[2:]
        sizes.add(tuple(together))
        for image in batch.inputs():
            assert RESIZE([image])[0].tensors.shape[2:] == together
    assert len(sizes) > 1


class Pixels(nn.Module):
    """One convolution as a backbone."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=8, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        # looks at the image as a whole, as attention does
        x = self.conv(x)
        return x * x.mean((2, 3), keepdim=True)


def detector(**options: object) -> MaskRCNN:
    model = MaskRCNN(
        Pixels(),
        4,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_score_thresh=0.0,
        **options,
    )
    model.transform = DetectorTransform((40, 64), [0.5] * 3, [0.25] * 3, 16, resizes_training=False)
    return model


def test_losses_are_finite_whatever_is_wrong_with_the_data(tmp_path: Path) -> None:
    """Thin boxes, empty images, boxes outside, outlines without points: torchvision's detector learns from them."""
    root = Path(write_set(tmp_path / "set", 8))
    content = json.loads((root / "annotations.json").read_text())
    wrong = [
        {"bbox": [5, 5, 0, 9]},
        {"bbox": [5, 5, 0.001, 9]},
        {"bbox": [-30, -30, 31, 31]},
        {"bbox": [4, 4, 1e8, 3]},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [[500, 500, 510, 500, 505, 510]]},
        {"category_id": 8},
        {"bbox": [float("nan")] * 4},
    ]
    for annotation, change in zip(content["annotations"], wrong, strict=False):
        annotation.update(change)
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in (103, 106)]
    (root / "annotations.json").write_text(json.dumps(content))
    images = open_detection_data(str(root), str(root), keep_empty=True).train
    assert (images.num_instances == 0).any()
    model = detector().train()
    for batch in train(images, batch_size=2):
        losses = model(batch.inputs(), batch.targets)
        assert len(losses) == 5
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_detections_do_not_depend_on_the_batch_size(images: DetectionImages) -> None:
    model = detector(box_detections_per_img=5).eval()
    found = []
    for batch_size in (1, 4):
        detections = []
        for batch in detection_eval_loader(images, RESIZE, batch_size=batch_size, workers=0):
            with torch.no_grad():
                detections += to_detections(images, batch.indices.tolist(), model(batch.inputs()))
        found.append(sorted(detections, key=lambda one: (one["image_id"], -one["score"], one["bbox"])))
    assert len(found[0]) == len(found[1]) == 5 * len(images)
    for one, other in zip(*found, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_too_many_broken_images(tmp_path: Path) -> None:
    root = Path(write_set(tmp_path / "set", 4))
    images = evaluated_images(str(root))
    for file in (root / "images").iterdir():
        Image.open(file).resize((9, 8)).save(file)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"; the first: '.*.jpg' has 9×8 pixels, but its annotations are for \d+×"):
            train(images, workers=workers)
    batches = list(detection_eval_loader(images, RESIZE, batch_size=4, workers=0))
    assert sum(map(len, batches)) == 0


def test_small_sets(images: DetectionImages) -> None:
    assert [len(batch) for batch in train(images, batch_size=50)] == [22]
    with pytest.raises(UserError, match="22 training images are too few for 23 processes"):
        train(images, world_size=23)


def test_batches_move_and_can_be_sent_to_a_fresh_process(images: DetectionImages) -> None:
    loader = detection_train_loader(images, DetectionConfig(batch_size=2, img_size=(40, 64), workers=0), epoch=0)
    batch = loader.dataset[1]
    assert same(pickle.loads(pickle.dumps(loader.dataset))[1], batch)
    moved = batch.to("meta")
    assert {image.device.type for image in moved.images} == {"meta"}
    assert {value.device.type for target in moved.targets for value in target.values()} == {"meta"}
    inputs = batch.inputs()
    assert inputs[0].dtype == torch.float32
    assert float(inputs[0].max()) <= 1


def test_the_process_keeps_its_random_state(images: DetectionImages) -> None:
    before = torch.get_rng_state()
    train(images, random_scales=(0.8, 1.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_large_photographs_are_read_in_a_smaller_size(tmp_path: Path) -> None:
    root = Path(write_set(tmp_path / "set", 4))
    content = json.loads((root / "annotations.json").read_text())
    with Image.open(root / "images" / "000.jpg") as small:
        small.resize((640, 480)).save(root / "images" / "000.jpg")
    content["images"][0].update(width=640, height=480)
    (root / "annotations.json").write_text(json.dumps(content))
    images = evaluated_images(str(root))
    assert images.read(0, 40).size == (80, 60)
    (batch,) = train(images)
    (place,) = np.flatnonzero(batch.indices == 0)
    assert batch.images[place].shape == (3, 40, 53)
