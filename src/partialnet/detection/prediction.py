"""Objects in photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from partialnet.errors import UserError
from partialnet.images import read_images

from .checkpoint import DetectorCheckpoint
from .drawing import DrawnObjects, draw_objects
from .masks import encode_box_masks
from .transforms import to_tensor


@dataclass(frozen=True)
class DetectedObject:
    """One object in a photograph.

    Attributes:
        category: Its name.
        label: Number of the category among the detector's, from 1.
        score: In [0, 1].
        box: Left, top, right and bottom in pixels of the photograph.
        mask: Run lengths in the COCO format, of the photograph's size; None if only boxes were learnt.
    """

    category: str
    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "category": self.category,
            "score": round(self.score, 4),
            "box": [round(side, 2) for side in self.box],
            "mask": self.mask,
        }


@dataclass(frozen=True)
class DetectedPhoto:
    """A photograph with the objects in it, the most certain first.

    Attributes:
        image: RGB.
        objects: What was found.
    """

    image: Image.Image
    objects: tuple[DetectedObject, ...]

    def draw(self) -> Image.Image:
        """The photograph with boxes, masks, names and scores."""
        boxes = np.array([found.box for found in self.objects], float).reshape(-1, 4)
        labels = [found.label for found in self.objects]
        captions = [f"{found.category} {found.score:.0%}" for found in self.objects]
        masks = [found.mask for found in self.objects if found.mask is not None]
        return draw_objects(self.image, DrawnObjects(boxes, labels, captions, masks))


def detect(
    detector: DetectorCheckpoint, paths: Sequence[Path], min_score: float = 0.5, device: torch.device | str = "cpu"
) -> Iterator[DetectedPhoto | UserError]:
    """The objects on each photograph, or why it cannot be read, in order.

    Args:
        detector: Also an exported one.
        paths: Image files.
        min_score: Objects of lower scores are left out.
        device: Where to compute.
    """
    network = detector.model.to(device).eval()
    names = tuple(detector.categories.values())
    for _, photo in read_images(paths):
        if isinstance(photo, UserError):
            yield photo
            continue
        with torch.no_grad():
            (output,) = network.find([to_tensor(photo).to(device).float().div_(255)])
        kept = output["scores"] >= min_score
        found = {name: values[kept].cpu() for name, values in output.items()}
        masks: list[dict[str, Any]] | list[None] = [None] * len(found["boxes"])
        if detector.has_masks:
            masks = encode_box_masks(found["box_masks"], found["boxes"], (photo.height, photo.width))
        labels, scores, boxes = (found[name].tolist() for name in ("labels", "scores", "boxes"))
        yield DetectedPhoto(
            photo,
            tuple(
                DetectedObject(names[label - 1], label, score, (box[0], box[1], box[2], box[3]), mask)
                for label, score, box, mask in zip(labels, scores, boxes, masks, strict=True)
            ),
        )
