"""The twelve COCO numbers for boxes and for masks.

They are computed by faster-coco-eval, a maintained implementation in C++ of the reference evaluator, pycocotools:
crowds, areas and the limits of detections per image are treated alike, and our tests compare the two. It was chosen
because it takes a fraction of the reference's time, which counts in validation after every epoch, needs NumPy only, and
is what torchmetrics uses. hotcoco gave the same numbers and was even faster, but is younger.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", arXiv:1405.0312; https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partialnet.errors import UserError
from partialnet.files import write_atomically
from partialnet.text_width import left_aligned, text_width
from partialnet.training.agreement import gathered

from .annotations import DetectionImages, DetectionSubset
from .masks import MASK_THRESHOLD, encode_box_masks, encode_masks
from .outlines import mask_functions

#: IoU from which a detection counts as right.
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
#: Where precision is taken.
RECALLS = tuple(step / 100 for step in range(101))
#: Detections in one image that count at most.
MAX_DETECTIONS = 100
_BOXES, _MASKS = "bbox", "segm"

#: One detection as COCO's results have it: ``image_id``, ``category_id``, ``bbox`` (left, top, width, height in
#: pixels), ``score`` and, as compressed run lengths, ``segmentation``.
Detection = dict[str, Any]


@dataclass(frozen=True)
class CocoNumbers:
    """Mean average precision and recall; None where the ground truth has nothing to find.

    Attributes:
        ap: Average precision over IoU 0.50, 0.55, …, 0.95 and all categories.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ap_small: Of objects below 32² pixels.
        ap_medium: Of objects from 32² to 96² pixels.
        ap_large: Of objects above 96² pixels.
        ar_1: Average recall with one detection in each image and category.
        ar_10: With ten.
        ar_100: With a hundred.
        ar_small: Of objects below 32² pixels, with a hundred.
        ar_medium: Of objects from 32² to 96² pixels.
        ar_large: Of objects above 96² pixels.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None


#: Their names, in the reference evaluator's order.
NUMBERS = tuple(number.name for number in fields(CocoNumbers))


@dataclass(frozen=True)
class CategoryResult:
    """How well the objects of one category were found; None where there are none.

    Attributes:
        name: The category.
        num_objects: Objects in the ground truth, without crowds.
        box_ap: Average precision of boxes over the IoU thresholds.
        box_ap50: At IoU 0.50.
        mask_ap: Of masks; None where there are no masks.
        mask_ap50: At IoU 0.50.
    """

    name: str
    num_objects: int
    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None
    mask_ap50: float | None


