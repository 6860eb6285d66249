"""Masks of detections: from the few values in a box to pixels of the image, and to run lengths.

The pixels are those of torchvision's ``paste_masks_in_image``, but made only around the box: objects are small against
a camera's photograph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

from .outlines import encoded, mask_functions

#: Where a mask's values, in [0, 1], are above this, the object is.
MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class MaskWindow:
    """A mask in the part of its image outside of which it is empty.

    Attributes:
        left: Columns of the image left of it.
        top: Rows above it.
        pixels: Where the object is, (h, w), bool.
    """

    left: int
    top: int
    pixels: np.ndarray

    def iou(self, other: MaskWindow) -> float:
        """Pixels of both masks by those of either; of two empty masks 1."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        bottom, right = (
            min(here + mine, there + others)
            for here, there, mine, others in zip(
                (self.top, self.left), (other.top, other.left), self.pixels.shape, other.pixels.shape, strict=True
            )
        )
        common = 0
        if left < right and top < bottom:
            mine, others = (
                one.pixels[top - one.top : bottom - one.top, left - one.left : right - one.left]
                for one in (self, other)
            )
            common = int((mine & others).sum())
        union = int(self.pixels.sum()) + int(other.pixels.sum()) - common
        return common / union if union else 1.0

    def run_lengths(self, size: tuple[int, int]) -> list[int]:
        """Numbers of pixels alternately outside and inside, column by column of the whole image, (H, W)."""
        height, width = size
        # between rows of zeros every run of a column has a first pixel and one behind its last
        columns = np.pad(self.pixels.T.astype(np.int8), ((0, 0), (1, 1)))
        column, row = np.diff(columns, axis=1).nonzero()
        places, times = np.unique((self.left + column) * height + self.top + row, return_counts=True)
        # a run down to the image's lower edge goes on at the top of the next column, if there is one
        changes = places[(times == 1) & (places < height * width)]
        return np.diff(changes, prepend=0, append=height * width).tolist()


def paste_windows(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[MaskWindow]:
    """Masks of boxes in the pixels of their image, one after the other.

    Args:
        masks: (N, 1, S, S), in [0, 1].
        boxes: Left, top, right, bottom in pixels of the image, (N, 4); they may reach beyond it.
        size: Height and width of the image.
    """
    height, width = size
    padded, scale = expand_masks(masks.detach().float().cpu(), padding=1)
    corners = expand_boxes(boxes.detach().cpu(), scale).to(torch.int64)
    for mask, (first_column, first_row, last_column, last_row) in zip(padded, corners.tolist(), strict=True):
        left, top = max(first_column, 0), max(first_row, 0)
        right, bottom = min(last_column + 1, width), min(last_row + 1, height)
        if left >= right or top >= bottom:
            yield MaskWindow(0, 0, np.zeros((0, 0), bool))
            continue
        box = [first_column - left, first_row - top, last_column - left, last_row - top]
        pasted = paste_mask_in_image(mask[0], box, bottom - top, right - left)
        yield MaskWindow(left, top, (pasted > MASK_THRESHOLD).numpy())


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Masks, (N, H, W), bool, as compressed run lengths in texts."""
    if not len(masks):
        return []
    # the encoder wants (H, W, N) with each mask column by column
    columns = masks.transpose(1, 2).contiguous().to(torch.uint8).cpu().numpy().T
    return [_in_text(one) for one in mask_functions().encode(columns)]


def encode_box_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Masks of boxes as run lengths of the whole image, the form of detections.

    Args:
        masks: (N, 1, S, S), in [0, 1].
        boxes: Left, top, right, bottom in pixels of the image, (N, 4); they may reach beyond it.
        size: Height and width of the image.
    """
    height, width = size
    windows = paste_windows(masks, boxes, size)
    return [
        _in_text(encoded({"size": [height, width], "counts": window.run_lengths(size)}, height, width))
        for window in windows
    ]


def _in_text(run_lengths: dict[str, Any]) -> dict[str, Any]:
    counts = run_lengths["counts"]
    size = [int(side) for side in run_lengths["size"]]
    return {"size": size, "counts": counts.decode() if isinstance(counts, bytes) else counts}
