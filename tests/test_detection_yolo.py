"""YOLO folders are read into what COCO files of the same objects are read into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from coco_sets import evaluated_images, make_content, write_images
from PIL import Image

from partialnet.detection.annotation_file import read_annotations
from partialnet.detection.annotations import DetectionImages
from partialnet.detection.data_sources import open_detection_data
from partialnet.errors import UserError

NAMES = {0: "kite", 1: "square", 2: "blob"}
NUMBERS = {3: 0, 7: 1, 90: 2}


def write_part(images: Path, labels: Path, seed: int, outlines: bool = False, count: int = 6) -> dict[str, Any]:
    """Images and their text files; the same objects in the COCO format."""
    content = make_content(count, seed, crowds=False)
    write_images(images, content)
    labels.mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        sides = np.array([entry["width"], entry["height"]])
        lines = []
        for one in content["annotations"]:
            if one["image_id"] == entry["id"]:
                corner, size = np.array(one["bbox"]).reshape(2, 2)
                shares = np.concatenate(((corner + size / 2) / sides, size / sides))
                if outlines:
                    shares = (np.reshape(one["segmentation"], (-1, 2)) / sides).ravel()
                lines.append(" ".join([str(NUMBERS[one["category_id"]]), *(f"{share:.7f}" for share in shares)]))
        (labels / entry["file_name"]).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    return content


def write_yaml(file: Path, **content: Any) -> None:
    file.write_text(yaml.safe_dump({"names": NAMES, **content}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of one part, without names."""
    write_part(tmp_path / "set" / "images", tmp_path / "set" / "labels", seed=1)
    return tmp_path / "set"


def names_of(images: DetectionImages) -> list[str]:
    return [images.name(index) for index in range(len(images))]


def check_equal(images: DetectionImages, content: dict[str, Any], tmp_path: Path, folder: Path) -> None:
    """That images and objects are those of the same set as a COCO file."""
    (tmp_path / "coco.json").write_text(json.dumps(content))
    expected = read_annotations(tmp_path / "coco.json", [folder])
    assert [Path(name).name for name in names_of(images)] == names_of(expected)
    np.testing.assert_array_equal(images.sizes, expected.sizes)
    for index in range(len(images)):
        ours, theirs = images.instances(index), expected.instances(index)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
        assert [images.class_names[label - 1] for label in ours.labels] == [
            expected.class_names[label - 1] for label in theirs.labels
        ]
        for one, other in zip(ours.outlines, theirs.outlines, strict=True):
            if images.has_outlines:
                np.testing.assert_allclose(one, other, atol=1e-4)
        assert images.read(index).size == expected.read(index).size


@pytest.mark.parametrize("outlines", [False, True])
@pytest.mark.parametrize(
    ("file", "content", "train", "val"),
    [
        ("data.yaml", {"train": "images/train", "val": "images/val"}, "images/train", "images/val"),
        ("coco8.yml", {"path": "../datasets/coco8", "train": "images/train", "val": "images/val"}, "images/train", ""),
        ("data.yaml", {"train": "../train/images", "val": "../valid/images"}, "train/images", "valid/images"),
        ("data.yaml", {"train": "/content/set/train/images", "test": "/content/set/test/images"}, "train/images", ""),
        ("dataset.yaml", {}, "train/images", "val/images"),
        ("dataset.yaml", {}, "images/train", "images/val"),
    ],
)
def test_layouts(tmp_path: Path, file: str, content: dict[str, Any], train: str, val: str, outlines: bool) -> None:
    root = tmp_path / "set"
    folders = [train, val or train.replace("train", "test" if "test" in content else "val")]
    truth = [
        write_part(root / folder, root / folder.replace("images", "labels"), seed, outlines)
        for seed, folder in enumerate(folders)
    ]
    write_yaml(root / file, **content)
    (root / "other.yaml").write_text("epochs: 3\n")
    for data in (open_detection_data(str(root)), open_detection_data(str(root / file))):
        assert data.class_names == ("kite", "square", "blob")
        for images, expected, folder in zip((data.train, data.validation), truth, folders, strict=True):
            assert images.root == root / folder
            assert images.has_outlines == outlines
            check_equal(images, expected, tmp_path, root / folder)
    np.testing.assert_array_equal(evaluated_images(str(root)).sizes, data.validation.sizes)


