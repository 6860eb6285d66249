"""Folders in the format of Pascal VOC: an XML file for each image, as LabelImg writes them too.

Boxes are given by their first and last pixels, counted from 1, in VOC itself and by LabelImg; other tools write edges
instead, counted from 0 or from 1. In VOC's evaluation it is neither right nor wrong to find objects that are marked
``difficult``, as it is with crowds in COCO's.

Source: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, and its development kit,
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite, nan
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from partialnet.data.splits import HELD_OUT, TRAINING, part_of
from partialnet.errors import UserError
from partialnet.images import images_below
from partialnet.messages import first_line, listed

from .annotation_file import Part, images_with_objects, with_progress
from .annotations import DetectionImages
from .faults import FaultCounter

#: Where annotations are looked for, in words.
LAYOUTS = "the Pascal VOC format: XML files in Annotations/, or beside the images"
_ANNOTATIONS = "Annotations"
#: Folders that images may be in where their annotations are in one called ``_ANNOTATIONS``; "" is around it.
_IMAGE_FOLDERS = ("JPEGImages", "images", "")
_TRAINING_AND_VALIDATION = "trainval"
#: Lists of images by their parts; there are others, of images with each class.
_LISTS = (*TRAINING, *HELD_OUT, _TRAINING_AND_VALIDATION)
_START = re.compile(rb"<annotation[\s>]")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_NUM_EXAMPLES = 3


def recognises(root: Path) -> bool:
    """Whether a folder is in this format."""
    return bool(_list_folders(root)) or any(_START.search(_beginning(path)) for path in _xml_files(root))


def parts_of_folder(root: Path) -> dict[str, Part]:
    """The parts of a folder: "train", "val", …, or "" for images that belong to none.

    They are those of the lists in ``ImageSets/Main``, or else of folders. The list "trainval" is the training part
    where there is none of the name "train".

    Raises:
        UserError: There are several data sets.
    """
    list_folders = _list_folders(root)
    if len(list_folders) > 1:
        names = listed([str(folder.parent.parent) for folder in list_folders])
        raise UserError(f"Folder {str(root)!r} has several data sets of the VOC format; give one of {names}.")
    parts: dict[str, Part] = {}
    for folder in list_folders:
        base = folder.parent.parent
        data = _DataSet(base, sorted((base / _ANNOTATIONS).glob("*.xml")))
        for name in _LISTS:
            if (path := folder / f"{name}.txt").is_file():
                parts["train" if name in TRAINING else name] = Part(path, partial(_read_list, data, path))
        if _TRAINING_AND_VALIDATION in parts and "train" not in parts:
            parts["train"] = parts.pop(_TRAINING_AND_VALIDATION)
    return parts or _parts_by_folders(root)


def _parts_by_folders(root: Path) -> dict[str, Part]:
    data = _DataSet(root, list(_xml_files(root)))
    files = defaultdict(list)
    for path in data.files:
        files[part_of(path.parent.relative_to(root))].append(path)
    parts = {}
    for name, paths in files.items():
        folder = Path(os.path.commonpath([path.parent for path in paths]))
        parts[name] = Part(folder, partial(data.read, folder, paths))
    return parts


def _list_folders(root: Path) -> list[Path]:
    return [folder for depth in ("", "*/", "*/*/") for folder in sorted(root.glob(f"{depth}ImageSets/Main"))]


def _xml_files(root: Path) -> Iterator[Path]:
    for depth in ("", "*/", "*/*/"):
        yield from sorted(path for path in root.glob(f"{depth}*.xml") if not path.name.startswith("."))


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _read_list(data: _DataSet, path: Path, class_names: Sequence[str] | None) -> DetectionImages:
    """Images and objects that a list in ``ImageSets/Main`` names."""
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}.") from None
    files = [data.root / _ANNOTATIONS / f"{name}.xml" for name in map(str.strip, names) if name]
    return data.read(path, files, class_names)


class _DataSet:
    """All annotation files below a folder, read once: only together they show which classes there are."""

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root = root
        self.files = files

    def read(self, path: Path, files: Sequence[Path], class_names: Sequence[str] | None) -> DetectionImages:
        """Images and objects of some of the files; ``path`` stands for them in messages."""
        faults = FaultCounter()
        ids = {name: number for number, name in enumerate(self._names, 1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, file in enumerate(files, 1):
            if file not in self._entries:
                faults.add("annotation file", file.relative_to(self.root).as_posix())
                continue
            image, objects = self._entries[file]
            images.append({"id": number, **image})
            for one in objects:
                box = {"bbox": self._counting.box(one["sides"])} if "sides" in one else {}
                annotations.append({"image_id": number, "category_id": ids.get(one["name"]), **one, **box})
        if not ids:
            reason = f": {faults.faults()[0]}" if faults.counts else "."
            raise UserError(f"{str(path)!r} has no object with a name{reason}")
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        return images_with_objects(content, self.root, path, class_names, faults, self._counting.reading)

    @cached_property
    def _counting(self) -> _Counting:
        """How the boxes of all files are counted; one of them may decide it."""
        before_1, beyond = dict[str, None](), dict[str, None]()
        num_boxes = num_fractions = 0
        for file, (image, objects) in self._entries.items():
            width, height = (_as_number(image[side]) for side in ("width", "height"))
            for sides in (one["sides"] for one in objects if "sides" in one):
                num_boxes += 1
                num_fractions += any(side % 1 for side in sides if isfinite(side))
                if any(0 <= side < 1 for side in sides[:2]):
                    before_1[file.name] = None
                if sides[2] == width + 1 or sides[3] == height + 1:
                    beyond[file.name] = None
        if before_1:
            return _Counting(0, 0, f"Edges of boxes are counted from 0, as some are below 1 ({_examples(before_1)}).")
        if beyond:
            reading = f"Edges of boxes are counted from 1, as some are 1 beyond their images ({_examples(beyond)})."
            return _Counting(1, 1, reading)
        if 2 * num_fractions > num_boxes:
            return _Counting(0, 0, "Edges of boxes are counted from 0, as most lie within pixels.")
        return _Counting(1, 0, "Pixels of boxes are counted from 1, as VOC does.")

    @cached_property
    def _names(self) -> list[str]:
        return sorted({one["name"] for _, objects in self._entries.values() for one in objects if one["name"]})

    @cached_property
    def _entries(self) -> dict[Path, tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Image and objects of each file that can be read."""
        entries = {}
        images = _ImagesBelow(self.root)
        for file in with_progress(self.files, self.root.name, "files"):
            try:
                annotation = _parse(file)
            except (OSError, ElementTree.ParseError, ValueError, LookupError):
                continue
            name = _text(annotation, "filename").replace("\\", "/").rpartition("/")[2]
            path = images.find(file.relative_to(self.root).as_posix(), name)
            image = {side: _text(annotation, f"size/{side}") for side in ("width", "height")}
            image["file_name"] = path or name or file.stem
            entries[file] = image, [_read_object(found) for found in annotation.iterfind("object")]
        return entries


