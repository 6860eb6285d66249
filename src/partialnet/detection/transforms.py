"""What training does to an image and the objects on it: resizing, and mirroring left and right.

``torchvision.transforms.v2`` resizes and mirrors masks, not polygons: every object would be filled at the photograph's
own size first, and the masks, most of what there is in memory, resized. Here boxes and polygons are changed by
arithmetic, and what is left is filled once, in its final size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .annotations import Instances
from .outlines import draw_masks

#: Shorter and at most longer side of an image, in pixels (paper, Table 7).
IMG_SIZE = (800, 1333)
#: Objects that are thinner after resizing, in pixels, are not learnt: nothing of them is to be seen.
MIN_BOX = 1.0


def resized_size(size: tuple[int, int], img_size: tuple[int, int] = IMG_SIZE) -> tuple[int, int]:
    """Height and width that torchvision's detectors resize an image of ``size`` to.

    Args:
        size: Height and width.
        img_size: Shorter side, and at most longer side.
    """
    # torchvision's own operations, as their rounding decides whether a side comes to 799 or 800 pixels
    scale = min(img_size[0] / min(size), img_size[1] / max(size))
    height, width = (max(1, math.floor(float(side) * scale)) for side in size)
    return height, width


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W), uint8."""
    return _pixels(image).contiguous()


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W) with the colours of a pixel side by side in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def prepare(
    image: Image.Image, instances: Instances, size: tuple[int, int], to_size: tuple[int, int], mirrored: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its objects as torchvision's detectors learn them.

    Args:
        image: RGB; perhaps already smaller than ``size``.
        instances: The objects; crowds are left out, and what is thinner than ``MIN_BOX`` afterwards.
        size: Height and width that the objects' pixels are counted in.
        to_size: Height and width of the result.
        mirrored: Whether left and right change places.

    Returns:
        The image, (3, H, W), uint8, and its ``boxes``, left, top, right and bottom in pixels, (N, 4), float32,
        ``labels``, (N,), int64, from 1 on, and ``masks``, (N, H, W), uint8.
    """
    height, width = to_size
    pixels = _pixels(image)[None]
    if to_size != tuple(pixels.shape[2:]):
        # takes less than half of PIL's time for the same pixels
        pixels = F.interpolate(pixels, to_size, mode="bilinear", antialias=True)
    pixels = pixels[0].flip(2) if mirrored else pixels[0]
    boxes = instances.boxes * np.tile((width / size[1], height / size[0]), 2)
    if mirrored:
        boxes = np.column_stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]))
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero(~instances.crowd & (sides.min(1, initial=np.inf) >= MIN_BOX))
    masks = draw_masks([instances.outlines[index] for index in kept], size, to_size, mirrored)
    return pixels.contiguous(), {
        "boxes": torch.from_numpy(boxes[kept]).float(),
        "labels": torch.from_numpy(instances.labels[kept]),
        "masks": masks,
    }