def test_several_folders_and_lists_of_images(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for seed, name in enumerate(("a", "b", "c")):
        write_part(root / "images" / name, root / "labels" / name, seed)
    (root / "val.txt").write_text(f"./images/b/003.jpg\n\n{root}/images/c/001.jpg\n/elsewhere/set/images/b/000.jpg\n")
    write_yaml(root / "data.yaml", path=".", train=["images/a", "images/c"], val="val.txt")
    data = open_detection_data(str(root))
    assert names_of(data.train) == [f"{folder}/00{number}.jpg" for folder in "ac" for number in range(6)]
    assert names_of(data.validation) == ["b/003.jpg", "c/001.jpg", "b/000.jpg"]
    assert data.validation.num_instances.tolist() == [
        len((root / "labels" / name).with_suffix(".txt").read_text().splitlines())
        for name in ("b/003.jpg", "c/001.jpg", "b/000.jpg")
    ]
    (root / "val.txt").write_text("images/b/003.jpg\nimages/b/none.jpg\n")
    (fault,) = (one for one in open_detection_data(str(root)).validation.faults if one.kind == "missing image")
    assert str(fault) == "1 listed image is missing and left out (none.jpg)."


def test_names_in_a_text_file_and_labels_beside_the_images(tmp_path: Path) -> None:
    content = write_part(tmp_path / "set", tmp_path / "set", seed=3)
    (tmp_path / "set" / "classes.txt").write_text("kite\nsquare\nblob\n\n")
    (tmp_path / "set" / "notes.json").write_text('{"categories": []}')  # as Label Studio adds it
    images = evaluated_images(str(tmp_path / "set"))
    check_equal(images, content, tmp_path, tmp_path / "set")
    data = open_detection_data(str(tmp_path / "set"), val_share=0.2)
    assert (len(data.train), len(data.validation)) == (5, 1)
    (tmp_path / "set" / "notes.json").unlink()
    # a COCO file beside them is what is read
    (tmp_path / "set" / "boxes.json").write_text(json.dumps(content))
    assert evaluated_images(str(tmp_path / "set")).image_ids.tolist() == [one["id"] for one in content["images"]]


def test_labels_are_for_upright_photographs_and_may_be_missing(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.new("RGB", (64, 48)).save(root / "images" / "000.jpg", exif=exif)
    (root / "labels" / "000.txt").write_text("2.0 0.25 0.5 0.5 1\n")
    (root / "labels" / "001.txt").unlink()
    (root / "labels" / "002.txt").write_text("\n")
    write_yaml(root / "data.yaml")
    images = evaluated_images(str(root))
    assert len(images) == 6
    assert images.num_instances[1:3].tolist() == [0, 0]
    assert images.sizes[0].tolist() == [64, 48]
    np.testing.assert_allclose(images.instances(0).boxes, [[0, 0, 24, 64]])
    assert images.read(0).size == (48, 64)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("3 0.5 0.5 0.2 0.2", "unknown category"),
        ("-1 0.5 0.5 0.2 0.2", "unknown category"),
        ("0.5 0.5 0.5 0.2 0.2", "unknown category"),
        ("kite 0.5 0.5 0.2 0.2", "annotation entry"),
        ("0 0.5 0.5 0.2", "annotation entry"),
        ("0 0.5 0.5 0.2 0.2 0.9", "annotation entry"),
        ("0 nan 0.5 0.2 0.2", "box numbers"),
        ("0 0.5 0.5 0.2 0", "empty box"),
        ("0 3 2.5 0.4 0.2", "box outside"),
        ("0 32 24 6 6", "pixels"),
        ("0 3 4 30 4 30 40", "pixels"),
        ("0 0.9 0.5 0.4 0.2", "box cut"),
        ("0 0.5 0.5 1.2 0.5 0.9 0.9", "box cut"),
        ("0 0.5 0.5 nan 0.5 0.9 0.9", "polygon"),
    ],
)
def test_faults_in_lines(root: Path, line: str, kind: str) -> None:
    write_yaml(root / "data.yaml")
    expected = evaluated_images(str(root))
    file = root / "labels" / "000.txt"
    file.write_text(f"{file.read_text()}{line}\n")
    images = evaluated_images(str(root))
    added = {fault.kind: fault for fault in images.faults if fault.kind not in ("no outline",)}
    assert added[kind].count == 1
    assert "000.jpg" in added[kind].examples[0]
    assert images.num_instances[0] - expected.num_instances[0] == (kind == "box cut")


def test_labels_in_pixels_are_told_that_shares_are_meant(root: Path) -> None:
    write_yaml(root / "data.yaml")
    files = sorted((root / "labels").iterdir())
    for file in files:
        file.write_text("0 32 24 6 6\n")
    told = (
        "6 objects have numbers as large as pixels, not shares of their images' widths and heights, and are left out "
        r"\(000.jpg, 001.jpg, 002.jpg, …\)\."
    )
    with pytest.raises(UserError, match=f"has no object that can be used: {told}$"):
        evaluated_images(str(root))
    files[0].write_text("0 0.5 0.5 9.9 0.1\n")  # as cropping may leave it
    (fault,) = (fault for fault in evaluated_images(str(root)).faults if fault.kind == "pixels")
    assert fault.count == 5


