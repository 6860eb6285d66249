"""What a detector finds on the images of a data set, and how good that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from tqdm import tqdm

from partialnet.images import UnreadableImage, none_readable

from .annotations import DetectionImages
from .batches import DetectionBatch, detection_eval_loader
from .checkpoint import DetectorCheckpoint
from .evaluator import Detection, DetectionEvaluation, evaluate, in_order, to_detections
from .exported import Canvas
from .model import Detector


@dataclass
class Found:
    """What one process has found.

    Attributes:
        detections: In the COCO format.
        indices: Places of the images it has seen.
        unreadable: Images that could not be read, by their place, with why.
    """

    detections: list[Detection] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)


@torch.no_grad()
def find_objects(
    network: nn.Module,
    images: DetectionImages,
    batches: Iterable[DetectionBatch],
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> Found:
    """Detections of a network in evaluation mode on batches of some images.

    Args:
        network: A ``Detector`` in evaluation mode, or an exported one, a ``Canvas``.
        images: What the batches are of.
        batches: Of ``detection_eval_loader``.
        device: Where the network is.
        after_batch: Called after each batch.
    """
    found, find = Found(), cast(Detector | Canvas, network).find
    for batch in batches:
        found.unreadable |= batch.unreadable
        if len(batch):
            indices = batch.indices.tolist()
            outputs = find(batch.to(device, non_blocking=True).inputs())
            found.detections += to_detections(images, indices, outputs)
            found.indices += indices
        after_batch()
    return found


@dataclass(frozen=True)
class EvaluatedDetector:
    """What a detector found on a data set, and how good it is.

    Attributes:
        evaluation: The COCO numbers.
        detections: In the COCO format, image by image.
        unreadable: Images that could not be read, or have another size than the file says; they do not count.
    """

    evaluation: DetectionEvaluation
    detections: list[Detection]
    unreadable: tuple[UnreadableImage, ...]


def evaluate_detector(
    detector: DetectorCheckpoint,
    images: DetectionImages,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    workers: int = 2,
    progress: bool = False,
) -> EvaluatedDetector:
    """The COCO numbers of a detector, and its detections.

    Args:
        detector: Also an exported one.
        images: With their objects, by the detector's categories.
        device: Where to compute.
        batch_size: Images in a step at most; the result does not depend on it.
        workers: Reading processes.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        UserError: No image can be read, or there is no object to find.
    """
    device = torch.device(device)
    batches = detection_eval_loader(
        images,
        detector.model.transform,
        batch_size=batch_size,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    network = detector.model.to(device).eval()
    bar = tqdm(batches, desc="detecting", unit="batch", leave=False, disable=None if progress else True)
    found = find_objects(network, images, bar, device)
    unreadable = tuple(UnreadableImage(images.name(index), why) for index, why in sorted(found.unreadable.items()))
    if not found.indices:
        raise none_readable(unreadable)
    return EvaluatedDetector(
        evaluate(images, found.detections, found.indices, detector.has_masks),
        in_order(found.detections),
        unreadable,
    )