@dataclass(frozen=True)
class _Counting:
    """What the numbers of boxes mean.

    Attributes:
        first: What left and upper edges of an image have.
        last: What right and lower edges have beyond its width and height.
        reading: What was assumed and why, in a sentence.
    """

    first: int
    last: int
    reading: str

    def box(self, sides: Sequence[float]) -> list[float]:
        """Left, top, width and height of a box with these ``_SIDES``."""
        left, top, right, bottom = sides
        left, top, right, bottom = left - self.first, top - self.first, right - self.last, bottom - self.last
        return [left, top, right - left, bottom - top]


def _examples(names: Mapping[str, None]) -> str:
    return listed(list(names), _NUM_EXAMPLES)


def _parse(path: Path) -> ElementTree.Element:
    """The annotation of a file.

    Raises:
        OSError: It is not there, or may not be read.
        ParseError, ValueError, LookupError: It is damaged, of another kind, in an unknown encoding, or declares
            entities, which could be made to exhaust the memory.
    """
    content = path.read_bytes()
    # whatever the encoding, UTF-16 too, this is how a declaration begins
    if b"<!DOCTYPE" in content.replace(b"\0", b""):
        raise ValueError("a document type")
    annotation = ElementTree.fromstring(content)
    if annotation.tag != "annotation":
        raise ValueError("no annotation")
    return annotation


def _read_object(found: ElementTree.Element) -> dict[str, Any]:
    """Name, sides of the box and, as some tools add it, outline of an object."""
    entry: dict[str, Any] = {"name": _text(found, "name"), "iscrowd": _text(found, "difficult") or 0}
    if found.find("bndbox") is not None:
        entry["sides"] = [_as_number(_text(found, f"bndbox/{side}")) for side in _SIDES]
    corners = found.find("polygon")
    if corners is not None:
        numbers = range(1, len(corners) // 2 + 1)
        entry["segmentation"] = [[_as_number(_text(corners, f"{axis}{number}")) for number in numbers for axis in "xy"]]
    return entry


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _as_number(text: str) -> float:
    """NaN if it is none, which counts as a fault."""
    try:
        return float(text)
    except ValueError:
        return nan


class _ImagesBelow:
    """Images below a folder, by their annotation files, whose folders are those of another machine and are not used."""

    def __init__(self, root: Path) -> None:
        self._paths = set(images_below(root))
        self._by_stem = {os.path.splitext(path)[0]: path for path in sorted(self._paths)}

    def find(self, annotation: str, name: str) -> str | None:
        """Path of an image from the folder.

        Args:
            annotation: Path of the annotation file.
            name: The image's name in it. It stays when files are renamed, so an image with the annotation file's own
                name is preferred.
        """
        place = PurePosixPath(annotation)
        folders = [place.parent]
        for depth, folder in enumerate(place.parent.parts):
            if folder.lower() == _ANNOTATIONS.lower():
                before, after = place.parent.parts[:depth], place.parent.parts[depth + 1 :]
                folders += [PurePosixPath(*before, images, *after) for images in _IMAGE_FOLDERS]
        names = [place.stem + os.path.splitext(name)[1], name]
        exact = (path for one in names for folder in folders if (path := str(folder / one)) in self._paths)
        of_stem = (self._by_stem.get(str(folder / place.stem)) for folder in folders)
        return next(exact, None) or next(filter(None, of_stem), None)
