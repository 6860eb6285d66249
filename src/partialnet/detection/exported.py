"""Detectors in other runtimes, called like torchvision's: onnxruntime and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from partialnet.checkpoint.stored_network import using_configuration
from partialnet.deploy.runtimes import open_exported

from .checkpoint import DetectorCheckpoint, parse_categories
from .resizing import DetectorTransform, padded_size, resize_image, resized_size

#: What a graph takes: a normalised canvas, (1, 3, H, W), and height and width of the image in its upper left corner,
#: (2,), int64, as nothing is to be found beside it.
INPUTS = ("images", "image_size")
#: What it gives: boxes, (N, 4), xyxy pixels; labels, (N,), from 1 on; scores, (N,); masks, (N, S, S), of Mask R-CNN
OUTPUTS = ("boxes", "labels", "scores", "masks")


class Canvas(nn.Module):
    """Puts images onto a canvas, and detections back, around a network that does neither.

    Args:
        run: Maps ``INPUTS`` to ``OUTPUTS``.
        size: Height and width of the canvas, in pixels; None takes for each image the smallest that holds it, as
            PyTorch does.
        transform: Normalisation, and the sides that images are resized to where the canvas has room.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Tensor], Sequence[Tensor]],
        size: tuple[int, int] | None,
        transform: DetectorTransform,
    ) -> None:
        super().__init__()
        self.run = run
        self.size = size
        self.transform = transform

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """RGB images, (3, H, W) in [0, 1] each, to what torchvision's detectors answer in evaluation."""
        found = self.find(images)
        for image, one in zip(images, found, strict=True):
            if "box_masks" in one:
                size = (int(image.shape[-2]), int(image.shape[-1]))
                one["masks"] = paste_masks_in_image(one.pop("box_masks"), one["boxes"], size)
        return found

    @torch.no_grad()
    def find(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The same with ``box_masks`` in the place of ``masks``; see ``Detector.find``."""
        return [self._detect(image) for image in images]

    def place(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """An RGB image, (3, H, W) in [0, 1], normalised on its canvas, (1, 3, H, W), and its height and width there."""
        resized = resized_size((int(image.shape[-2]), int(image.shape[-1])), self.transform.img_size, self.size)
        image = self.transform.normalize(resize_image(image, resized))
        height, width = self.size or padded_size(resized, self.transform.size_divisible)
        return F.pad(image[None], (0, width - resized[1], 0, height - resized[0])), resized

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        canvas, resized = self.place(image)
        boxes, labels, scores, *masks = self.run(canvas, torch.tensor(resized))
        boxes = resize_boxes(boxes, list(resized), list(image.shape[-2:]))
        found = {"boxes": boxes, "labels": labels, "scores": scores}
        return {**found, "box_masks": masks[0][:, None]} if masks else found


def load_exported_detector(path: str | Path) -> DetectorCheckpoint:
    """Open an exported ``.onnx`` or OpenVINO ``.xml`` file of a detector; its model is called like torchvision's.

    Raises:
        UserError: The file is damaged, was not exported by ``partialnet detect export``, or its runtime is missing.
    """
    exported = open_exported(path, "detection")
    config = exported.config
    with using_configuration(path):
        canvas = None if config["canvas"] is None else (int(config["canvas"][0]), int(config["canvas"][1]))
        short, long = config["img_size"]
        transform = DetectorTransform(
            (int(short), int(long)), config["mean"], config["std"], int(config["size_divisible"])
        )
        categories = parse_categories(config["categories"])
        backbone, settings = config["architecture"], config["settings"]

    def run(canvas: Tensor, image_size: Tensor) -> list[Tensor]:
        outputs = exported.run(np.ascontiguousarray(canvas.detach().float().cpu().numpy()), image_size.numpy())
        return [torch.from_numpy(np.array(output)) for output in outputs]

    model = Canvas(run, canvas, transform).eval()
    return DetectorCheckpoint(model, backbone, categories, settings, True, dict(config.get("training") or {}))


class CanvasGraph(nn.Module):
    """A detector from a normalised canvas on to its detections as tensors; see ``INPUTS`` and ``OUTPUTS``.

    Args:
        detector: A ``Detector`` in evaluation mode.

    Attributes:
        outputs: Names of what it gives, among ``OUTPUTS``.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.outputs = OUTPUTS if detector.has_masks else OUTPUTS[:-1]
        self.backbone, self.rpn, self.roi_heads = detector.backbone, detector.rpn, detector.roi_heads
        self.eval()

    def forward(self, canvas: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """Boxes, labels, scores and perhaps masks, (N, S, S), in the part of the canvas that the image takes."""
        # numbers that are traced stay tensors
        sizes: Any = [tuple(image_size.unbind() if torch.jit.is_tracing() else image_size.tolist())]
        features = self.backbone(canvas)
        proposals, _ = self.rpn(ImageList(canvas, sizes), features)
        ((found,), _) = self.roi_heads(features, proposals, sizes)
        if "masks" in found:
            found["masks"] = found["masks"][:, 0]
        return tuple(found[name] for name in self.outputs)
