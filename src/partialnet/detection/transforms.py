"""What training does to an image and the objects on it: resizing, and mirroring left and right.

``torchvision.transforms.v2`` resizes and mirrors masks, not polygons: every object would be filled at the photograph's
own size first, and the masks, most of what there is in memory, resized. Here boxes and polygons are changed by
arithmetic, and what is left is filled once, in its final size.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .annotations import Instances
from .outlines import draw_masks
from .resizing import resize_image

#: Objects thinner than this after resizing, in pixels, are not learnt, as nothing can be seen of them.
MIN_BOX = 1.0


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W), uint8."""
    return _pixels(image).contiguous()


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W) with the colours of a pixel side by side in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def prepare(
    image: Image.Image,
    instances: Instances,
    size: tuple[int, int],
    to_size: tuple[int, int],
    mirrored: bool = False,
    with_masks: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its objects as torchvision's detectors learn them.

    Args:
        image: RGB; perhaps already smaller than ``size``.
        instances: The objects; crowds are left out, and those thinner than ``MIN_BOX`` afterwards.
        size: Height and width that the objects' pixels are counted in.
        to_size: Height and width of the result.
        mirrored: Whether left and right change places.
        with_masks: Whether masks are learnt, too.

    Returns:
        The image, (3, H, W), uint8, and its ``boxes``, left, top, right and bottom in pixels, (N, 4), float32,
        ``labels``, (N,), int64, from 1 on, and perhaps ``masks``, (N, H, W), uint8.
    """
    height, width = to_size
    # takes less than half of PIL's time for the same pixels
    pixels = resize_image(_pixels(image), to_size)
    if mirrored:
        pixels = pixels.flip(2)
    boxes = instances.boxes * np.tile((width / size[1], height / size[0]), 2)
    if mirrored:
        boxes = np.column_stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]))
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero(~instances.crowd & (sides.min(1, initial=np.inf) >= MIN_BOX))
    target = {"boxes": torch.from_numpy(boxes[kept]).float(), "labels": torch.from_numpy(instances.labels[kept])}
    if with_masks:
        target["masks"] = draw_masks([instances.outlines[index] for index in kept], size, to_size, mirrored)
    return pixels.contiguous(), target
