"""What a detector finds on the images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from .annotations import DetectionImages
from .batches import DetectionBatch
from .evaluator import Detection, to_detections
from .exported import Canvas
from .model import Detector


@dataclass
class Found:
    """What one process has found.

    Attributes:
        detections: In the COCO format.
        indices: Places of the images it has seen.
        broken: Places of images that could not be read.
    """

    detections: list[Detection] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)


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
        found.broken += batch.broken
        if len(batch):
            indices = batch.indices.tolist()
            outputs = find(batch.to(device, non_blocking=True).inputs())
            found.detections += to_detections(images, indices, outputs)
            found.indices += indices
        after_batch()
    return found
