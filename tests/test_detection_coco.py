"""COCO data: layouts, faults, outlines."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import evaluated_images, make_content, polygon, run_lengths, write_images, write_set
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from partialnet.detection.annotation_file import read_annotations
from partialnet.detection.annotations import DetectionImages
from partialnet.detection.config import DetectionConfig
from partialnet.detection.data_sources import DetectionData, open_detection_data
from partialnet.detection.faults import FAULTS, faults_as_json
from partialnet.detection.outlines import draw_masks, encoded, mask_functions, usable_run_lengths
from partialnet.detection.outlines import run_lengths as decode_run_lengths
from partialnet.detection.run import DetectorRun
from partialnet.errors import UserError
from partialnet.training.continuation import differences
from partialnet.training.settings import plain

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(write_set(tmp_path / "set"))


def rewritten(root: Path, change: Change) -> DetectionImages:
    """The set with something else in its file."""
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return read_annotations(path, [root / "images"])


def counts(images: DetectionImages) -> dict[str, int]:
    return {fault.kind: fault.count for fault in images.faults if fault.kind != "crowd"}


def test_what_is_read(root: Path) -> None:
    content = make_content(12)
    images = read_annotations(root / "annotations.json", [root / "images"])
    assert images.class_names == ("kite", "square", "blob")
    assert images.category_ids.tolist() == [3, 7, 90]
    assert len(images) == 12
    assert counts(images) == {}
    for index, entry in enumerate(content["images"]):
        expected = [one for one in content["annotations"] if one["image_id"] == entry["id"]]
        found = images.instances(index)
        assert images.name(index) == entry["file_name"]
        assert images.read(index).size == (entry["width"], entry["height"])
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in expected)]
        np.testing.assert_allclose(found.boxes, corners)
        assert [images.category_ids[label - 1] for label in found.labels] == [one["category_id"] for one in expected]
        assert found.areas.tolist() == [one["area"] for one in expected]
        assert list(found.outlines) == [one["segmentation"] for one in expected]
        assert (~found.crowd).sum() == images.num_instances[index] == sum(not one["iscrowd"] for one in expected)
    truth = images.ground_truth()
    assert [one["id"] for one in truth["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    again = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(again.instances(5).boxes, images.instances(5).boxes)


def lay_out(root: Path, *files: tuple[str, str]) -> None:
    """Files of annotations, each with its folder of images."""
    for number, (path, folder) in enumerate(files):
        content = make_content(8, number)
        write_images(root / folder, content)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (("annotations/instances_train2017.json", "train2017"), ("annotations/instances_val2017.json", "val2017")),
        (("annotations/instances_train.json", "images/train"), ("annotations/instances_val.json", "images/val")),
        (("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")),
        (("annotations/train.json", "train"), ("annotations/test.json", "test")),
        (("train/labels.json", "train/images"), ("Val/labels.json", "Val/images")),
    ],
)
def test_layouts_with_parts(tmp_path: Path, train: tuple[str, str], validation: tuple[str, str]) -> None:
    lay_out(tmp_path, train, validation)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    data = open_detection_data(str(tmp_path))
    assert (len(data.train), len(data.validation)) == (8, 8)
    assert data.train.root == tmp_path / train[1]
    assert data.validation.root == tmp_path / validation[1]
    assert data.train.read(0).size != data.train.read(1).size
    np.testing.assert_array_equal(evaluated_images(str(tmp_path)).sizes, data.validation.sizes)


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("annotations.json", "images"),
        ("result.json", "."),
        ("annotations/instances_default.json", "images/default"),
        ("_annotations.coco.json", "."),
    ],
)
def test_layouts_of_one_part_are_split(tmp_path: Path, path: str, folder: str) -> None:
    lay_out(tmp_path, (path, folder))
    data = open_detection_data(str(tmp_path), val_share=0.25, seed=1)
    again = open_detection_data(f"{tmp_path / folder},{tmp_path / path}", val_share=0.25, seed=1)
    alone = open_detection_data(str(tmp_path / path), val_share=0.25, seed=1)
    for other in (again, alone):
        assert other.validation.image_ids.tolist() == data.validation.image_ids.tolist()
    assert (len(data.train), len(data.validation)) == (6, 2)
    assert not set(data.train.image_ids.tolist()) & set(data.validation.image_ids.tolist())
    assert data.split == "25% of the images held out, seed 1"
    others = [
        open_detection_data(str(tmp_path), val_share=0.25, seed=seed).validation.image_ids.tolist() for seed in range(6)
    ]
    assert len(set(map(tuple, others))) > 1
    # the objects of a subset are those of its own images
    whole = evaluated_images(str(tmp_path))
    for index, image_id in enumerate(data.validation.image_ids.tolist()):
        place = whole.image_ids.tolist().index(image_id)
        np.testing.assert_array_equal(data.validation.instances(index).boxes, whole.instances(place).boxes)
        assert data.validation.name(index) == whole.name(place)
    assert {one["image_id"] for one in data.validation.ground_truth()["annotations"]} == set(data.validation.image_ids)


def test_categories_are_found_by_their_names(root: Path, tmp_path: Path) -> None:
    def renumber(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 1, "name": "square"}, {"id": 2, "name": "kite"}]
        for one in content["annotations"]:
            one["category_id"] = {7: 1, 3: 2}[one["category_id"]]

    other = Path(write_set(tmp_path / "other"))
    rewritten(other, renumber)
    data = open_detection_data(str(root), str(other))
    assert data.train.class_names == data.validation.class_names == ("kite", "square", "blob")
    np.testing.assert_array_equal(data.train.instances(0).labels, data.validation.instances(0).labels)
    assert data.validation.category_ids[:2].tolist() == [2, 1]
    # what is listed only is no hindrance
    assert open_detection_data(str(other), str(root)).class_names == ("square", "kite")
    data = read_annotations(root / "annotations.json", [root / "images"], ("disc", "kite", "square"))
    assert data.category_ids.tolist() == [1, 3, 7]
    rewritten(root, lambda content: content["categories"].append({"id": 1, "name": "never"}))
    data = read_annotations(root / "annotations.json", [root / "images"], ("disc", "kite", "square"))
    assert data.category_ids.tolist() == [2, 3, 7]  # the id of "never" means no disc
    rewritten(root, lambda content: first(content, category_id=90))
    with pytest.raises(UserError, match="has a category 'blob', which is not among the 2 known ones"):
        open_detection_data(str(other), str(root))


def first(content: dict[str, Any], **values: object) -> None:
    content["annotations"][0].update(values)


FAULTY: dict[str, tuple[Change, dict[str, int], int]] = {
    # what is changed, what is counted, how many annotations are left out
    "image entry": (lambda c: c["images"].append({"id": "x", "file_name": "a.jpg"}), {"image entry": 1}, 0),
    "duplicate image": (lambda c: c["images"].append(dict(c["images"][0])), {"duplicate image": 1}, 0),
    "annotation entry": (lambda c: c["annotations"].append("?"), {"annotation entry": 1}, 0),
    "unknown image": (lambda c: first(c, image_id=5), {"unknown image": 1}, 1),
    "unknown category": (lambda c: first(c, category_id=4), {"unknown category": 1}, 1),
    "duplicate annotation": (lambda c: first(c, id=1), {"duplicate annotation": 1}, 0),
    "no number": (lambda c: first(c, bbox=[1, 2, "3", 4]), {"box numbers": 1}, 1),
    "NaN": (lambda c: first(c, bbox=[1, float("nan"), 3, 4]), {"box numbers": 1}, 1),
    "three numbers": (lambda c: first(c, bbox=[1, 2, 3]), {"box numbers": 1}, 1),
    "zero area": (lambda c: first(c, bbox=[5, 5, 0, 9]), {"empty box": 1}, 1),
    "negative": (lambda c: first(c, bbox=[5, 5, 4, -9]), {"empty box": 1}, 1),
    "outside": (lambda c: first(c, bbox=[500, 5, 20, 20]), {"box outside": 1}, 1),
    "partly outside": (lambda c: first(c, bbox=[-10, 5, 20, 300]), {"box cut": 1}, 0),
    "two points": (lambda c: first(c, segmentation=[[1, 2, 3, 4]]), {"polygon": 1, "no outline": 1}, 0),
    "odd": (lambda c: first(c, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), {"polygon": 1, "no outline": 1}, 0),
    "far": (lambda c: first(c, segmentation=[[1, 2, 3e30, 4, 5, 6]]), {"polygon": 1, "no outline": 1}, 0),
    "texts": (lambda c: first(c, segmentation=[list("123456")]), {"polygon": 1, "no outline": 1}, 0),
    "pairs": (lambda c: first(c, segmentation=[[[1, 2]] * 6]), {"polygon": 1, "no outline": 1}, 0),
    "ragged": (lambda c: first(c, segmentation=[[1, [2], 3, 4, 5, 6]]), {"polygon": 1, "no outline": 1}, 0),
    "NaN in it": (lambda c: first(c, segmentation=[[1, 2, float("nan"), 4, 5, 6]]), {"polygon": 1, "no outline": 1}, 0),
    "one of two": (
        lambda c: first(c, segmentation=[[1, 2, 3, 4], *c["annotations"][0]["segmentation"]]),
        {"polygon": 1},
        0,
    ),
    "no outline": (lambda c: first(c, segmentation=[]), {"no outline": 1}, 0),
    "size": (
        lambda c: first(c, segmentation={"size": [3, 2], "counts": [6]}),
        {"run lengths": 1, "no outline": 1},
        0,
    ),
    "counts": (
        lambda c: first(c, segmentation={"size": [48, 64], "counts": [6, -1]}),
        {"run lengths": 1, "no outline": 1},
        0,
    ),
    "text": (
        lambda c: first(c, segmentation={"size": [48, 64], "counts": "zzz\u00e9"}),
        {"run lengths": 1, "no outline": 1},
        0,
    ),
    "counts as texts": (
        lambda c: first(c, segmentation={"size": [48, 64], "counts": ["1000", "72", "2000"]}),
        {"run lengths": 1, "no outline": 1},
        0,
    ),
    "parts of a pixel": (
        lambda c: first(c, segmentation={"size": [48, 64], "counts": [1000.5, 72, 2000]}),
        {"run lengths": 1, "no outline": 1},
        0,
    ),
    "numbers with a point": (
        lambda c: first(c, segmentation={"size": [48.0, 64.0], "counts": [1000.0, 72.0, 2000.0]}),
        {},
        0,
    ),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), {}, 0),
    "no area": (lambda c: c["annotations"][0].pop("area"), {}, 0),
    "no size": (lambda c: c["images"][0].pop("width"), {}, 0),
    "ids as texts": (lambda c: (first(c, image_id="100", category_id="7"), c["images"][0].update(id="100")), {}, 0),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faults_are_counted_and_what_comes_out_can_be_learnt(root: Path, name: str) -> None:
    change, expected, left_out = FAULTY[name]
    before = len(make_content(12)["annotations"])
    images = rewritten(root, change)
    assert counts(images) == expected
    found = [images.instances(index) for index in range(len(images))]
    assert sum(map(len, found)) == before - left_out
    for index, one in enumerate(found):
        height, width = images.sizes[index]
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert (one.boxes >= 0).all()
        assert (one.boxes <= [width, height, width, height]).all()
        assert (one.areas > 0).all()
        assert set(one.labels.tolist()) <= {1, 2, 3}
        masks = draw_masks(one.outlines, (height, width), (2 * height, 2 * width))
        assert masks.flatten(1).any(1).all()
    for fault in images.faults:
        assert str(fault).endswith(".")
        assert fault.kind in FAULTS
    assert faults_as_json(images.faults).keys() >= expected.keys()


@pytest.mark.parametrize("written", [{}, {"bbox": None}, {"bbox": []}])
def test_a_box_that_is_not_given_is_that_of_its_polygons(root: Path, written: dict[str, Any]) -> None:
    def leave_out(content: dict[str, Any]) -> None:
        del content["annotations"][0]["bbox"]
        first(content, **written)

    images = rewritten(root, leave_out)
    left, top, width, height = make_content(12)["annotations"][0]["bbox"]
    np.testing.assert_allclose(images.instances(0).boxes[0], [left, top, left + width, top + height])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_box_that_is_not_given_is_that_of_its_run_lengths(root: Path, compressed: bool) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 5:9] = 1
    mask[30, 40] = 1
    outline = run_lengths(mask)
    if compressed:
        coded = encoded(outline, 48, 64)
        outline = {"size": coded["size"], "counts": coded["counts"].decode()}
    images = rewritten(root, lambda c: (c["annotations"][0].pop("bbox"), first(c, segmentation=outline)))
    assert images.instances(0).boxes[0].tolist() == [5, 10, 41, 31]
    nothing = {"size": [48, 64], "counts": [48 * 64]}
    images = rewritten(root, lambda c: first(c, segmentation=nothing))
    assert counts(images) == {"empty box": 1}


@pytest.mark.parametrize("written", [str, float, bool])
def test_crowds_may_be_written_in_several_ways(root: Path, written: Callable[[int], object]) -> None:
    expected = read_annotations(root / "annotations.json", [root / "images"])
    images = rewritten(root, lambda c: [one.update(iscrowd=written(one["iscrowd"])) for one in c["annotations"]])
    assert 0 < images.num_instances.sum() < len(make_content(12)["annotations"])
    np.testing.assert_array_equal(images.num_instances, expected.num_instances)


def test_missing_images(root: Path) -> None:
    (root / "images" / "003.jpg").unlink()
    (root / "images" / "007.jpg").unlink()
    images = read_annotations(root / "annotations.json", [root / "images"])
    assert counts(images) == {"missing image": 2}
    assert str(images.faults[0]) == "2 listed images are missing and left out (003.jpg, 007.jpg)."
    assert len(images) == 10
    for file in (root / "images").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"No image of .* can be used: 12 listed images are missing"):
        read_annotations(root / "annotations.json", [root / "images"])
    with pytest.raises(UserError, match=r"such as '000.jpg', are not in .*; name their folder as IMAGES,JSON"):
        open_detection_data(str(root))


def test_names_with_folders_of_another_machine(root: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "/home/somebody/photos/000.jpg"
        content["images"][1]["file_name"] = "..\\photos\\001.jpg"
        content["images"][2]["file_name"] = "../../../../../../etc/passwd"

    images = rewritten(root, rename)
    assert [images.name(index) for index in range(2)] == ["000.jpg", "001.jpg"]
    assert counts(images) == {"missing image": 1}


@pytest.mark.parametrize(
    ("listed", "stored"),
    [
        ("/home/somebody/photos/yard/000.jpg", "yard/000.jpg"),
        ("C:\\photos\\yard\\000.jpg", "yard/000.jpg"),
        ("../photos/yard/000.jpg", "yard/000.jpg"),
        ("my%20photo%C3%A9.jpg", "my photo\u00e9.jpg"),
        ("https://labels.example/media/yard%2F000.jpg?token=5", "yard/000.jpg"),
        ("/data/local-files/?d=yard%5C000.jpg", "yard/000.jpg"),
        ("/data/local-files/?d=000.jpg", "000.jpg"),
        ("caf\u00e9/000.jpg", "cafe\u0301/000.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("100%20?.jpg", "100%20?.jpg"),
    ],
)
def test_names_of_other_machines_and_labelling_servers(root: Path, listed: str, stored: str) -> None:
    file = root / "images" / stored
    file.parent.mkdir(exist_ok=True)
    (root / "images" / "000.jpg").rename(file)
    images = rewritten(root, lambda content: content["images"][0].update(file_name=listed))
    assert images.name(0) == stored
    assert images.read(0).size == (64, 48)
    assert not counts(images)


def test_frames_of_one_name_in_folders_of_another_machine(root: Path) -> None:
    for number in range(2):
        folder = root / "images" / f"video{number}"
        folder.mkdir()
        (root / "images" / f"00{number}.jpg").rename(folder / "frame.jpg")

    def rename(content: dict[str, Any]) -> None:
        for number in range(2):
            content["images"][number]["file_name"] = f"/home/somebody/video{number}/frame.jpg"

    images = rewritten(root, rename)
    assert [images.name(index) for index in range(2)] == ["video0/frame.jpg", "video1/frame.jpg"]
    assert not counts(images)


def test_names_that_lead_to_one_file_are_left_out(root: Path) -> None:
    """A flat folder has a frame of one video at most, and which one, nothing tells."""
    videos = root / "images" / "video4"
    videos.mkdir()
    (root / "images" / "004.jpg").rename(videos / "000.jpg")

    def rename(content: dict[str, Any]) -> None:
        names = {1: "video1/000.jpg", 2: "video2/000.jpg", 3: "video3/003.jpg", 4: "video4/000.jpg"}
        for number, name in names.items():
            content["images"][number]["file_name"] = name

    images = rewritten(root, rename)
    assert counts(images) == {"shared file": 2}
    assert images.faults[0].examples == ("video1/000.jpg", "video2/000.jpg")
    found = [images.name(index) for index in range(len(images))]
    assert found == ["000.jpg", "003.jpg", "video4/000.jpg", *(f"{number:03}.jpg" for number in range(5, 12))]
    assert images.image_ids.tolist() == [100, 109, 112, *range(115, 136, 3)]


def test_files_that_are_listed_twice_are_told(root: Path) -> None:
    images = rewritten(root, lambda content: content["images"][4].update(file_name="./000.jpg"))
    assert counts(images) == {"repeated file": 1}
    assert len(images) == 12
    assert images.name(4) == "000.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1, "file_na', r"is not a complete JSON file \(line 1, column \d+\); it may have been cut"),
        ("", "is not a complete JSON file"),
        ("[" * 100_000, "is not a complete JSON file"),
        ("[]", "is not a COCO file"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "lacks a whole number as its id, or a name"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "two categories of id 1",
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "No image of"),
    ],
)
def test_files_that_are_refused(root: Path, text: str, message: str) -> None:
    (root / "annotations.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        open_detection_data(str(root))
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding_is_refused(root: Path) -> None:
    path = root / "annotations.json"
    text = path.read_text().replace("kite", "K\u00e4fer")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"annotations.json' is not written in UTF-8, as JSON must be"):
        open_detection_data(str(root))
    path.write_bytes(text.encode("utf-8-sig"))
    assert "K\u00e4fer" in open_detection_data(str(root)).class_names


@pytest.mark.parametrize("name", ["labels.txt", "1.xml", "1.jpg", "annotations"])
def test_files_of_other_kinds_are_refused_with_what_there_may_be_instead(root: Path, name: str) -> None:
    path = root / name
    path.write_bytes(b"0 0.5 0.5 0.2 0.2\xff\n")
    for data in (str(path), f"{root / 'images'},{path}"):
        with pytest.raises(UserError) as error:
            open_detection_data(data)
        assert str(error.value) == (
            f"{str(path)!r} is no JSON file in the COCO format; give such a file, the folder that holds images and "
            "annotations, or the data.yaml of a YOLO data set."
        )
    # what is in it counts
    path.write_bytes((root / "annotations.json").read_bytes())
    assert len(evaluated_images(str(path))) == 12


@pytest.mark.parametrize("part", ["held-out", "training"])
def test_objects_on_one_side_only(root: Path, part: str) -> None:
    data = open_detection_data(str(root), val_share=0.25)
    side = data.train if part == "held-out" else data.validation  # the other side keeps none
    kept = {int(number) for number in side.image_ids}
    rewritten(
        root,
        lambda content: content.update(annotations=[one for one in content["annotations"] if one["image_id"] in kept]),
    )
    with pytest.raises(UserError, match=f"none of them is among the .* {part} ones; choose another val_share or seed"):
        open_detection_data(str(root), val_share=0.25)


def test_no_objects_at_all(root: Path) -> None:
    with pytest.raises(UserError, match=r"has no object that can be used\.$"):
        rewritten(root, lambda content: content["annotations"].clear())
    Path(write_set(root))
    with pytest.raises(UserError, match="has no object that can be used: 40 boxes have no area"):
        rewritten(root, lambda content: [one.update(bbox=[1, 1, 0, 0]) for one in content["annotations"]])
    Path(write_set(root))
    with pytest.raises(UserError, match=r"All boxes of .* lie within the first pixels of their images, as shares of"):
        rewritten(root, lambda content: [one.update(bbox=[0.5, 0.4, 0.5, 0.6]) for one in content["annotations"]])
    Path(write_set(root))
    rewritten(root, lambda content: [one.update(iscrowd=1) for one in content["annotations"]])
    with pytest.raises(UserError, match="no object that can be used, crowds aside"):
        open_detection_data(str(root))


def test_a_fault_of_other_held_out_images_is_told_with_their_name(root: Path, tmp_path: Path) -> None:
    other = Path(write_set(tmp_path / "other"))
    rewritten(other, lambda content: [one.update(iscrowd=1) for one in content["annotations"]])
    with pytest.raises(UserError, match=r"The validation images of '[^']*other' have no object"):
        open_detection_data(str(root), str(other))


def test_images_without_objects_are_not_trained_on_unless_asked(root: Path) -> None:
    def empty(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] > 112]

    images = rewritten(root, empty)
    assert len(images) == 12
    data = open_detection_data(str(root), str(root))
    assert len(data.train) == 7
    assert len(data.validation) == 12
    assert data.num_empty == 5
    assert "training: 5 images have no object to learn and are left out." in data.notes()
    assert len(open_detection_data(str(root), str(root), keep_empty=True).train) == 12


def test_categories_without_objects_are_told(tmp_path: Path) -> None:
    """Every kite and blob of the whole set is a validation image's, or a crowd's."""
    content = make_content(8, crowds=False)
    write_images(tmp_path / "images", content)
    (tmp_path / "annotations").mkdir()
    for part, entries in (("train", content["images"][:4]), ("val", content["images"][4:])):
        objects = [one for one in content["annotations"] if one["image_id"] in {entry["id"] for entry in entries}]
        if part == "train":
            objects = [{**one, "iscrowd": int(one["category_id"] == 3)} for one in objects]
        file = tmp_path / "annotations" / f"instances_{part}.json"
        file.write_text(json.dumps({**content, "images": entries, "annotations": objects}))
    told = "training: 2 of 3 categories have no object to learn (kite, blob); the detector will not find them."
    data = open_detection_data(str(tmp_path))
    assert told in data.notes()
    assert data.train.objects_of_labels().tolist() == [0, int(data.train.num_instances.sum()), 0]
    (only,) = [
        note
        for note in open_detection_data(str(tmp_path / "annotations" / "instances_val.json")).notes()
        if "learn" in note
    ]
    assert only == "training: 1 of 3 categories has no object to learn (blob); the detector will not find it."


def test_validation_images_that_are_learnt_are_told(tmp_path: Path) -> None:
    """Two files of objects beside one flat folder of images."""
    content = make_content(12)
    write_images(tmp_path / "images", content)
    (tmp_path / "annotations").mkdir()
    images = content["images"]

    def notes(train: list[Any], val: list[Any]) -> list[str]:
        for part, listed in (("train", train), ("val", val)):
            file = tmp_path / "annotations" / f"instances_{part}.json"
            # a file of its own counts its images anew
            others = [{**entry, "id": 500 + entry["id"]} for entry in listed] if part == "val" else listed
            ids = {other["id"]: entry["id"] for entry, other in zip(others, listed, strict=True)}
            objects = [
                {**one, "image_id": ids[one["image_id"]]} for one in content["annotations"] if one["image_id"] in ids
            ]
            file.write_text(json.dumps({**content, "images": others, "annotations": objects}))
        return [note for note in open_detection_data(str(tmp_path)).notes() if "training image" in note]

    assert notes(images[:8], images[8:]) == []
    assert notes(images[:8], images[7:]) == [
        "validation: 1 of 5 images is a training image, too (007.jpg); the figures say less about other photographs."
    ]
    (told,) = notes(images[:8], images[3:])
    assert told.startswith("validation: 5 of 9 images are training images, too (003.jpg, 004.jpg, 005.jpg and 2 more)")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "images")
    (told,) = open_detection_data(str(tmp_path), f"{link},{tmp_path}/annotations/instances_train.json").notes()[-1:]
    assert "validation: 8 of 8 images" in told


@pytest.mark.parametrize(
    "change", [{"category_id": 3}, {"bbox": [1, 2, 9, 9]}, {"iscrowd": 1}, {"image_id": 109}, {"area": 7}]
)
def test_other_objects_have_another_fingerprint(root: Path, change: dict[str, Any]) -> None:
    content = json.loads((root / "annotations.json").read_text())
    before = evaluated_images(str(root)).fingerprint()
    assert evaluated_images(str(root)).fingerprint() == before
    first = next(one for one in content["annotations"] if one["category_id"] == 7 and not one["iscrowd"])
    first.update(change)
    (root / "annotations.json").write_text(json.dumps(content))
    assert evaluated_images(str(root)).fingerprint() != before


def test_edited_outlines_and_renamed_images_have_another_fingerprint(root: Path) -> None:
    (root / "images" / "copies").mkdir()
    (root / "images" / "copies" / "000.jpg").write_bytes((root / "images" / "000.jpg").read_bytes())
    change = {"segmentation": [[1, 2, 9, 2, 9, 9]]}
    seen = set()
    for edit in (
        lambda content: None,
        lambda content: content["annotations"][0].update(change),
        lambda content: content["images"][0].update(file_name="copies/000.jpg"),
    ):
        data = DetectorRun().describe_data(DetectionData(rewritten(root, edit), evaluated_images(str(root)), "both"))
        assert data == DetectorRun().describe_data(DetectionData(*[evaluated_images(str(root))] * 2, "both"))
        seen.add(str(data))
    assert len(seen) == 3
    # a state of before outlines counted still fits
    state = {"config": plain(asdict(DetectionConfig())), "data": {"objects": data["objects"]}}
    assert differences(state, DetectionConfig(), data) == []


def test_a_superior_category_of_the_same_name(root: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["categories"].insert(0, {"id": 0, "name": "kite", "supercategory": "none"})

    assert rewritten(root, add).class_names == ("kite", "square", "blob")
    with pytest.raises(UserError, match="several categories of the name 'kite'"):
        rewritten(root, lambda content: first(content, category_id=0))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "There is no folder or file 'nowhere'; detection takes"),
        ("nowhere,annotations.json", "There is no folder 'nowhere'"),
        ("images,nothing.json", "There is no file 'nothing.json'"),
        ("images", "holds no annotations; detection takes the COCO format: annotations/"),
    ],
)
def test_data_that_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch, data: str, message: str) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=message):
        open_detection_data(data)


def test_files_of_another_kind_are_named(root: Path) -> None:
    (root / "annotations.json").rename(root / "person_keypoints_default.json")
    with pytest.raises(UserError, match=r"no annotations of objects \(person_keypoints_default.json left aside\)"):
        open_detection_data(str(root))
    assert len(open_detection_data(f"{root}/images,{root}/person_keypoints_default.json").train) == 11


def test_two_files_for_one_part(tmp_path: Path) -> None:
    lay_out(tmp_path, ("annotations/instances_train2014.json", "a"), ("annotations/instances_train2017.json", "a"))
    with pytest.raises(UserError, match="several JSON files for 'train'"):
        open_detection_data(str(tmp_path))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "I;16"])
def test_images_of_other_modes_are_rgb(root: Path, mode: str) -> None:
    image = Image.new("RGB", (64, 48), (200, 100, 50))
    converted = Image.fromarray(np.full((48, 64), 40_000, np.uint16)) if mode == "I;16" else image.convert(mode)
    name = "000.tif" if mode in ("CMYK", "I;16") else "000.png"
    converted.save(root / "images" / name)
    images = rewritten(root, lambda content: content["images"][0].update(file_name=name))
    assert images.read(0).mode == "RGB"


@pytest.mark.parametrize("labelled_upright", [True, False])
def test_photographs_that_are_turned(root: Path, labelled_upright: bool) -> None:
    """The size in the file tells whether the boxes are for the photograph as stored or as it is shown."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255  # bright at the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: bright at the top
    Image.fromarray(pixels).save(root / "images" / "000.jpg", exif=exif, quality=95)
    size = {"width": 48, "height": 64} if labelled_upright else {"width": 64, "height": 48}
    images = rewritten(root, lambda content: content["images"][0].update(size))
    read = np.asarray(images.read(0)).mean(2)
    assert read.shape == (size["height"], size["width"])
    bright = read[:20] if labelled_upright else read[:, :20]
    assert bright.min() > 200
    assert images.read(0, 12).size == (size["width"] // 4, size["height"] // 4)


def test_images_that_cannot_be_read(root: Path) -> None:
    (root / "images" / "000.jpg").write_bytes(b"no image")
    Image.new("RGB", (30, 30)).save(root / "images" / "001.jpg")
    images = read_annotations(root / "annotations.json", [root / "images"])
    with pytest.raises(UserError, match="is not a JPEG"):
        images.read(0)
    with pytest.raises(UserError, match="has 30×30 pixels, but its annotations are for 48×64"):
        images.read(1)
    without_size = rewritten(root, lambda content: content["images"][0].pop("width"))
    assert counts(without_size) == {"unreadable image": 1}
    assert len(without_size) == 11


def test_boxes_stand_in_for_masks(root: Path) -> None:
    images = rewritten(root, lambda content: [one.pop("segmentation") for one in content["annotations"]])
    assert not images.has_outlines
    objects = images.instances(0)
    height, width = images.sizes[0].tolist()
    masks = draw_masks(objects.outlines, (height, width), (height, width))
    for mask, (left, top, right, bottom) in zip(masks, objects.boxes, strict=True):
        assert abs(float(mask.sum()) - (right - left) * (bottom - top)) < 2 * (right - left + bottom - top)


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=30),
    st.integers(1, 40),
)
@settings(deadline=None, max_examples=60)
def test_run_lengths_are_those_of_the_library(counts: list[int], height: int) -> None:
    total = -(-sum(counts) // height) * height or height
    counts = [*counts, total - sum(counts)]
    width = total // height
    compressed = mask_functions().frPyObjects({"size": [height, width], "counts": counts}, height, width)
    text = compressed["counts"].decode()
    assert decode_run_lengths(text).tolist() == counts
    assert usable_run_lengths({"size": [height, width], "counts": text}, height, width)
    assert not usable_run_lengths({"size": [height, width], "counts": [*counts[:-1], counts[-1] + 1]}, height, width)


@given(st.text(st.characters(min_codepoint=1, max_codepoint=200), max_size=30))
@settings(deadline=None, max_examples=100)
def test_any_text_is_run_lengths_or_refused(text: str) -> None:
    usable = usable_run_lengths({"size": [9, 7], "counts": text}, 9, 7)
    if usable:
        assert mask_functions().decode({"size": [9, 7], "counts": text.encode()}).shape == (9, 7)


@given(st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=150)
def test_masks_are_resized_with_their_image(seed: int, mirrored: bool) -> None:
    """Filled in the final size within its rectangle, a polygon covers what it covers in the whole image."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(8, 60, 2))
    points = rng.uniform(-10, 70, (int(rng.integers(3, 8)), 2)).round(int(rng.integers(1, 4)))
    scale = float(rng.choice([0.5, 1.0, 2.5]))
    to_size = max(1, round(height * scale)), max(1, round(width * scale))
    (mask,) = draw_masks([[points.ravel().tolist()]], (height, width), to_size, mirrored)
    scaled = points * (to_size[1] / width, to_size[0] / height)
    if mirrored:
        scaled[:, 0] = to_size[1] - scaled[:, 0]
    whole = mask_functions().decode(encoded([scaled.ravel().tolist()], *to_size))
    assert int((torch.from_numpy(whole) != mask).sum()) <= 1  # a tie of rounding along an edge


def test_run_lengths_are_resized_and_mirrored() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:7] = 1
    (drawn,) = draw_masks([run_lengths(mask)], (6, 8), (12, 16), mirrored=True)
    np.testing.assert_array_equal(drawn.numpy(), mask[:, ::-1].repeat(2, 0).repeat(2, 1))
    (square,) = draw_masks([polygon(7, 2, 1, 5, 2)], (6, 8), (12, 16), mirrored=True)
    np.testing.assert_array_equal(square.numpy(), drawn.numpy())
