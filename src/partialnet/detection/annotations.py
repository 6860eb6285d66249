"""Images and the objects on them, from one JSON file in the COCO format.

Faults in such files are common. Each is counted, and either mended or left out, so that whatever comes out can be
learnt from: boxes have positive width and height and lie within their image, labels are known, outlines can be filled.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.packed_names import PackedNames
from ..errors import UserError
from ..images import image_sizes, read_image
from .outlines import Outline, outline_area, usable_polygons, usable_run_lengths

#: What may be wrong, each as (of one, of several), with what was done about it.
FAULTS = {
    "image entry": (
        "entry of the image list lacks a whole number as its id or a file name and is left out",
        "entries of the image list lack a whole number as their id or a file name and are left out",
    ),
    "duplicate image": (
        "image has the id of an earlier one and is left out",
        "images have the id of an earlier one and are left out",
    ),
    "missing image": ("listed image is missing and left out", "listed images are missing and left out"),
    "unreadable image": (
        "image without a size in the list cannot be read and is left out",
        "images without a size in the list cannot be read and are left out",
    ),
    "annotation entry": (
        "entry of the annotation list is no annotation and is left out",
        "entries of the annotation list are no annotations and are left out",
    ),
    "unknown image": (
        "annotation belongs to an image that is not listed and is left out",
        "annotations belong to images that are not listed and are left out",
    ),
    "unknown category": (
        "annotation has an unknown category id and is left out",
        "annotations have an unknown category id and are left out",
    ),
    "duplicate annotation": (
        "annotation has the id of an earlier one; it is kept",
        "annotations have the id of an earlier one; they are kept",
    ),
    "box numbers": (
        "box is not four usable numbers and is left out",
        "boxes are not four usable numbers and are left out",
    ),
    "empty box": ("box has no area and is left out", "boxes have no area and are left out"),
    "box outside": (
        "box lies outside its image and is left out",
        "boxes lie outside their images and are left out",
    ),
    "box cut": (
        "box reaches outside its image and is cut at the edge for training",
        "boxes reach outside their images and are cut at the edge for training",
    ),
    "polygon": (
        "object has polygons of fewer than three points or without usable numbers, which are left out",
        "objects have polygons of fewer than three points or without usable numbers, which are left out",
    ),
    "run lengths": (
        "object has run lengths that do not fit its image and are left out",
        "objects have run lengths that do not fit their images and are left out",
    ),
    "no outline": (
        "object has no usable outline; its box stands in for its mask",
        "objects have no usable outline; their boxes stand in for their masks",
    ),
    "crowd": (
        "crowd is not learnt, but evaluation knows of it",
        "crowds are not learnt, but evaluation knows of them",
    ),
}
#: A box that reaches less than this outside, in pixels, is a matter of rounding.
_ROUNDING = 1.0
#: Numbers of boxes beyond this, in pixels, are mistakes.
_FARTHEST = 1e9
_NUM_EXAMPLES = 3
#: Names that are looked for to tell the folder of the images from others.
_NUM_PROBED = 50
#: Entries of the JSON file that say what is what; a set of images only has no objects to learn or compare with.
_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Fault:
    """One kind of fault of a data set.

    Attributes:
        kind: A key of ``FAULTS``.
        count: How often it was found.
        examples: Names of some of the images.
    """

    kind: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.count:,} {FAULTS[self.kind][self.count > 1]}"
        return f"{text} ({', '.join(self.examples)}{', …' if self.count > len(self.examples) else ''})."


class _FaultCounter:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def add(self, kind: str, example: object) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < _NUM_EXAMPLES:
            self.examples[kind][_short(example)] = None

    def faults(self) -> tuple[Fault, ...]:
        """In the order of ``FAULTS``."""
        return tuple(Fault(kind, self.counts[kind], tuple(self.examples[kind])) for kind in FAULTS if self.counts[kind])


@dataclass(frozen=True)
class Instances:
    """Objects on one image, N of them.

    Attributes:
        boxes: Left, top, right and bottom in pixels of the image, within it, (N, 4), float64.
        labels: 1 to the number of classes, as torchvision's detectors want them, (N,), int64.
        areas: As the file gives them, in pixels, (N,), float64.
        crowd: Which are groups of objects instead of single ones, (N,), bool.
        outlines: N polygons or run lengths.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    outlines: tuple[Outline, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def single(self) -> Instances:
        """Without crowds."""
        keep = ~self.crowd
        outlines = tuple(outline for outline, kept in zip(self.outlines, keep, strict=True) if kept)
        return Instances(self.boxes[keep], self.labels[keep], self.areas[keep], self.crowd[keep], outlines)


class DetectionImages:
    """Images with the objects on them, opened when they are asked for.

    An object of this kind is sent to reading processes and can be pickled; everything about the objects is packed into
    a few arrays.

    Attributes:
        class_names: Name of label 1, 2, ….
        category_ids: The file's category id of label 1, 2, …, (number of classes,), int64.
        image_ids: The file's id of each image, (number of images,), int64.
        sizes: Height and width of each image as its annotations mean them, (number of images, 2), int64.
        num_instances: Objects on each image that are not crowds, (number of images,), int64.
        has_outlines: Whether any object has an outline of its own, so that masks can be learnt and evaluated.
        faults: What was wrong with the file.
    """

    def __init__(
        self,
        root: Path,
        class_names: tuple[str, ...],
        category_ids: Sequence[int],
        images: Sequence[tuple[int, str, int, int]],
        annotations: Sequence[tuple[int, list[float], list[float], int, float, bool, str]],
        has_outlines: bool,
        faults: tuple[Fault, ...],
    ) -> None:
        """Pack what was read.

        Args:
            root: Folder of the images.
            class_names: Name of each label.
            category_ids: The file's id of each label.
            images: Id, path below the root, height and width of each.
            annotations: Place of the image, box as read and box within the image (left, top, right, bottom), label,
                area, whether it is a crowd, and outline as JSON; sorted by the place of the image.
            has_outlines: See the class.
            faults: See the class.
        """
        self.root = root
        self.class_names = class_names
        self.category_ids = np.array(category_ids, np.int64)
        self.image_ids = np.array([image[0] for image in images], np.int64)
        self.sizes = np.array([image[2:] for image in images], np.int64).reshape(-1, 2)
        self.has_outlines = has_outlines
        self.faults = faults
        self._names = PackedNames(image[1] for image in images)
        places = np.array([annotation[0] for annotation in annotations], np.int64)
        self._ends = np.searchsorted(places, np.arange(len(images)), side="right")
        self._raw_boxes = np.array([annotation[1] for annotation in annotations], float).reshape(-1, 4)
        self._boxes = np.array([annotation[2] for annotation in annotations], float).reshape(-1, 4)
        self._labels = np.array([annotation[3] for annotation in annotations], np.int64)
        self._areas = np.array([annotation[4] for annotation in annotations], float)
        self._crowd = np.array([annotation[5] for annotation in annotations], bool)
        self._outlines = PackedNames(annotation[6] for annotation in annotations)
        self.num_instances = np.bincount(places[~self._crowd], minlength=len(images))

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """Path of image ``index`` below the root."""
        return self._names[index]

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` as 8-bit RGB, turned as its annotations mean it.

        Tools that label photographs of phones give their boxes for the upright photograph or for the stored one; which,
        the size in the file tells. Where both have the same size, the photograph is taken upright.

        Args:
            index: Number of the image.
            min_side: What height and width need at least; a larger JPEG may be read in a smaller size.

        Raises:
            UserError: It cannot be read, or has not the size that the file gives.
        """
        path = self.root / self.name(index)
        stored, upright = image_sizes(path)
        height, width = self.sizes[index].tolist()
        if (width, height) not in (upright, stored):
            raise UserError(
                f"{str(path)!r} has {upright[0]}×{upright[1]} pixels, but its annotations are for {width}×{height}."
            )
        return read_image(path, min_side, upright=(width, height) == upright)

    def instances(self, index: int) -> Instances:
        """The objects on image ``index``, crowds too."""
        of_image = self._annotations(index)
        outlines = tuple(json.loads(self._outlines[number]) for number in range(of_image.start, of_image.stop))
        return Instances(
            self._boxes[of_image], self._labels[of_image], self._areas[of_image], self._crowd[of_image], outlines
        )

    def ground_truth(self) -> dict[str, Any]:
        """Everything in the COCO format, as an evaluator wants it: boxes as they were read, ids of annotations from 1.

        An id of 0, which some tools give, means "no match" to the reference evaluator.
        """
        images = [
            {"id": int(image_id), "file_name": self.name(index), "height": int(size[0]), "width": int(size[1])}
            for index, (image_id, size) in enumerate(zip(self.image_ids, self.sizes, strict=True))
        ]
        annotations = []
        for index, image_id in enumerate(self.image_ids.tolist()):
            of_image = self._annotations(index)
            for number in range(of_image.start, of_image.stop):
                left, top, right, bottom = self._raw_boxes[number].tolist()
                annotations.append(
                    {
                        "id": number + 1,
                        "image_id": image_id,
                        "category_id": int(self.category_ids[self._labels[number] - 1]),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": float(self._areas[number]),
                        "iscrowd": int(self._crowd[number]),
                        "segmentation": json.loads(self._outlines[number]),
                    }
                )
        names = zip(self.category_ids.tolist(), self.class_names, strict=True)
        categories = [{"id": category_id, "name": name} for category_id, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _annotations(self, index: int) -> slice:
        return slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))


class DetectionSubset(DetectionImages):
    """Some of other images, in the order of ``indices``."""

    def __init__(self, images: DetectionImages, indices: Sequence[int] | np.ndarray) -> None:
        self.__dict__.update(images.__dict__)
        self.whole = images
        self.indices = np.asarray(indices, np.int64)
        self.image_ids, self.sizes, self.num_instances = (
            array[self.indices] for array in (images.image_ids, images.sizes, images.num_instances)
        )

    def name(self, index: int) -> str:
        """Path of image ``index`` of the subset below the root."""
        return self.whole.name(int(self.indices[index]))

    def _annotations(self, index: int) -> slice:
        return self.whole._annotations(int(self.indices[index]))


def read_annotations(path: Path, folders: Sequence[Path], class_names: Sequence[str] | None = None) -> DetectionImages:
    """Images and objects of one JSON file.

    Args:
        path: The file.
        folders: Where its images may be; the folder that holds most of the first ones is taken.
        class_names: The classes that are known already, in the order of their labels; None takes the file's categories
            in the order of their ids.

    Raises:
        UserError: The file is missing, damaged or of another format, has no image or no object that can be used, or
            categories other than ``class_names``.
    """
    content = _read_json(path)
    faults = _FaultCounter()
    labels, names, category_ids = _read_categories(content["categories"], content["annotations"], path, class_names)
    root = _choose_folder(content["images"], folders, path)
    images, places, listed = _read_images(content["images"], root, faults)
    if not images:
        reason = f": {faults.faults()[0]}" if faults.counts else "."
        raise UserError(f"No image of {str(path)!r} can be used{reason}")
    annotations = []
    seen: set[Any] = set()
    has_outlines = False
    progress = tqdm(
        content["annotations"],
        f"reading {path.name}",
        unit=" objects",
        delay=2,
        leave=False,
        dynamic_ncols=True,
        disable=None,  # shows a bar on a terminal, but not in a file
    )
    for entry in progress:
        if not isinstance(entry, dict):
            faults.add("annotation entry", entry)
            continue
        place = places.get(_whole_number(entry.get("image_id")))
        if place is None:
            # what belongs to an image that was left out is no further fault
            if _whole_number(entry.get("image_id")) not in listed:
                faults.add("unknown image", f"image id {_short(entry.get('image_id'))}")
            continue
        _, name, height, width = images[place]
        label = labels.get(_whole_number(entry.get("category_id")))
        if label is None:
            faults.add("unknown category", f"category id {_short(entry.get('category_id'))} on {name}")
            continue
        if (annotation_id := _whole_number(entry.get("id"))) is not None:
            if annotation_id in seen:
                faults.add("duplicate annotation", f"id {annotation_id}")
            seen.add(annotation_id)
        outline = _read_outline(entry.get("segmentation"), height, width, name, faults)
        box = _read_box(entry.get("bbox"), outline, height, width, name, faults)
        if box is None:
            continue
        inside = _cut(box, height, width)
        crowd = bool(entry.get("iscrowd"))
        if crowd:
            faults.add("crowd", name)
        has_outlines = has_outlines or outline is not None
        if outline is None:
            left, top, right, bottom = inside
            outline = [[left, top, right, top, right, bottom, left, bottom]]
            faults.add("no outline", name)
        area = _read_area(entry.get("area"), outline, height, width)
        annotations.append((place, box, inside, label, area, crowd, json.dumps(outline)))
    if not annotations:
        found = " ".join(map(str, faults.faults()))
        raise UserError(f"{str(path)!r} has no object that can be used{': ' + found if found else '.'}")
    annotations.sort(key=lambda annotation: annotation[0])
    return DetectionImages(root, names, category_ids, images, annotations, has_outlines, faults.faults())


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"There is no file {str(path)!r}.") from None
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{str(path)!r} is no complete JSON file{place}; it may have been cut off.") from None
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} is no COCO file: it should be an object with {', '.join(_LISTS)}.")
    for name in _LISTS:
        if not isinstance(content.get(name), list):
            raise UserError(f"{str(path)!r} is no COCO file of objects: it has no list {name!r}.")
    return content


def _read_categories(
    entries: list[Any], annotations: list[Any], path: Path, class_names: Sequence[str] | None
) -> tuple[dict[int | None, int], tuple[str, ...], list[int]]:
    """Label of each category id, name of each label, category id of each label."""
    found: dict[int, str] = {}
    for entry in entries:
        category_id = _whole_number(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if category_id is None or not isinstance(name, str) or not name.strip():
            raise UserError(f"A category of {str(path)!r} lacks a whole number as its id, or a name: {_short(entry)}.")
        if found.get(category_id, name.strip()) != name.strip():
            raise UserError(f"{str(path)!r} has two categories of id {category_id}: {found[category_id]!r}, {name!r}.")
        found[category_id] = name.strip()
    if len(set(found.values())) < len(found):
        # a superior category may have the name of its only member, and then no object of its own
        used = {_whole_number(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
        twice = {name for name, count in Counter(found.values()).items() if count > 1}
        found = {number: name for number, name in found.items() if name not in twice or number in used}
        if len(set(found.values())) < len(found):
            raise UserError(f"{str(path)!r} has several categories of the name {sorted(twice)[0]!r}.")
    if not found:
        raise UserError(f"{str(path)!r} has no categories.")
    ids = sorted(found)
    if class_names is None:
        names = tuple(found[number] for number in ids)
        return {number: label for label, number in enumerate(ids, 1)}, names, ids
    unknown = [name for name in found.values() if name not in class_names]
    if unknown:
        raise UserError(
            f"{str(path)!r} has a category {unknown[0]!r}, which is not among the {len(class_names)} known ones "
            f"({', '.join(class_names[:5])}{', …' if len(class_names) > 5 else ''})."
        )
    number_of = {name: number for number, name in found.items()}
    # classes that this file lacks get ids that it does not use
    free = iter(number for number in range(1, len(found) + len(class_names) + 1) if number not in found)
    of_labels = [number_of[name] if name in number_of else next(free) for name in class_names]
    labels: dict[int | None, int] = {number: label for label, number in enumerate(of_labels, 1) if number in found}
    return labels, tuple(class_names), of_labels


def _choose_folder(entries: list[Any], folders: Sequence[Path], path: Path) -> Path:
    if len(folders) == 1:
        return folders[0]
    listed = [entry.get("file_name") for entry in entries[:_NUM_PROBED] if isinstance(entry, dict)]
    names = [name for name in listed if isinstance(name, str) and name]
    files = [FilesBelow(folder) for folder in folders]
    found = [sum(below.find(name) is not None for name in names) for below in files]
    if names and not any(found):
        where = ", ".join(repr(str(folder)) for folder in folders)
        raise UserError(
            f"The images of {str(path)!r}, such as {_short(names[0])!r}, are not in {where}; name their folder as "
            f"IMAGES,JSON."
        )
    return folders[found.index(max(found))]


def _read_images(
    entries: list[Any], root: Path, faults: _FaultCounter
) -> tuple[list[tuple[int, str, int, int]], dict[int | None, int], set[int]]:
    """Id, path, height and width of each image that is there; the place of each id; all ids listed."""
    images: list[tuple[int, str, int, int]] = []
    places: dict[int | None, int] = {}
    listed: set[int] = set()
    files = FilesBelow(root)
    for entry in entries:
        image_id = _whole_number(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if image_id is None or not isinstance(name, str) or not name:
            faults.add("image entry", entry)
            continue
        if image_id in listed:
            faults.add("duplicate image", name)
            continue
        listed.add(image_id)
        path = files.find(name)
        if path is None:
            faults.add("missing image", name)
            continue
        height, width = _whole_number(entry.get("height")), _whole_number(entry.get("width"))
        if not height or not width or min(height, width) < 1:
            try:
                _, (width, height) = image_sizes(root / path)
            except UserError:
                faults.add("unreadable image", name)
                continue
        places[image_id] = len(images)
        images.append((image_id, path, height, width))
    return images, places, listed


class FilesBelow:
    """Files in and below a folder, by the names that COCO files have for them. Each folder is listed once.

    A name may be a path of the machine where the images were labelled, so its last part is looked for too. Nothing
    outside the folder is found.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> str | None:
        """Path below the root, or None."""
        path = PurePosixPath(name.replace("\\", "/"))
        if not path.is_absolute() and ".." not in path.parts and self._has(path):
            return str(path)
        return path.name if self._has(PurePosixPath(path.name)) else None

    def _has(self, path: PurePosixPath) -> bool:
        folder = str(path.parent)
        if folder not in self._listed:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._listed[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):
                self._listed[folder] = frozenset()
        return path.name in self._listed[folder]


def _read_outline(value: Any, height: int, width: int, name: str, faults: _FaultCounter) -> Outline | None:
    """What can be used of an outline."""
    if isinstance(value, dict):
        if usable_run_lengths(value, height, width):
            return {"size": value["size"], "counts": value["counts"]}
        faults.add("run lengths", name)
        return None
    if not isinstance(value, list) or not value:
        return None
    # some tools write a single polygon without the list around it
    polygons = [value] if not isinstance(value[0], (list, dict)) else value
    usable = usable_polygons(polygons)
    if len(usable) < len(polygons):
        faults.add("polygon", name)
    return usable or None


def _read_box(
    value: Any, outline: Outline | None, height: int, width: int, name: str, faults: _FaultCounter
) -> list[float] | None:
    """Left, top, right and bottom; a box that is not given is that of the polygons."""
    if value is None and isinstance(outline, list):
        points = np.concatenate([np.array(polygon, float).reshape(-1, 2) for polygon in outline])
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    else:
        if (
            not isinstance(value, list)
            or len(value) != 4
            or not all(type(number) in (int, float) and abs(number) <= _FARTHEST for number in value)
        ):
            faults.add("box numbers", name)
            return None
        left, top, right, bottom = value[0], value[1], value[0] + value[2], value[1] + value[3]
    if right <= left or bottom <= top:
        faults.add("empty box", name)
        return None
    inside = _cut([left, top, right, bottom], height, width)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        faults.add("box outside", name)
        return None
    if min(left, top, width - right, height - bottom) <= -_ROUNDING:
        faults.add("box cut", name)
    return [float(left), float(top), float(right), float(bottom)]


def _cut(box: Sequence[float], height: int, width: int) -> list[float]:
    limits = (width, height, width, height)
    return [float(min(max(value, 0.0), limit)) for value, limit in zip(box, limits, strict=True)]


def _read_area(value: Any, outline: Outline, height: int, width: int) -> float:
    """As it is given, else that of the mask."""
    given = type(value) in (int, float) and math.isfinite(value) and value > 0
    return float(value) if given else outline_area(outline, height, width)


def _whole_number(value: Any) -> int | None:
    """A number that may be written as a text or with a decimal point."""
    try:
        number = int(value)
        fits = not isinstance(value, bool) and number == float(value) and abs(number) < 2**53
    except (TypeError, ValueError, OverflowError):
        return None
    return number if fits else None


def _short(value: object) -> str:
    """A value of the file as it may stand in a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 60 else f"{text[:59]}…"


def faults_as_json(faults: Sequence[Fault]) -> dict[str, Mapping[str, Any]]:
    """Number and examples of each kind of fault."""
    return {fault.kind: {"count": fault.count, "examples": list(fault.examples)} for fault in faults}
