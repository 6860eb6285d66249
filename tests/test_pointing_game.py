"""The pointing game: does a map's peak lie in a box of its class?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from explained_networks import NAMES, network, red_finder, with_square
from PIL import Image

from partialnet.errors import UserError
from partialnet.explain import Explainer, play_pointing_game, read_boxes
from partialnet.explain.boxes import _covered, match_categories


def coco(path: Path, entries: list[tuple[str, tuple[int, int], str, list[float]]]) -> Path:
    categories = sorted({entry[2] for entry in entries})
    names = sorted({(entry[0], entry[1]) for entry in entries})
    content = {
        "categories": [{"id": index + 7, "name": name} for index, name in enumerate(categories)],
        "images": [
            {"id": index, "file_name": name, "width": size[0], "height": size[1]}
            for index, (name, size) in enumerate(names)
        ],
        "annotations": [
            {
                "image_id": names.index((name, size)),
                "category_id": categories.index(category) + 7,
                "bbox": box,
                "iscrowd": 0,
            }
            for name, size, category, box in entries
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_the_pointing_game_counts_hits_misses_and_chance(tmp_path: Path) -> None:
    size = (128, 128)
    with_square(8, 8, 32, size).save(tmp_path / "hit.png")
    with_square(80, 80, 32, size).save(tmp_path / "miss.png")
    Image.new("RGB", size, "blue").save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with_square(0, 0, 8, (64, 64)).save(tmp_path / "resized.png")
    with_square(0, 0, 30, (256, 128)).save(tmp_path / "cropped.png")
    with_square(0, 0, 30, size).save(tmp_path / "unlisted.png")
    file = coco(
        tmp_path / "instances.json",
        [
            ("hit.png", size, "Red", [8, 8, 32, 32]),
            ("hit.png", size, "blue", [0, 0, 4, 4]),
            ("miss.png", size, "Red", [8, 8, 64, 64]),
            ("empty.png", size, "Red", [0, 0, 128, 128]),
            ("broken.png", size, "Red", [0, 0, 9, 9]),
            ("resized.png", size, "Red", [0, 0, 9, 9]),
            ("cropped.png", (256, 128), "Red", [0, 0, 30, 30]),
        ],
    )
    explainer, boxes = red_finder(), read_boxes(file)
    classes = match_categories(explainer, boxes)
    assert classes == {"Red": 0}
    game = play_pointing_game(explainer, sorted(tmp_path.glob("*.png")), boxes, classes)
    rounds = {point.path.stem: point for point in game.points}
    assert {name: point.hit for name, point in rounds.items()} == {"hit": True, "miss": False, "empty": False}
    assert rounds["empty"].peak is None
    assert rounds["empty"].center_hit
    assert rounds["hit"].area == pytest.approx(1 / 16)
    assert rounds["hit"].difficult
    assert not rounds["miss"].difficult
    assert [path.name for path, _ in game.unseen] == ["cropped.png"]
    figures = game.as_dict()
    unreadable = {Path(one["image"]).name: one["reason"] for one in figures["unreadable"]}
    assert sorted(unreadable) == ["broken.png", "resized.png"]
    assert "pixels, but its boxes are for" in unreadable["resized.png"]
    assert figures["num_points"] == 3
    assert figures["hits"] == pytest.approx(1 / 3)
    assert figures["chance"] == pytest.approx((1 / 16 + 1 / 4 + 1) / 3)


def test_covered_area_counts_overlap_once() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [90, 90, 200, 200]], float)
    assert _covered(boxes, (0, 0, 100, 100)) == pytest.approx((100 + 100 - 25 + 100) / 10_000)
    assert _covered(boxes, (20, 20, 40, 40)) == 0


def test_categories_are_matched_by_name_or_as_given(tmp_path: Path) -> None:
    explainer = Explainer(replace(network(), class_names=NAMES))
    entries = [("a.png", (8, 8), name, [0.0, 0.0, 4.0, 4.0]) for name in ("dog", "golf-ball", "tench")]
    boxes = read_boxes(coco(tmp_path / "a.json", entries))
    assert match_categories(explainer, boxes) == {"golf-ball": 3, "tench": 0}
    assert match_categories(explainer, boxes, [("English springer", "dog")])["dog"] == 1
    with pytest.raises(UserError, match=r"no category 'dgo'. Similar names: dog"):
        match_categories(explainer, boxes, [("church", "dgo")])
    with pytest.raises(UserError, match="say which belong together with --category"):
        match_categories(Explainer(network()), boxes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a complete JSON file"),
        ("[]", "not a COCO file"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        (
            '{"categories": [], "images": [], "annotations": [{"bbox": [0, 0, 1, 1], "image_id": 3}]}',
            "3 is missing or refers to nothing",
        ),
        ('{"categories": [], "images": [], "annotations": [{"bbox": [0, 1]}]}', "not a COCO file"),
    ],
)
def test_damaged_boxes_are_told_in_a_sentence(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "instances.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_boxes(file)
    with pytest.raises(UserError, match="no file"):
        read_boxes(tmp_path / "missing.json")
