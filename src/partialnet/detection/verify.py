"""Compare what an exported detector finds with what the original finds on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import box_iou

from .evaluator import CocoNumbers, DetectionEvaluation
from .masks import paste_windows

#: Two detections of one category are the same from this IoU of their boxes on.
SAME_IOU = 0.5
#: With a smaller share of detections found again, the command warns.
LEAST_MATCHED = 0.99
#: Detections from this score on are those that count in lower precisions; `detect predict` draws them.
SURE_SCORE = 0.5


@dataclass(frozen=True)
class Parity:
    """How far two detectors' answers to the same images are apart.

    Attributes:
        num_images: Images compared.
        original: Detections of the first.
        exported: Detections of the second.
        matched: Pairs of one from each with the same category and boxes of an IoU of at least ``SAME_IOU``.
        max_box_error: Largest difference of a box's side in matched pairs, in pixels of the image; None without pairs.
        max_score_error: Largest difference of scores in matched pairs.
        min_mask_iou: Smallest IoU of the masks, cut at 0.5, in matched pairs; of two empty masks 1; None without masks.
        max_unmatched_score: Highest score of a detection without partner; None if all have one.
        sure: Detections of both that score at least ``SURE_SCORE``.
        sure_matched: Those of them that have a partner, whatever it scores.
    """

    num_images: int
    original: int
    exported: int
    matched: int
    max_box_error: float | None
    max_score_error: float | None
    min_mask_iou: float | None
    max_unmatched_score: float | None
    sure: int
    sure_matched: int

    @property
    def share(self) -> float:
        """Share, in [0, 1], of all detections of both that have a partner; 1 where there are none."""
        total = self.original + self.exported
        return 2 * self.matched / total if total else 1.0

    @property
    def sure_share(self) -> float:
        """Share, in [0, 1], of detections from ``SURE_SCORE`` on that have a partner; of all where none score that."""
        return self.sure_matched / self.sure if self.sure else self.share


@dataclass(frozen=True)
class ComparedAP:
    """Average precision over IoU 0.50 to 0.95, in [0, 1], of two detectors on the same objects.

    Attributes:
        original: Of the detector in PyTorch.
        exported: Of the exported detector.
        difference: ``exported - original``.
    """

    original: float
    exported: float
    difference: float


@dataclass(frozen=True)
class Accuracy:
    """How well the original and the exported detector find the objects of labelled images.

    Attributes:
        num_images: Images that could be read.
        num_objects: Objects on them, without crowds.
        boxes: AP of boxes.
        masks: AP of masks; None where the images or the detector have none.
        held_out: Whether none of the images was used for calibration.
    """

    num_images: int
    num_objects: int
    boxes: ComparedAP
    masks: ComparedAP | None
    held_out: bool


def compare_detections(
    original: Sequence[dict[str, Tensor]], exported: Sequence[dict[str, Tensor]], sizes: Sequence[tuple[int, int]]
) -> Parity:
    """Pair the detections of two detectors, best scores first, and measure how far the pairs are apart.

    Args:
        original: For each image what ``Detector.find`` answers.
        exported: The same of the other detector.
        sizes: Height and width of each image.
    """
    box_errors: list[float] = []
    score_errors: list[float] = []
    mask_ious: list[float] = []
    unmatched: list[float] = []
    sure = sure_matched = 0
    for first, second, size in zip(original, exported, sizes, strict=True):
        pairs = _pairs(first, second)
        for i, j in pairs:
            box_errors.append(float((first["boxes"][i] - second["boxes"][j]).abs().max()))
            score_errors.append(abs(float(first["scores"][i] - second["scores"][j])))
            if "box_masks" in first:
                one, other = (
                    next(paste_windows(found["box_masks"][k, None], found["boxes"][k, None], size))
                    for found, k in ((first, i), (second, j))
                )
                mask_ious.append(one.iou(other))
        for found, place in ((first, 0), (second, 1)):
            partners = {pair[place] for pair in pairs}
            unmatched += [float(score) for k, score in enumerate(found["scores"]) if k not in partners]
            above = {k for k, score in enumerate(found["scores"].tolist()) if score >= SURE_SCORE}
            sure, sure_matched = sure + len(above), sure_matched + len(above & partners)
    return Parity(
        len(original),
        sum(len(found["scores"]) for found in original),
        sum(len(found["scores"]) for found in exported),
        len(box_errors),
        max(box_errors, default=None),
        max(score_errors, default=None),
        min(mask_ious, default=None),
        max(unmatched, default=None),
        sure,
        sure_matched,
    )


def _pairs(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[tuple[int, int]]:
    iou = box_iou(first["boxes"], second["boxes"])
    iou[first["labels"][:, None] != second["labels"][None]] = 0
    pairs = []
    for i in first["scores"].argsort(descending=True).tolist():
        if iou.shape[1] and float(iou[i].max()) >= SAME_IOU:
            j = int(iou[i].argmax())
            pairs.append((i, j))
            iou[:, j] = 0
    return pairs


def compare_accuracy(original: DetectionEvaluation, exported: DetectionEvaluation, held_out: bool) -> Accuracy:
    """AP of two detectors on the same images.

    Args:
        original: Of the detector in PyTorch.
        exported: Of the exported detector.
        held_out: Whether none of the images was used for calibration.
    """
    return Accuracy(
        original.num_images,
        original.num_objects,
        _compared(original.boxes, exported.boxes),
        _compared(original.masks, exported.masks) if original.masks and exported.masks else None,
        held_out,
    )


def _compared(original: CocoNumbers, exported: CocoNumbers) -> ComparedAP:
    first, second = original.ap or 0.0, exported.ap or 0.0  # None only without objects
    return ComparedAP(first, second, second - first)
