"""The COCO numbers are those of the reference evaluator, whoever finds the detections in whatever order."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from coco_sets import evaluated_images, write_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from partialnet.detection.annotations import DetectionImages
from partialnet.detection.data_sources import open_detection_data
from partialnet.detection.evaluator import (
    NUMBERS,
    CocoNumbers,
    Detection,
    DetectionEvaluation,
    evaluate,
    gather,
    table,
    to_detections,
    write_detections,
)
from partialnet.detection.masks import encode_masks
from partialnet.detection.outlines import draw_masks
from partialnet.errors import UserError

SUBSET = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-tiny-seg.tar"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DetectionImages:
    return evaluated_images(write_set(tmp_path_factory.mktemp("set"), 16))


def outputs_of_truth(images: DetectionImages, indices: list[int]) -> list[dict[str, torch.Tensor]]:
    """What a detector would answer that knows the objects."""
    outputs = []
    for index in indices:
        known = images.instances(index)
        single = np.flatnonzero(~known.crowd)
        height, width = images.sizes[index].tolist()
        masks = draw_masks([known.outlines[one] for one in single], (height, width), (height, width))
        outputs.append(
            {
                "boxes": torch.from_numpy(known.boxes[single]).float(),
                "labels": torch.from_numpy(known.labels[single]),
                "scores": torch.linspace(0.9, 0.8, len(single)),
                "masks": masks[:, None].float(),
            }
        )
    return outputs


def perturbed(images: DetectionImages, seed: int) -> list[Detection]:
    """Objects moved, resized, missed, doubled, called by wrong names; equal scores; detections of nothing."""
    rng = np.random.default_rng(seed)
    detections: list[Detection] = []
    for index in range(len(images)):
        height, width = images.sizes[index].tolist()
        known = images.instances(index)
        boxes, labels = known.boxes.copy(), known.labels
        extra = rng.uniform(0, 30, (int(rng.integers(0, 4)), 4))
        extra[:, 2:] += extra[:, :2] + 3
        boxes = np.concatenate((boxes, boxes[rng.random(len(boxes)) < 0.3], extra))
        labels = np.resize(labels, len(boxes))
        labels = np.where(rng.random(len(boxes)) < 0.2, rng.integers(1, 4, len(boxes)), labels)
        boxes = boxes + rng.normal(0, 2.0, boxes.shape) * (rng.random((len(boxes), 1)) < 0.7)
        boxes = np.clip(boxes, 0, np.tile((width, height), 2))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        kept = rng.random(len(boxes)) < 0.85
        boxes, labels = boxes[kept], labels[kept]
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.round().astype(int), strict=True):
            mask[top:bottom, left:right] = True
        outputs = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
            "scores": torch.from_numpy(rng.random(len(boxes)).round(1)),
            "masks": masks[:, None].float(),
        }
        detections += to_detections(images, [index], [outputs])
    return detections


def reference(images: DetectionImages, detections: list[Detection], kind: str) -> list[float]:
    """The numbers of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = images.ground_truth()
        truth.createIndex()
        kept = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
        found = truth.loadRes([{name: one[name] for name in kept} for one in detections])
        evaluator = COCOeval(truth, found, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


def values(numbers: CocoNumbers | None) -> list[float]:
    """As pycocotools writes them, -1 for nothing to find."""
    assert numbers is not None
    found = [getattr(numbers, name) for name in NUMBERS]
    return [-1.0 if value is None else value for value in found]


def assert_perfect(result: DetectionEvaluation) -> None:
    for numbers in (result.boxes, result.masks):
        assert numbers is not None
        for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_100"):
            assert getattr(numbers, name) in (None, pytest.approx(1, abs=1e-12)), name
        assert numbers.ap == pytest.approx(1, abs=1e-12)


def test_ground_truth_as_detections_is_perfect(images: DetectionImages) -> None:
    indices = list(range(len(images)))
    result = evaluate(images, to_detections(images, indices, outputs_of_truth(images, indices)))
    assert_perfect(result)
    assert result.num_images == 16
    assert result.num_objects == result.num_detections == images.num_instances.sum()
    assert {one.name: one.num_objects for one in result.categories}["blob"] == 0
    for category in result.categories:
        assert category.box_ap == category.mask_ap == (1.0 if category.num_objects else None)
    assert result.box_precision.shape == (10, 101)
    assert result.box_precision.min() == 1.0


@pytest.mark.skipif(not SUBSET.exists(), reason="the COCO subset is not at hand")
def test_ground_truth_of_coco_as_detections_is_perfect(tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", SUBSET, "-C", tmp_path], check=True)
    data = open_detection_data(str(tmp_path / "coco-tiny-seg"))
    assert (len(data.train), len(data.validation), len(data.class_names)) == (160, 158, 80)
    assert {fault.kind for fault in (*data.train.faults, *data.validation.faults)} == {"crowd"}
    images = data.validation
    indices = list(range(len(images)))
    detections = to_detections(images, indices, outputs_of_truth(images, indices))
    result = evaluate(images, detections)
    assert_perfect(result)
    assert result.num_objects == 1408
    for kind, numbers in (("bbox", result.boxes), ("segm", result.masks)):
        np.testing.assert_allclose(values(numbers), reference(images, detections, kind), atol=1e-6)


@given(seed=st.integers(0, 100_000))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_reference_evaluator_agrees(images: DetectionImages, seed: int) -> None:
    detections = perturbed(images, seed)
    result = evaluate(images, detections)
    for kind, numbers in (("bbox", result.boxes), ("segm", result.masks)):
        expected = reference(images, sorted_as_evaluated(detections), kind)
        np.testing.assert_allclose(values(numbers), expected, rtol=0, atol=1e-6)
        assert 0 < expected[0] < 1


def sorted_as_evaluated(detections: list[Detection]) -> list[Detection]:
    """The reference leaves equal scores in the order that it gets them."""
    return gather(detections, [])[0]


def test_the_order_does_not_matter(images: DetectionImages) -> None:
    detections = perturbed(images, 3)
    expected = evaluate(images, detections)
    rng = np.random.default_rng(0)
    for _ in range(3):
        shuffled = [detections[number] for number in rng.permutation(len(detections))]
        result = evaluate(images, shuffled)
        assert (result.boxes, result.masks, result.categories) == (expected.boxes, expected.masks, expected.categories)


def test_categories_average_to_the_whole(images: DetectionImages) -> None:
    result = evaluate(images, perturbed(images, 5))
    found = [one for one in result.categories if one.box_ap is not None]
    assert np.mean([one.box_ap for one in found]) == pytest.approx(result.boxes.ap)
    assert np.mean([one.mask_ap50 for one in found]) == pytest.approx(result.masks.ap50 if result.masks else None)
    assert result.box_precision.mean() == pytest.approx(result.boxes.ap)
    text = table(result)
    assert f"{100 * (result.boxes.ap or 0):.1f}" in text
    assert "kite" in text
    assert "blob" not in text  # has no object
    assert json.loads(json.dumps(result.as_json()))["boxes"]["ap"] == result.boxes.ap


def test_categories_have_the_same_numbers_in_any_order(tmp_path: Path) -> None:
    """The reference orders them by their ids, 3, 7 and 90, and a detector as it learnt them."""
    data = write_set(tmp_path / "set")
    images, reordered = evaluated_images(data), evaluated_images(data, ("square", "blob", "kite"))
    assert reordered.category_ids.tolist() == [7, 90, 3]
    detections = perturbed(images, 5)
    expected = {one.name: one for one in evaluate(images, detections).categories}
    found = evaluate(reordered, detections).categories
    assert [one.name for one in found] == ["square", "blob", "kite"]
    assert {one.name: one for one in found} == expected
    assert expected["square"].box_ap != expected["kite"].box_ap


def test_categories_in_any_alphabet_stand_in_columns(images: DetectionImages) -> None:
    result = evaluate(images, perturbed(images, 5))
    first, *others = result.categories
    lines = table(replace(result, categories=(replace(first, name="고양이 (길고양이 포함)", num_objects=7), *others)))
    [line] = [line for line in lines.splitlines() if "고양이" in line]
    assert line.startswith("고양이 (길고양이 포함)         7")  # 22 columns of 24, then a number of 8


def test_crowds_cost_nothing_and_missed_objects_do(images: DetectionImages) -> None:
    """A detection on a crowd is neither right nor wrong."""
    indices = list(range(len(images)))
    detections = to_detections(images, indices, outputs_of_truth(images, indices))
    on_crowds = []
    for index in indices:
        known = images.instances(index)
        height, width = images.sizes[index].tolist()
        masks = draw_masks(known.outlines, (height, width), (height, width))
        for number in np.flatnonzero(known.crowd).tolist():
            left, top, right, bottom = known.boxes[number].tolist()
            on_crowds.append(
                {
                    "image_id": int(images.image_ids[index]),
                    "category_id": int(images.category_ids[known.labels[number] - 1]),
                    "bbox": [left, top, right - left, bottom - top],
                    "score": 0.99,
                    "segmentation": encode_masks(masks[number][None])[0],
                }
            )
    assert on_crowds
    assert_perfect(evaluate(images, detections + on_crowds))
    fewer = evaluate(images, detections[: len(detections) // 2])
    assert fewer.boxes.ap is not None
    assert fewer.boxes.ap < 0.8


def test_images_that_were_not_seen_do_not_count(images: DetectionImages) -> None:
    seen = [0, 2, 3, 7]
    detections = to_detections(images, seen, outputs_of_truth(images, seen))
    assert_perfect(evaluate(images, detections, seen))
    assert evaluate(images, detections).boxes.ap < 1  # type: ignore[operator]
    with pytest.raises(UserError, match="which is not among the evaluated ones"):
        evaluate(images, detections, [0, 2])


def test_no_detections_at_all(images: DetectionImages) -> None:
    result = evaluate(images, [])
    assert result.boxes.ap == result.boxes.ar_100 == 0
    assert result.masks is not None
    assert result.masks.ap == 0


def test_detections_that_are_not_finite_are_left_out(images: DetectionImages) -> None:
    (output,) = outputs_of_truth(images, [0])
    output["scores"][0] = float("nan")
    detections = to_detections(images, [0], [output])
    result = evaluate(images, detections, [0])
    assert result.num_not_finite == 1
    assert result.num_detections == len(detections) - 1


def test_nothing_to_find(tmp_path: Path) -> None:
    root = Path(write_set(tmp_path / "set"))
    content = json.loads((root / "annotations.json").read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 100]
    (root / "annotations.json").write_text(json.dumps(content))
    images = evaluated_images(str(root))
    with pytest.raises(UserError, match="The 1 evaluated images have no object to find"):
        evaluate(images, [], [0])


def test_boxes_alone(tmp_path: Path) -> None:
    root = Path(write_set(tmp_path / "set"))
    content = json.loads((root / "annotations.json").read_text())
    for one in content["annotations"]:
        del one["segmentation"]
    (root / "annotations.json").write_text(json.dumps(content))
    images = evaluated_images(str(root))
    indices = list(range(len(images)))
    result = evaluate(images, to_detections(images, indices, outputs_of_truth(images, indices)))
    assert result.masks is None
    assert result.boxes.ap == pytest.approx(1)
    assert "masks" not in table(result)


def test_written_detections_are_read_by_the_reference(images: DetectionImages, tmp_path: Path) -> None:
    detections = perturbed(images, 1)
    path = tmp_path / "detections.json"
    write_detections(path, detections)
    written = json.loads(path.read_text())
    assert written == sorted_as_evaluated(detections)
    assert set(written[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    result = evaluate(images, written)
    np.testing.assert_allclose(values(result.masks), reference(images, written, "segm"), atol=1e-6)


def _share(rank: int, world_size: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    images = evaluated_images(data)
    mine = list(range(rank, len(images), world_size))
    ids = set(images.image_ids[mine].tolist())
    detections = [one for one in perturbed(images, 2) if one["image_id"] in ids]
    gathered, indices = gather(detections, mine)
    result: dict[str, Any] = {"numbers": evaluate(images, gathered, indices).as_json(), "indices": indices}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def test_two_processes_evaluate_as_one(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", 9)
    images = evaluated_images(data)
    mp.start_processes(_share, args=(2, str(tmp_path), data), nprocs=2, start_method="fork")
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    assert results[0]["indices"] == list(range(9))
    assert results[0]["numbers"] == evaluate(images, perturbed(images, 2)).as_json()
