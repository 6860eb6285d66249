"""Masks made around their boxes only are torchvision's, pixel by pixel and run by run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from partialnet.detection import masks as detection_masks
from partialnet.detection.masks import MaskWindow, encode_box_masks, encode_masks, paste_windows

Edges = tuple[float, float, float, float]
sides = st.integers(1, 70)
#: Where an edge of a box is, in sides of the image.
place = st.floats(-0.375, 1.375, width=32)
four_edges = st.tuples(place, place, place, place)


def whole(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """By torchvision, (N, H, W), bool."""
    return paste_masks_in_image(masks, boxes, size)[:, 0] > 0.5


def some_masks(number: int, seed: int) -> Tensor:
    """Noise in some grains, (N, 1, 28, 28); the first is empty and the second full."""
    generator = torch.Generator().manual_seed(seed)
    grains = [torch.rand(1, 1, side, side, generator=generator) for side in (2, 5, 28, 28, 9)[:number]]
    grains[0].zero_()
    grains[1].fill_(1)
    return torch.cat([torch.nn.functional.interpolate(grain, (28, 28)) for grain in grains])


def some_boxes(edges: list[Edges], height: int, width: int) -> Tensor:
    """Boxes that touch the image at least: torchvision's pasting stops at others."""
    size = torch.tensor([width, height])
    corners = torch.tensor(edges).reshape(-1, 2, 2) * size
    return torch.cat((corners.amin(1).minimum(size), corners.amax(1).clamp(min=0)), 1)


@given(height=sides, width=sides, edges=st.lists(four_edges, min_size=5, max_size=5))
@settings(deadline=None, max_examples=150)
def test_run_lengths_are_those_of_the_whole_image(height: int, width: int, edges: list[Edges]) -> None:
    """Boxes inside, over any edges, and as large as the image, down to images of one pixel."""
    boxes = some_boxes(edges, height, width)
    boxes[-1] = torch.tensor([0, 0, width, height])
    masks = some_masks(len(boxes), height * width)
    expected = encode_masks(whole(masks, boxes, (height, width)))
    assert encode_box_masks(masks, boxes, (height, width)) == expected


def test_a_box_beside_the_image_has_an_empty_mask() -> None:
    boxes = torch.tensor([[-30.0, 2, -9, 8], [2.0, -30, 8, -9], [50.0, 2, 60, 8], [2.0, 50, 8, 60]])
    empty = encode_masks(torch.zeros(1, 20, 30, dtype=torch.bool))
    assert encode_box_masks(torch.ones(4, 1, 28, 28), boxes, (20, 30)) == 4 * empty
    assert encode_box_masks(torch.ones(0, 1, 28, 28), torch.zeros(0, 4), (20, 30)) == []


def test_only_the_pixels_around_a_box_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pasted = []
    paste = detection_masks.paste_mask_in_image

    def counting(mask: Tensor, box: list[int], height: int, width: int) -> Tensor:
        pasted.append(height * width)
        return paste(mask, box, height, width)

    monkeypatch.setattr(detection_masks, "paste_mask_in_image", counting)
    boxes = torch.tensor([[100.0, 100, 300, 260], [3900.0, 2900, 4000, 3000]])
    found = encode_box_masks(torch.ones(2, 1, 28, 28), boxes, (3000, 4000))
    assert [one["size"] for one in found] == 2 * [[3000, 4000]]
    assert pasted[0] < 1.2 * 200 * 160
    assert pasted[1] < 1.2 * 100 * 100


@given(edges=st.lists(four_edges, min_size=2, max_size=2), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_overlaps_are_those_of_whole_masks(edges: list[Edges], seed: int) -> None:
    boxes = some_boxes(edges, 40, 60)
    masks = some_masks(5, seed)[[1 + seed % 2, 3]]
    first, second = whole(masks, boxes, (40, 60))
    union = int((first | second).sum())
    expected = int((first & second).sum()) / union if union else 1.0
    one, other = paste_windows(masks, boxes, (40, 60))
    assert one.iou(other) == other.iou(one) == expected


def test_overlaps_by_hand() -> None:
    def window(left: int, top: int, height: int, width: int) -> MaskWindow:
        return MaskWindow(left, top, np.ones((height, width), bool))

    empty = MaskWindow(0, 0, np.zeros((0, 0), bool))
    assert window(2, 3, 4, 5).iou(window(2, 3, 4, 5)) == 1
    assert window(0, 0, 4, 4).iou(window(2, 2, 4, 4)) == pytest.approx(4 / 28)
    assert window(0, 0, 4, 4).iou(window(4, 0, 4, 4)) == 0
    assert empty.iou(window(0, 0, 2, 2)) == 0
    assert empty.iou(empty) == 1
