"""Folders of Pascal VOC's XML files are read into what COCO files of the same objects are read into."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from coco_sets import evaluated_images, make_content, write_images

from partialnet.detection.annotations import DetectionImages
from partialnet.detection.data_sources import open_detection_data
from partialnet.errors import UserError

NAMES = {3: "kite & string", 7: "square"}


def xml_of(entry: dict[str, Any], annotations: list[dict[str, Any]], difficult: bool = False) -> str:
    """An annotation file; boxes are rounded to pixels, counted from 1."""
    objects = ""
    for one in annotations:
        left, top, width, height = one["bbox"]
        sides = {
            "xmin": int(left) + 1,
            "ymin": int(top) + 1,
            "xmax": int(left) + int(width),
            "ymax": int(top) + int(height),
        }
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
        objects += (
            f"<object><name>{escape(NAMES[one['category_id']])}</name><truncated>0</truncated>"
            f"<difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox></object>\n"
        )
    return (
        "<?xml version='1.0'?>\n<annotation><folder>there</folder><filename>{file_name}</filename>"
        "<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    ).format(**entry) + f"{objects}</annotation>\n"


def write_part(images: Path, annotations: Path, seed: int, prefix: str = "") -> dict[str, Any]:
    """Images and their XML files; the same objects in the COCO format."""
    content = make_content(6, seed, crowds=False)
    for entry in content["images"]:
        entry["file_name"] = prefix + entry["file_name"]
    write_images(images, content)
    annotations.mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        own = [one for one in content["annotations"] if one["image_id"] == entry["id"]]
        (annotations / entry["file_name"]).with_suffix(".xml").write_text(xml_of(entry, own))
    return content


def check_equal(images: DetectionImages, content: dict[str, Any]) -> None:
    """That images and objects are those of the content, its boxes rounded down to pixels."""
    names = [Path(images.name(index)).name for index in range(len(images))]
    assert names == [entry["file_name"] for entry in content["images"]]
    for index, entry in enumerate(content["images"]):
        own = [one for one in content["annotations"] if one["image_id"] == entry["id"]]
        boxes = np.array([one["bbox"] for one in own]).astype(int)
        boxes[:, 2:] += boxes[:, :2]
        found = images.instances(index)
        np.testing.assert_array_equal(found.boxes, boxes)
        assert [images.class_names[label - 1] for label in found.labels] == [NAMES[one["category_id"]] for one in own]
        assert images.sizes[index].tolist() == [entry["height"], entry["width"]]
        assert images.read(index).size == (entry["width"], entry["height"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """LabelImg's files beside the images."""
    write_part(tmp_path / "set", tmp_path / "set", seed=1)
    return tmp_path / "set"


def edited(root: Path, old: str, new: str, name: str = "000.xml") -> DetectionImages:
    """The images after a change of one file, the first time that the text is there."""
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))
    return evaluated_images(str(root))


def counts(images: DetectionImages) -> dict[str, int]:
    return {fault.kind: fault.count for fault in images.faults if fault.kind != "no outline"}


@pytest.mark.parametrize("above", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_lists_of_images(tmp_path: Path, above: str) -> None:
    root = tmp_path / above
    images, annotations, lists = root / "JPEGImages", root / "Annotations", root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    truth = [write_part(images, annotations, seed, prefix) for seed, prefix in enumerate(("2008_", "2007_"))]
    for part, content in zip(("train", "val"), truth, strict=True):
        stems = [Path(entry["file_name"]).stem for entry in content["images"]]
        (lists / f"{part}.txt").write_text("\n".join(stems) + "\n")
        (lists / f"square_{part}.txt").write_text("".join(f"{stem} -1\n" for stem in stems))
    data = open_detection_data(str(tmp_path))
    assert data.class_names == ("kite & string", "square")
    assert data.split == "files train.txt and val.txt"
    for found, content in zip((data.train, data.validation), truth, strict=True):
        check_equal(found, content)
        assert counts(found) == {}
    # with both in one list, there is a list of the held-out images of another name
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    data = open_detection_data(str(tmp_path))
    check_equal(data.train, truth[0])
    check_equal(data.validation, truth[1])


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("{}", "{}"),
        ("{}/images", "{}/annotations"),
        ("images/{}", "Annotations/{}"),
        ("JPEGImages/{}", "annotations/{}"),
    ],
)
def test_parts_in_folders(tmp_path: Path, images: str, annotations: str) -> None:
    truth = [
        write_part(tmp_path / images.format(part), tmp_path / annotations.format(part), seed)
        for seed, part in enumerate(("train", "valid"))
    ]
    data = open_detection_data(str(tmp_path))
    check_equal(data.train, truth[0])
    check_equal(data.validation, truth[1])