@dataclass(frozen=True)
class DetectionEvaluation:
    """Detections compared with the ground truth.

    Attributes:
        boxes: The twelve numbers for boxes.
        masks: Those for masks; None where the ground truth or the detections have none.
        categories: In the order of the labels.
        box_precision: Precision at each IoU threshold and recall, mean over the categories, (10, 101).
        mask_precision: Of masks, or None.
        num_images: Images that were evaluated.
        num_objects: Objects on them, without crowds.
        num_detections: Detections that were compared.
        num_not_finite: Detections left out as their score or box is NaN or infinite.
    """

    boxes: CocoNumbers
    masks: CocoNumbers | None
    categories: tuple[CategoryResult, ...]
    box_precision: np.ndarray
    mask_precision: np.ndarray | None
    num_images: int
    num_objects: int
    num_detections: int
    num_not_finite: int

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON, without the curves of precision."""
        values = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return {
            "boxes": asdict(self.boxes),
            "masks": None if self.masks is None else asdict(self.masks),
            "categories": [asdict(category) for category in self.categories],
            **values,
        }


def to_detections(
    images: DetectionImages, indices: Iterable[int], outputs: Sequence[dict[str, Tensor]]
) -> list[Detection]:
    """What torchvision's detectors answer, in the COCO format.

    Args:
        images: What the detector looked at.
        indices: Places of the images in it.
        outputs: For each image ``boxes`` (left, top, right, bottom in pixels of the image), (N, 4), ``labels``, (N,),
            ``scores``, (N,), and perhaps ``masks``, (N, 1, H, W), or ``box_masks``, (N, 1, S, S), in [0, 1].
    """
    detections: list[Detection] = []
    for index, output in zip(indices, outputs, strict=True):
        corners = output["boxes"].detach().double().cpu()
        boxes = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1).tolist()
        scores = output["scores"].detach().double().cpu().tolist()
        category_ids = images.category_ids[output["labels"].cpu().numpy() - 1].tolist()
        found = [
            {"image_id": int(images.image_ids[index]), "category_id": category_id, "bbox": box, "score": score}
            for category_id, box, score in zip(category_ids, boxes, scores, strict=True)
        ]
        height, width = images.sizes[index].tolist()
        for detection, segmentation in zip(found, _segmentations(output, (height, width)), strict=True):
            if segmentation is not None:
                detection["segmentation"] = segmentation
        detections += found
    return detections


def _segmentations(output: dict[str, Tensor], size: tuple[int, int]) -> Sequence[dict[str, Any] | None]:
    if "box_masks" in output:
        return encode_box_masks(output["box_masks"], output["boxes"], size)
    if "masks" in output:
        return encode_masks(output["masks"].detach().flatten(0, 1) > MASK_THRESHOLD)
    return [None] * len(output["boxes"])


def gather(detections: list[Detection], indices: Sequence[int]) -> tuple[list[Detection], list[int]]:
    """Detections, and places of the evaluated images, of all processes of ``torch.distributed``, in a fixed order.

    Without several processes only the order changes, which :func:`evaluate` does not depend on.
    """
    parts = gathered((detections, list(indices)))
    every = [detection for part, _ in parts for detection in part]
    return in_order(every), sorted(index for _, part in parts for index in part)


def in_order(detections: Iterable[Detection]) -> list[Detection]:
    """By image, score, category and place, so that equal scores, too, have an order that does not depend on reading."""
    return sorted(
        detections,
        key=lambda one: (
            one["image_id"],
            -one["score"],
            one["category_id"],
            one["bbox"],
            one.get("segmentation", {}).get("counts", ""),
        ),
    )


def evaluate(
    images: DetectionImages,
    detections: Iterable[Detection],
    indices: Sequence[int] | None = None,
    with_masks: bool = True,
) -> DetectionEvaluation:
    """Compare detections with the ground truth.

    Args:
        images: The ground truth, crowds too.
        detections: In any order.
        indices: Places of the images that a detector has seen; None is all. Others, such as unreadable ones, do not
            count.
        with_masks: Whether masks are compared, too; they are not where the ground truth or a detection has none.

    Raises:
        UserError: The evaluator is not installed, a detection belongs to no image, or there is no object to find.
    """
    mask_functions()
    from faster_coco_eval import COCO

    places = np.arange(len(images)) if indices is None else np.unique(np.asarray(indices, np.int64))
    image_ids = images.image_ids[places].tolist()
    if not images.num_instances[places].any():
        raise UserError(f"The {len(places)} evaluated images have no object to find.")
    every = list(detections)
    finite = in_order(one for one in every if all(map(math.isfinite, (one["score"], *one["bbox"]))))
    if foreign := {one["image_id"] for one in finite}.difference(image_ids):
        raise UserError(f"Detections are for image {min(foreign)}, which is not among the evaluated ones.")
    truth = COCO(images.ground_truth())
    boxes, box_precision = _evaluate(truth, finite, image_ids, _BOXES)
    masks = mask_precision = None
    if with_masks and images.has_outlines and all("segmentation" in one for one in finite):
        masks, mask_precision = _evaluate(truth, finite, image_ids, _MASKS)
    return DetectionEvaluation(
        boxes=boxes,
        masks=masks,
        categories=_by_category(images, places, box_precision, mask_precision),
        box_precision=_mean_over_categories(box_precision),
        mask_precision=None if mask_precision is None else _mean_over_categories(mask_precision),
        num_images=len(places),
        num_objects=int(images.num_instances[places].sum()),
        num_detections=len(finite),
        num_not_finite=len(every) - len(finite),
    )


def _evaluate(
    truth: Any, detections: list[Detection], image_ids: list[int], kind: str
) -> tuple[CocoNumbers, np.ndarray]:
    """The twelve numbers; precision at each IoU threshold, recall and category, (10, 101, K), -1 without objects."""
    from faster_coco_eval import COCOeval_faster

    # With a box beside its mask a detection's area would be the box's
    kept = ("image_id", "category_id", "score", "bbox" if kind == _BOXES else "segmentation")
    found = truth.loadRes([{name: one[name] for name in kept} for one in detections])
    evaluator = COCOeval_faster(truth, found, kind)
    evaluator.params.imgIds = sorted(image_ids)
    evaluator.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    numbers = [_defined(value) for value in np.asarray(evaluator.stats)[: len(NUMBERS)].tolist()]
    precision = np.asarray(evaluator.eval["precision"])  # (IoU, recall, category, area, detections)
    return CocoNumbers(**dict(zip(NUMBERS, numbers, strict=True))), precision[:, :, :, 0, -1]


def _by_category(
    images: DetectionImages, places: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None
) -> tuple[CategoryResult, ...]:
    counts = DetectionSubset(images, places).objects_of_labels()
    # the evaluator sorts the categories by their ids
    columns = np.argsort(np.argsort(images.category_ids))
    return tuple(
        CategoryResult(
            name,
            int(counts[label]),
            _mean(boxes[:, :, column]),
            _mean(boxes[0, :, column]),
            None if masks is None else _mean(masks[:, :, column]),
            None if masks is None else _mean(masks[0, :, column]),
        )
        for label, (name, column) in enumerate(zip(images.class_names, columns.tolist(), strict=True))
    )


def _mean(precision: np.ndarray) -> float | None:
    return float(precision.mean()) if (precision > -1).all() else None


def _mean_over_categories(precision: np.ndarray) -> np.ndarray:
    return precision[:, :, (precision > -1).all((0, 1))].mean(2)


def _defined(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else float(value)


def write_detections(path: Path, detections: Iterable[Detection]) -> None:
    """Write detections as COCO's evaluators read them: a JSON list, whole or not at all."""
    write_atomically(path, json.dumps(in_order(detections), separators=(",", ":")).encode())


