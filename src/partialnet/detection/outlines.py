"""Outlines of objects as COCO files write them, and the masks they mean at any image size.

An outline is a list of polygons ``[x, y, x, y, …]`` in pixels, or run lengths ``{"size": [height, width], "counts":
…}`` over the pixels column by column, as a list or compressed into a text.

Source: the COCO data format, https://cocodataset.org/#format-data; polygons are filled by the reference's own rule, so
that a mask in training covers the pixels that it covers in evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from partialnet.extras import require

#: Polygons, or run lengths with their image's size.
Outline = list[list[float]] | dict[str, Any]
#: Points farther from the origin, in pixels, are mistakes; to follow an edge to them would take memory without end.
_FARTHEST = 1e6


def mask_functions() -> ModuleType:
    """The evaluator's functions for masks.

    Raises:
        UserError: The package is not installed.
    """
    mask: ModuleType = require("faster_coco_eval.core.mask", "detection")
    return mask


def usable_polygons(polygons: Sequence[Any]) -> list[list[float]]:
    """Those with three or more points, all numbers finite and not far outside."""
    return [polygon for polygon in polygons if isinstance(polygon, list) and _usable(polygon)]


def _usable(polygon: list[Any]) -> bool:
    if len(polygon) < 6 or len(polygon) % 2:
        return False
    try:
        values = np.array(polygon)
    except (ValueError, OverflowError):  # lists of various lengths in it
        return False
    # NaN is not below anything
    return values.ndim == 1 and values.dtype.kind in "if" and bool(np.abs(values).max() <= _FARTHEST)


def usable_run_lengths(outline: Mapping[str, Any], height: int, width: int) -> bool:
    """Whether run lengths are whole, and of an image of this size, in pixels."""
    if outline.get("size") != [height, width]:
        return False
    try:
        counts = run_lengths(outline["counts"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return bool(len(counts)) and int(counts.min()) >= 0 and int(counts.sum()) == height * width


def run_lengths(counts: str | Sequence[int]) -> np.ndarray:
    """Numbers of pixels that are alternately outside and inside, (number of runs,), int64.

    In a text each number takes one or more characters of 5 bits, least first; a sixth bit says that more follow. From
    the fourth number on it is the difference to the last but one.

    Raises:
        ValueError: The text is no run lengths, or a number of the list is not whole.
        TypeError: ``counts`` is neither a text nor a list.
    """
    if not isinstance(counts, str):
        whole = [int(count) for count in counts]
        if whole != list(counts):  # parts of pixels, numbers as texts
            raise ValueError("not whole numbers")
        return np.array(whole, np.int64)
    characters = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if len(characters) and (characters.min() < 0 or characters.max() > 63 or characters[-1] & 32):
        raise ValueError("not a text of run lengths")
    last = np.flatnonzero(characters & 32 == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(characters)) - np.repeat(first, last - first + 1)
    if len(characters) and place.max() > 6:
        raise ValueError("a run of more than 35 bits")
    numbers = np.add.reduceat((characters & 31) << (5 * place), first) if len(last) else np.zeros(0, np.int64)
    # the fifth bit of a number's last character is its sign
    numbers -= ((characters[last] & 16) >> 4) << (5 * (last - first + 1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def outline_area(outline: Outline, height: int, width: int) -> float:
    """Number of pixels inside an outline, in an image of this size, in pixels."""
    return float(mask_functions().area(encoded(outline, height, width)))


def outline_box(outline: Outline) -> tuple[float, float, float, float]:
    """Left, top, right and bottom; of run lengths without any pixel 0, 0, 0 and 0."""
    if isinstance(outline, list):
        points = np.concatenate([np.array(polygon, float).reshape(-1, 2) for polygon in outline])
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return left, top, right, bottom
    left, top, width, height = mask_functions().toBbox(encoded(outline, *outline["size"])).tolist()
    return left, top, left + width, top + height


def encoded(outline: Outline, height: int, width: int) -> dict[str, Any]:
    """An outline in an image of this size, in pixels, as compressed run lengths, the form of detections."""
    functions = mask_functions()
    if isinstance(outline, list):
        return functions.merge(functions.frPyObjects(outline, height, width))
    if isinstance(outline["counts"], str):
        return {"size": outline["size"], "counts": outline["counts"].encode()}
    return functions.frPyObjects(outline, height, width)


def draw_masks(
    outlines: Sequence[Outline], from_size: tuple[int, int], to_size: tuple[int, int], mirrored: bool = False
) -> Tensor:
    """Masks of objects in an image that was resized, and mirrored left and right if so.

    Polygons are resized before they are filled, which is faster than the other way round and keeps their edges sharp.

    Args:
        outlines: Of the objects, in the image's own pixels.
        from_size: Height and width of the image that the outlines are for.
        to_size: Height and width of the masks.
        mirrored: Whether left and right change places.

    Returns:
        (number of outlines, height, width), uint8, 0 or 1.
    """
    functions = mask_functions()
    height, width = to_size
    masks = torch.zeros((len(outlines), height, width), dtype=torch.uint8)
    scale = np.array([width / from_size[1], height / from_size[0]])
    for mask, outline in zip(masks, outlines, strict=True):
        if isinstance(outline, list):
            scaled = [np.array(polygon, float).reshape(-1, 2) * scale for polygon in outline]
            if mirrored:
                scaled = [np.column_stack((width - points[:, 0], points[:, 1])) for points in scaled]
            _fill(mask, scaled)
        else:
            drawn = torch.from_numpy(np.ascontiguousarray(functions.decode(encoded(outline, *from_size))))
            resized = F.interpolate(drawn[None, None], (height, width), mode="nearest-exact")[0, 0]
            mask.copy_(resized.flip(1) if mirrored else resized)
    return masks


def _fill(mask: Tensor, polygons: Sequence[np.ndarray]) -> None:
    """Fill polygons, (points, 2) each, within the rectangle around them only: objects are small against images."""
    height, width = mask.shape
    points = np.concatenate(polygons)
    left, top = np.floor(points.min(0)).astype(int).clip(0, (width - 1, height - 1)).tolist()
    right, bottom = (np.ceil(points.max(0)).astype(int) + 1).clip((left + 1, top + 1), (width, height)).tolist()
    # The rule rounds corners to fifths of a pixel, towards 0. That is done before they are moved, by whole pixels, and
    # they are put where it changes them no more, so that the same pixels are filled but for ties along an edge.
    fifths = [np.trunc(5 * polygon + 0.5) - 5 * np.array((left, top)) for polygon in polygons]
    moved = [(np.where(corners < 0, corners - 0.9, corners) / 5).ravel().tolist() for corners in fifths]
    filled = mask_functions().decode(encoded(moved, bottom - top, right - left))
    mask[top:bottom, left:right] = torch.from_numpy(filled)
