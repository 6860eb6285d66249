"""Put labels beside their points so that they cover no other labels, points or lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: directions that are tried around a point, in degrees; the earlier is preferred where two are as good
_DIRECTIONS = (0, 90, 180, 270, 45, 135, 315, 225, 22, 68, 112, 158, 202, 248, 292, 338)
#: gaps between a point and its label, in units of ``gap``
_DISTANCES = (1.0, 1.7, 2.5, 3.5, 5.0, 7.0, 9.5, 12.5, 16.0)
#: from this distance on (an index) a line joins label and point
_LEADER_FROM = 2
_SWEEPS = 12
#: orders in which labels choose, of which the best result is taken
_ORDERS = 6


@dataclass(frozen=True)
class Label:
    """A text to place. All lengths have one unit, such as pixels, and y grows upwards.

    Attributes:
        anchor: The point that it belongs to, (x, y).
        size: Width and height of the text.
    """

    anchor: tuple[float, float]
    size: tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """Where a label goes.

    Attributes:
        center: Its centre, (x, y).
        needs_leader: Whether it lies so far off that a leader line should join it to its point.
    """

    center: tuple[float, float]
    needs_leader: bool


def place_labels(
    labels: Sequence[Label],
    points: Sequence[tuple[float, float]],
    segments: Sequence[tuple[float, float, float, float]],
    bounds: tuple[float, float, float, float],
    gap: float = 10.0,
) -> list[Placement]:
    """Choose a place for each label among candidates around its point.

    Labels choose in turn what costs least, and again while that lowers the sum; the best of several orders is taken.
    Costs, from dear to cheap: leaving the bounds, overlapping a label, a leader line across a label, covering a point,
    covering a line, distance. Nothing is random. In a picture with no room left overlaps remain; a larger one helps.

    Args:
        labels: What to place; earlier ones choose first, in the first order.
        points: Centres of all markers, (x, y).
        segments: Lines to keep clear, (x0, y0, x1, y1); one that is listed twice counts twice.
        bounds: Left, bottom, right and top of the space.
        gap: Distance between a marker's centre and the nearest edge of its label at the closest.

    Returns:
        One placement for each label.
    """
    if not labels:
        return []
    search = _Search(
        labels, np.array(points, float).reshape(-1, 2), np.array(segments, float).reshape(-1, 4), bounds, gap
    )
    order = np.arange(len(labels))
    random = np.random.default_rng(0)
    results = [search.run(order if turn == 0 else random.permutation(order)) for turn in range(_ORDERS)]
    index = min(results, key=lambda result: result[0])[1]
    return [
        Placement((float(x), float(y)), bool(best >= _LEADER_FROM * len(_DIRECTIONS)))
        for best, (x, y) in ((best, search.centers[number, best]) for number, best in enumerate(index))
    ]


class _Search:
    """Candidates of every label and what they cost, alone and with the others."""

    def __init__(
        self,
        labels: Sequence[Label],
        points: np.ndarray,
        segments: np.ndarray,
        bounds: tuple[float, float, float, float],
        gap: float,
    ) -> None:
        self.sizes = np.array([label.size for label in labels], float)  # (N, 2)
        self.anchors = np.array([label.anchor for label in labels], float)
        self.centers = np.stack([_candidates(label, gap) for label in labels])  # (N, K, 2)
        steps = np.arange(self.centers.shape[1])
        self.far = steps >= _LEADER_FROM * len(_DIRECTIONS)
        distance = 1.6 * np.repeat(_DISTANCES, len(_DIRECTIONS)) + 0.02 * (steps % len(_DIRECTIONS)) + 2.0 * self.far
        self.alone = np.stack(
            [
                distance
                + _outside(centers, size, bounds)
                + _covering(centers, size, points, segments)
                + 15.0 * self.far * _led_across(anchor, centers, points, gap)
                for anchor, centers, size in zip(self.anchors, self.centers, self.sizes, strict=True)
            ]
        )

    def run(self, order: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum of the costs, and the candidate that each label took."""
        index = np.full(len(order), -1)
        for _ in range(_SWEEPS):
            before = index.copy()
            for number in order:
                index[number] = np.argmin(self._cost(number, index))
            if (index == before).all():
                break
        return sum(float(self._cost(number, index)[index[number]]) for number in order), index

    def _cost(self, number: int, index: np.ndarray) -> np.ndarray:
        """Cost of each candidate of one label while the others stay, (K,)."""
        others = np.flatnonzero((index >= 0) & (np.arange(len(index)) != number))
        placed = self.centers[others, index[others]]
        centers, half = self.centers[number], self.sizes[number] / 2
        cost = self.alone[number] + _overlaps(centers, self.sizes[number], placed, self.sizes[others])
        own = np.concatenate([np.broadcast_to(self.anchors[number], centers.shape), centers], 1)
        cost = cost + 40.0 * self.far * (_inside(own, placed, self.sizes[others] / 2) > 0).sum(1)
        leading = self.far[index[others]]
        lines = np.concatenate([self.anchors[others][leading], placed[leading]], 1)
        return cost + 40.0 * (_inside(lines, centers, half) > 0).sum(0)