def table(evaluation: DetectionEvaluation) -> str:
    """The twelve numbers as text, in percent, and the categories below."""
    columns = [("boxes", evaluation.boxes), ("masks", evaluation.masks)]
    shown = [(name, numbers) for name, numbers in columns if numbers is not None]
    lines = ["".join([f"{'':24}", *(f"{name:>8}" for name, _ in shown)])]
    lines += [
        "".join([f"{_TITLES[number]:24}", *(_percent(getattr(numbers, number)) for _, numbers in shown)])
        for number in NUMBERS
    ]
    width = max(24, *(text_width(category.name) + 2 for category in evaluation.categories))
    header = "".join([f"{'category':{width}}{'objects':>8}", *(f"{f'{name} AP':>10}" for name, _ in shown)])
    lines += ["", header]
    for category in evaluation.categories:
        values = [category.box_ap, category.mask_ap][: len(shown)]
        if category.num_objects:
            cells = "".join(f"{_percent(value):>10}" for value in values)
            lines.append(f"{left_aligned(category.name, width)}{category.num_objects:8}{cells}")
    return "\n".join(lines)


_TITLES = {
    "ap": "AP    IoU 0.50:0.95",
    "ap50": "AP50  IoU 0.50",
    "ap75": "AP75  IoU 0.75",
    "ap_small": "AP    small",
    "ap_medium": "AP    medium",
    "ap_large": "AP    large",
    "ar_1": "AR    1 detection",
    "ar_10": "AR    10 detections",
    "ar_100": "AR    100 detections",
    "ar_small": "AR    small",
    "ar_medium": "AR    medium",
    "ar_large": "AR    large",
}


def _percent(value: float | None) -> str:
    return f"{'–' if value is None else f'{100 * value:.1f}':>8}"