def test_images_that_cannot_be_read_are_counted(root: Path) -> None:
    write_yaml(root / "data.yaml")
    (root / "images" / "002.jpg").write_bytes(b"no image")
    images = evaluated_images(str(root))
    assert len(images) == 5
    assert [(fault.kind, fault.examples) for fault in images.faults if fault.kind != "no outline"] == [
        ("unreadable image", ("002.jpg",))
    ]


def test_of_poses_the_boxes_are_read(root: Path) -> None:
    write_yaml(root / "data.yaml", kpt_shape=[2, 3])
    (root / "labels" / "000.txt").write_text("0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 1\n")
    np.testing.assert_allclose(evaluated_images(str(root)).instances(0).boxes, [[16, 12, 48, 36]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\nval: images\n", r"data.yaml' has no names of classes; add a line such as names: \[cat, dog\]"),
        ("names: 3\n", "has no names of classes"),
        ("- names\n", "data.yaml' has no names of classes"),
        ("", "data.yaml' has no names of classes"),
        ("names: [a, b, groß]\n", "data.yaml' is not a YAML file: it is not written in UTF-8"),
        ("names: [a, yes, c]\n", "Class 1 of '.*data.yaml' has True for a name; give it one, in quotes"),
        ("names: [a, b\n", "data.yaml' is not a YAML file: expected ',' or ']', .* in line 2"),
        ('names: [a, b]\ntrain: "a\\0b"\n', "is neither a folder nor a list of files"),
        ("names: !!python/object/apply:os.getcwd []\n", "data.yaml' is not a YAML file: could not determine"),
        (
            "names: [a, b]\ntrain: images/there\n",
            "images/there', where the images of '.*data.yaml' should be, is neither",
        ),
        ("names: [a, b]\ntrain: labels\n", "labels', which '.*data.yaml' means, holds no images"),
        ("names: {a: b}\n", "lacks a whole number as its id, or a name"),
        ("names: [a, a]\n", "has no object that can be used|several categories of the name"),
    ],
)
def test_yaml_files_that_are_refused(root: Path, text: str, message: str) -> None:
    (root / "data.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message) as error:
        open_detection_data(str(root))
    assert "\n" not in str(error.value)


def test_a_yaml_file_of_no_use_is_told_where_there_are_no_labels_either(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("- train\n")
    with pytest.raises(UserError, match=r"data.yaml' has no names of classes"):
        open_detection_data(str(tmp_path))


def test_darknet_folders_of_cvat(tmp_path: Path) -> None:
    """As CVAT exports "YOLO 1.1"; obj.data and the lists of images say nothing that the folders do not."""
    root = tmp_path / "set"
    contents = {}
    for seed, (part, count) in enumerate({"train": 6, "Validation": 4}.items()):
        folder = root / f"obj_{part}_data"
        contents[part] = write_part(folder, folder, seed, count=count)
        names = [f"data/obj_{part}_data/{one['file_name']}\n" for one in contents[part]["images"]]
        (root / f"{part}.txt").write_text("".join(names))
    (root / "obj.names").write_text("kite\nsquare\nblob\n")
    (root / "obj.data").write_text("classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    data = open_detection_data(str(root))
    check_equal(data.train, contents["train"], tmp_path, root / "obj_train_data")
    check_equal(data.validation, contents["Validation"], tmp_path, root / "obj_Validation_data")


def test_each_part_has_its_names_as_labelimg_writes_them(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for seed, part in enumerate(("train", "val")):
        write_part(root / part, root / part, seed)
        (root / part / "classes.txt").write_text("kite\nsquare\nblob\n")
    data = open_detection_data(str(root))
    assert data.class_names == data.validation.class_names == ("kite", "square", "blob")
    (root / "val" / "classes.txt").write_text("square\nkite\nblob\n")
    with pytest.raises(UserError, match=r"train/classes.txt' and '.*val/classes.txt' name the classes differently"):
        open_detection_data(str(root))
    (root / "classes.txt").write_bytes("kite\nsquare\nweiß".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes.txt' is not written in UTF-8; save it anew so"):
        open_detection_data(str(root))


def test_folders_that_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="has labels, but no names of their classes"):
        open_detection_data(str(root))
    for name in ("one.yaml", "two.yaml"):
        write_yaml(root / name)
    with pytest.raises(UserError, match=r"several YAML files \(one.yaml, two.yaml\)"):
        open_detection_data(str(root))
    (root / "labels").rename(root / "texts")
    with pytest.raises(UserError, match=r"has a file of labels, such as '.*labels/000.txt'"):
        open_detection_data(str(root / "one.yaml"))


def test_numbers_as_names(root: Path) -> None:
    (root / "data.yaml").write_text("names: [7, 8.5, nine]\n")
    assert evaluated_images(str(root)).class_names == ("7", "8.5", "nine")