def _candidates(label: Label, gap: float) -> np.ndarray:
    """Centres, (distances · directions, 2): the edge nearest to the point keeps the distance from it."""
    angles = np.deg2rad(_DIRECTIONS)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    half = np.array(label.size) / 2
    return np.concatenate([np.array(label.anchor) + directions * (half + distance * gap) for distance in _DISTANCES])


def _outside(centers: np.ndarray, size: np.ndarray, bounds: tuple[float, float, float, float]) -> np.ndarray:
    low, high = np.array(bounds[:2]), np.array(bounds[2:])
    excess = np.maximum(low - (centers - size / 2), 0) + np.maximum(centers + size / 2 - high, 0)
    return 1000.0 * (excess.sum(1) > 0)


def _overlaps(centers: np.ndarray, size: np.ndarray, others: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Cost of overlapping other labels, (K,): at least 100 for each, more for a larger share."""
    apart = np.abs(centers[:, None] - others[None])  # (K, M, 2)
    depth = np.maximum((size + sizes[None]) / 2 - apart, 0)
    share = depth.prod(2) / np.minimum(size.prod(), sizes.prod(1))
    return np.where(share > 0, 100 + 100 * share, 0).sum(1)


def _covering(centers: np.ndarray, size: np.ndarray, points: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Cost of covering markers and lines, (K,)."""
    apart = np.abs(centers[:, None] - points[None]) - size / 2  # (K, P, 2)
    covered = (apart < 0.35 * size[1]).all(2).sum(1)
    crossed = _inside(segments, centers, size / 2)
    return 30.0 * covered + (3.0 * (crossed > 0) + 4.0 * crossed / size[1]).sum(0)


def _led_across(anchor: np.ndarray, centers: np.ndarray, points: np.ndarray, gap: float) -> np.ndarray:
    """Number of markers that a leader line to each candidate would cross, (K,)."""
    others = points[np.abs(points - anchor).max(1) > gap]
    leaders = np.concatenate([np.broadcast_to(anchor, centers.shape), centers], 1)
    return (_inside(leaders, others, np.full(2, gap / 2)) > 0).sum(1)


def _inside(lines: np.ndarray, centers: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Length of each line, (S, 4), inside each box, (K, 2) with half sizes (2,) or (K, 2): (S, K)."""
    start, end = lines[:, None, :2], lines[:, None, 2:]
    delta = np.where(end == start, 1e-9, end - start)
    near = (centers - half - start) / delta  # (S, K, 2)
    far = (centers + half - start) / delta
    enter = np.minimum(near, far).max(2).clip(0, 1)
    leave = np.maximum(near, far).min(2).clip(0, 1)
    return np.maximum(leave - enter, 0) * np.linalg.norm(end - start, axis=2)