def test_without_parts_images_are_held_out(root: Path) -> None:
    data = open_detection_data(str(root), val_share=0.3)
    assert (len(data.train), len(data.validation)) == (4, 2)


def test_names_that_only_validation_images_show_are_known(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_part(tmp_path / part, tmp_path / part, seed=1)
    edited(tmp_path / "val", "<name>square</name>", "<name>disc</name>")
    assert open_detection_data(str(tmp_path)).class_names == ("disc", "kite & string", "square")


@pytest.mark.parametrize("found", ["true.jpg", r"C:\me\true.jpg", "000", "gone.png", ""])
def test_the_image_has_the_name_of_its_file_or_that_in_it(root: Path, found: str) -> None:
    images = edited(root, "<filename>000.jpg</filename>", f"<filename>{found}</filename>")
    assert images.name(0) == "000.jpg"
    (root / "000.jpg").rename(root / "true.jpg")
    images = evaluated_images(str(root))
    if "true" in found:
        assert images.name(0) == "true.jpg"
    else:
        assert (len(images), counts(images)) == (5, {"missing image": 1})
        (fault,) = (fault for fault in images.faults if fault.kind == "missing image")
        assert fault.examples == (found if found.endswith(".png") else "000",)


def test_difficult_objects_are_crowds(root: Path) -> None:
    before = evaluated_images(str(root))
    images = edited(root, "<difficult>0</difficult>", "<difficult>1</difficult>")
    assert images.instances(0).crowd.tolist() == [True] + [False] * (len(before.instances(0)) - 1)
    assert images.num_instances[0] == before.num_instances[0] - 1
    assert counts(images) == {"crowd": 1}
    assert counts(edited(root, "<difficult>1</difficult>", "<difficult>Unspecified</difficult>")) == {}


def xml_of_boxes(*boxes: tuple[float, ...], size: tuple[int, int] | None = (64, 48)) -> str:
    """An annotation file of squares with these sides: left, top, right, bottom."""
    objects = ""
    for box in boxes:
        sides = "".join(
            f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        objects += f"<object><name>square</name><bndbox>{sides}</bndbox></object>"
    told = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>000.jpg</filename>{told}{objects}</annotation>"


def test_pixels_are_counted_from_1(root: Path) -> None:
    (root / "000.xml").write_text(xml_of_boxes((1, 1, 64, 48.0), (64, 48, 64, 48), size=None))
    images = evaluated_images(str(root))
    assert images.instances(0).boxes.tolist() == [[0, 0, 64, 48], [63, 47, 64, 48]]
    assert images.sizes[0].tolist() == [48, 64]  # of the image itself, as the file does not tell it
    assert counts(images) == {}
    assert images.remarks()[0] == "Pixels of boxes are counted from 1, as VOC does."


@pytest.mark.parametrize(
    ("telling", "told", "first", "last"),
    [
        ([(0, 9, 64, 48)], "Edges of boxes are counted from 0, as some are below 1 (005.xml).", 0, 0),
        ([(9, 0.25, 65, 48)], "Edges of boxes are counted from 0, as some are below 1 (005.xml).", 0, 0),
        ([(1, 9, 65, 48)], "Edges of boxes are counted from 1, as some are 1 beyond their images (005.xml).", 1, 1),
        ([(9.5, 9, 64, 49)], "Edges of boxes are counted from 1, as some are 1 beyond their images (005.xml).", 1, 1),
        ([(1.5, 9, 64, 48)] * 99, "Edges of boxes are counted from 0, as most lie within pixels.", 0, 0),
        # neither a single fraction, as VOC itself has it, nor what is wrong in any case tells anything
        ([(1.5, 9, 64, 48)], "Pixels of boxes are counted from 1, as VOC does.", 1, 0),
        ([(-3, 9, 64, 48)], "Pixels of boxes are counted from 1, as VOC does.", 1, 0),
        ([(9, 9, 70, 48)], "Pixels of boxes are counted from 1, as VOC does.", 1, 0),
        ([("nan", 9, "inf", 48)], "Pixels of boxes are counted from 1, as VOC does.", 1, 0),
    ],
)
def test_one_box_tells_how_all_files_count(
    root: Path, telling: list[tuple[float, ...]], told: str, first: int, last: int
) -> None:
    (root / "000.xml").write_text(xml_of_boxes((10, 20, 30, 40)))
    (root / "005.xml").write_text(xml_of_boxes(*telling))
    images = evaluated_images(str(root))
    assert images.remarks()[0] == told
    assert images.instances(0).boxes.tolist() == [[10 - first, 20 - first, 30 - last, 40 - last]]
    # whichever part it is in
    data = open_detection_data(str(root), val_share=0.4)
    assert data.notes(with_masks=False)[0] == f"data: {told}"
    assert data.train.reading == data.validation.reading == told


def test_each_data_set_counts_for_itself(tmp_path: Path, root: Path) -> None:
    write_part(tmp_path / "other", tmp_path / "other", seed=2)
    (tmp_path / "other" / "000.xml").write_text(xml_of_boxes((0, 0, 30, 40)))
    notes = open_detection_data(str(root), validation=str(tmp_path / "other")).notes(with_masks=False)
    assert notes[:2] == [
        "training: Pixels of boxes are counted from 1, as VOC does.",
        "validation: Edges of boxes are counted from 0, as some are below 1 (000.xml).",
    ]


def test_outlines_and_parts_of_objects(root: Path) -> None:
    corners = "<polygon><x1>1</x1><y1>2.5</y1><x2>30</x2><y2>4</y2><x3>9</x3><y3>40</y3></polygon>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    images = edited(root, "</object>", f"{corners}{part}</object>")
    assert images.has_outlines
    assert images.instances(0).outlines[0] == [[1, 2.5, 30, 4, 9, 40]]
    assert counts(images) == {}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("</annotation>", "", "annotation file"),
        ("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>", "annotation file"),
        ("<?xml version='1.0'?>", "<?xml version='1.0' encoding='none'?>", "annotation file"),
        ("<name>square</name>", "<name> </name>", "unknown category"),
        ("<xmin>", "<xmin>a", "box numbers"),
        ("<bndbox>", "<box/><bndbox><!--", "annotation file"),
        ("<xmin>", "<xmin>99", "empty box"),
        ("<xmax>", "<xmax>9", "box cut"),
    ],
)
def test_faults(root: Path, old: str, new: str, kind: str) -> None:
    assert counts(edited(root, old, new, "001.xml")) == {kind: 1}


