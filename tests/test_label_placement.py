"""Labels cover neither each other, nor points, nor leave the picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from partialnet.bench.label_placement import Label, Placement, place_labels

BOUNDS = (0.0, 0.0, 1000.0, 700.0)


def overlap(a: Placement, b: Placement, size_a: tuple[float, float], size_b: tuple[float, float]) -> bool:
    return all(abs(a.center[axis] - b.center[axis]) < (size_a[axis] + size_b[axis]) / 2 - 1e-9 for axis in range(2))


@pytest.mark.parametrize("seed", range(4))
def test_no_overlaps_among_fifty_random_points(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in random.uniform((50, 50), (950, 650), (50, 2))]
    labels = [Label(point, (float(random.uniform(20, 90)), 16)) for point in points]
    placements = place_labels(labels, points, [], BOUNDS)
    for (label, one), (other_label, other) in itertools.combinations(zip(labels, placements, strict=True), 2):
        assert not overlap(one, other, label.size, other_label.size)
    for label, placement in zip(labels, placements, strict=True):
        for axis in range(2):
            assert BOUNDS[axis] <= placement.center[axis] - label.size[axis] / 2
            assert placement.center[axis] + label.size[axis] / 2 <= BOUNDS[axis + 2]
        for point in points:
            assert not all(abs(placement.center[axis] - point[axis]) < label.size[axis] / 2 for axis in range(2))


def test_alone_a_label_stands_right_of_its_point() -> None:
    (placement,) = place_labels([Label((500, 300), (40, 10))], [(500, 300)], [], BOUNDS, gap=10)
    assert placement == Placement((530, 300), needs_leader=False)


def test_at_the_right_edge_it_goes_elsewhere() -> None:
    (placement,) = place_labels([Label((990, 300), (40, 10))], [(990, 300)], [], BOUNDS)
    assert placement.center[0] + 20 <= 1000


def test_a_line_is_left_free() -> None:
    label = Label((500, 300), (40, 10))
    (placement,) = place_labels([label], [(500, 300)], [(500, 300, 900, 300)], BOUNDS)
    x, y = placement.center
    assert abs(y - 300) >= 5 or x < 500


def test_many_labels_of_one_point_get_leader_lines() -> None:
    labels = [Label((500, 300), (60, 14))] * 14
    placements = place_labels(labels, [(500, 300)], [], BOUNDS)
    assert not any(overlap(one, other, (60, 14), (60, 14)) for one, other in itertools.combinations(placements, 2))
    leaders = [placement for placement in placements if placement.needs_leader]
    assert leaders

    def edge_distance(placement: Placement) -> float:
        return max(abs(placement.center[0] - 500) - 30, abs(placement.center[1] - 300) - 7)

    assert min(map(edge_distance, leaders)) > 15  # no line where the label touches its point


def test_the_same_picture_every_time() -> None:
    labels = [Label((100.0 + 7 * number, 100), (50, 12)) for number in range(12)]
    points = [label.anchor for label in labels]
    assert place_labels(labels, points, [], BOUNDS) == place_labels(labels, points, [], BOUNDS)
    assert place_labels([], [], [], BOUNDS) == []