def test_a_document_type_is_refused_in_any_encoding(root: Path) -> None:
    text = (root / "000.xml").read_text().replace("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>")
    for encoding in ("utf-8", "utf-16", "utf-16-be"):
        (root / "000.xml").write_bytes(text.replace("'1.0'", f"'1.0' encoding='{encoding[:6]}'").encode(encoding))
        assert counts(evaluated_images(str(root))) == {"annotation file": 1}
    (root / "000.xml").write_bytes(text.replace("<!DOCTYPE a [<!ENTITY b 'c'>]>", "").encode("utf-16"))
    assert counts(evaluated_images(str(root))) == {}


def test_lists_name_annotations_that_are_not_there(tmp_path: Path) -> None:
    write_part(tmp_path / "JPEGImages", tmp_path / "Annotations", seed=1)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("000\n008\n")
    images = evaluated_images(str(tmp_path))
    assert (len(images), counts(images)) == (1, {"annotation file": 1})
    assert str(images.faults[0]) == (
        "1 annotation file is missing or cannot be read and is left out with its image (Annotations/008.xml)."
    )


def test_folders_that_are_refused(root: Path, tmp_path: Path) -> None:
    for path in root.glob("*.xml"):
        path.write_text("<annotation>")
    with pytest.raises(UserError, match="has no object with a name: 6 annotation files are missing or cannot be read"):
        open_detection_data(str(root))
    for path in root.glob("*.xml"):
        path.write_text("<net/>")  # as OpenVINO's networks
    with pytest.raises(
        UserError, match=r"holds no annotations; detection takes .*; or the Pascal VOC format: XML files"
    ):
        open_detection_data(str(root))
    for year in ("VOC2007", "VOC2012"):
        write_part(tmp_path / year / "JPEGImages", tmp_path / year / "Annotations", seed=1)
        (tmp_path / year / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(UserError, match=r"several data sets of the VOC format; give one of .*VOC2007, .*VOC2012"):
        open_detection_data(str(tmp_path))
