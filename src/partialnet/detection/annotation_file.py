"""Lists of images and objects in the COCO format, from a JSON file or from a reader of another format.

Faults in them are common. Each is counted, and either mended or left out, so that whatever comes out can be learnt
from: boxes have positive width and height and lie within their image, labels are known, outlines can be filled.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from partialnet.errors import UserError
from partialnet.images import image_sizes

from .annotations import DetectionImages, ListedImage, ListedObject
from .faults import FaultCounter, shortened
from .listed_files import FilesBelow, listed_path, shared_paths
from .outlines import Outline, outline_area, outline_box, run_lengths, usable_polygons, usable_run_lengths

#: A box that reaches less than this outside, in pixels, is a matter of rounding.
_ROUNDING = 1.0
#: Numbers of boxes beyond this, in pixels, are mistakes.
_FARTHEST = 1e9
#: File names that are looked up to find the folder that holds the images.
_NUM_PROBED = 50
#: Lists that a COCO file needs; without annotations there is nothing to learn or compare with.
_LISTS = ("images", "annotations", "categories")
#: These lists by their names.
Lists = dict[str, list[Any]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Part:
    """A part of a data set in any format, before it is read.

    Attributes:
        path: The file or folder that says what belongs to it.
        read: Reads it; takes the classes that are known already, or None, as :func:`read_annotations` does.
    """

    path: Path
    read: Callable[[Sequence[str] | None], DetectionImages]


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
    content = read_lists(path)
    root = _choose_folder(content["images"], folders, path)
    return images_with_objects(content, root, path, class_names, FaultCounter())


def images_with_objects(
    content: Lists,
    root: Path,
    path: Path,
    class_names: Sequence[str] | None,
    faults: FaultCounter,
    reading: str = "",
) -> DetectionImages:
    """What can be used of the lists of images, annotations and categories.

    Args:
        content: The lists, as :func:`read_lists` returns them.
        root: The folder below which the images are.
        path: Where the lists come from, for messages.
        class_names: See :func:`read_annotations`.
        faults: What was wrong before; further faults are added.
        reading: See :class:`DetectionImages`.

    Raises:
        UserError: See :func:`read_annotations`.
    """
    used = {_whole_number(entry.get("category_id")) for entry in content["annotations"] if isinstance(entry, dict)}
    categories = _read_categories(content["categories"], used, path)
    names = tuple(categories.values()) if class_names is None else tuple(class_names)
    category_ids = list(categories) if class_names is None else _ids_of(names, categories, used, path)
    images = _read_images(content["images"], root, faults)
    if not images.usable:
        reason = f": {faults.faults()[0]}" if faults.counts else "."
        raise UserError(f"No image of {str(path)!r} can be used{reason}")
    labels: dict[int | None, int] = {
        number: label for label, number in enumerate(category_ids, 1) if number in categories
    }
    reader = _ObjectReader(images, labels, faults)
    entries = with_progress(content["annotations"], path.name, "objects")
    objects = [found for entry in entries if (found := reader.read(entry)) is not None]
    if not objects:
        reasons = " ".join(map(str, faults.faults()))
        raise UserError(f"{str(path)!r} has no object that can be used{': ' + reasons if reasons else '.'}")
    if not reader.has_outlines:
        faults.forget("no outline")  # data with boxes only lacks nothing
    if all(max(found.raw_box) <= 1 for found in objects):
        raise UserError(
            f"All boxes of {str(path)!r} lie within the first pixels of their images, as shares of width and height "
            "would; give them in pixels."
        )
    objects.sort(key=lambda found: found.image)
    return DetectionImages(
        root, names, category_ids, images.usable, objects, reader.has_outlines, faults.faults(), reading
    )


def with_progress(entries: Iterable[_T], name: str, unit: str) -> Iterable[_T]:
    """The entries of what is called ``name``, with a bar on a terminal while they are read, but not in a file."""
    bar: Iterable[_T] = tqdm(
        entries, f"reading {name}", unit=f" {unit}", delay=2, leave=False, dynamic_ncols=True, disable=None
    )
    return bar


def read_lists(path: Path) -> Lists:
    """The lists of a COCO file: ``images``, ``annotations`` and ``categories``, their entries as they are.

    Raises:
        UserError: The file is missing, no JSON, or not of that format.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"There is no file {str(path)!r}.") from None
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} is not written in UTF-8, as JSON must be; save it anew so.") from None
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{str(path)!r} is not a complete JSON file{place}; it may have been cut off.") from None
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} is not a COCO file: it should be an object with {', '.join(_LISTS)}.")
    for name in _LISTS:
        if not isinstance(content.get(name), list):
            raise UserError(f"{str(path)!r} is not a COCO file of objects: it has no list {name!r}.")
    return content


def _read_categories(entries: list[Any], used: set[int | None], path: Path) -> dict[int, str]:
    """Name of each category by its id, in the order of the ids.

    Args:
        entries: The list of categories.
        used: Ids of the categories that objects are of.
        path: The file, for messages.
    """
    found: dict[int, str] = {}
    for entry in entries:
        category_id = _whole_number(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if category_id is None or not isinstance(name, str) or not name.strip():
            raise UserError(
                f"A category of {str(path)!r} lacks a whole number as its id, or a name: {shortened(entry)}."
            )
        if found.get(category_id, name.strip()) != name.strip():
            raise UserError(f"{str(path)!r} has two categories of id {category_id}: {found[category_id]!r}, {name!r}.")
        found[category_id] = name.strip()
    if len(set(found.values())) < len(found):
        # a supercategory may share the name of its only category; then no object is of it
        twice = {name for name, count in Counter(found.values()).items() if count > 1}
        found = {number: name for number, name in found.items() if name not in twice or number in used}
        if len(set(found.values())) < len(found):
            raise UserError(f"{str(path)!r} has several categories of the name {sorted(twice)[0]!r}.")
    if not found:
        raise UserError(f"{str(path)!r} has no categories.")
    return dict(sorted(found.items()))


def _ids_of(class_names: Sequence[str], categories: dict[int, str], used: set[int | None], path: Path) -> list[int]:
    """Category id of each class; classes that a file lacks get ids that it does not list."""
    # a file may list a whole vocabulary; categories without objects do no harm
    unknown = [name for number, name in categories.items() if name not in class_names and number in used]
    if unknown:
        raise UserError(
            f"{str(path)!r} has a category {unknown[0]!r}, which is not among the {len(class_names)} known ones "
            f"({', '.join(class_names[:5])}{', …' if len(class_names) > 5 else ''})."
        )
    number_of = {name: number for number, name in categories.items()}
    free = (number for number in range(1, len(categories) + len(class_names) + 1) if number not in categories)
    return [number_of[name] if name in number_of else next(free) for name in class_names]


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
            f"The images of {str(path)!r}, such as {shortened(names[0])!r}, are not in {where}; name their folder as "
            f"IMAGES,JSON."
        )
    return folders[found.index(max(found))]


@dataclass
class _ListedImages:
    """The images of a file.

    Attributes:
        usable: Those that are there.
        places: Place of each id among them.
        ids: All ids that are listed.
    """

    usable: list[ListedImage] = field(default_factory=list)
    places: dict[int | None, int] = field(default_factory=dict)
    ids: set[int | None] = field(default_factory=set)


def _read_images(entries: list[Any], root: Path, faults: FaultCounter) -> _ListedImages:
    images = _ListedImages()
    taken: set[str] = set()
    files = FilesBelow(root)
    names = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    shared = shared_paths(name for name in names if isinstance(name, str))
    for entry in entries:
        image_id = _whole_number(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if image_id is None or not isinstance(name, str) or not name:
            faults.add("image entry", entry)
            continue
        if image_id in images.ids:
            faults.add("duplicate image", name)
            continue
        images.ids.add(image_id)
        path = files.find(name)
        if path is None:
            faults.add("missing image", name)
            continue
        if path in shared and path != listed_path(name):
            faults.add("shared file", name)
            continue
        height, width = _whole_number(entry.get("height")), _whole_number(entry.get("width"))
        if not height or not width or min(height, width) < 1:
            try:
                _, (width, height) = image_sizes(root / path)
            except UserError:
                faults.add("unreadable image", name)
                continue
        if path in taken:
            faults.add("repeated file", name)
        taken.add(path)
        images.places[image_id] = len(images.usable)
        images.usable.append(ListedImage(image_id, path, height, width))
    return images


class _ObjectReader:
    """Reads one entry of the annotation list after the other.

    Attributes:
        has_outlines: Whether any object so far that is no crowd has an outline of its own.
    """

    def __init__(self, images: _ListedImages, labels: Mapping[int | None, int], faults: FaultCounter) -> None:
        self.images = images
        self.labels = labels
        self.faults = faults
        self.has_outlines = False
        self._ids: set[int] = set()

    def read(self, entry: Any) -> ListedObject | None:
        """The object, mended where it can be; None if it cannot be used."""
        faults = self.faults
        if not isinstance(entry, dict):
            faults.add("annotation entry", entry)
            return None
        image_id = _whole_number(entry.get("image_id"))
        place = self.images.places.get(image_id)
        if place is None:
            # an object of an image that was left out is no further fault
            if image_id not in self.images.ids:
                faults.add("unknown image", f"image id {shortened(entry.get('image_id'))}")
            return None
        _, name, height, width = self.images.usable[place]
        label = self.labels.get(_whole_number(entry.get("category_id")))
        if label is None:
            faults.add("unknown category", f"category id {shortened(entry.get('category_id'))} on {name}")
            return None
        if (annotation_id := _whole_number(entry.get("id"))) is not None:
            if annotation_id in self._ids:
                faults.add("duplicate annotation", f"id {annotation_id}")
            self._ids.add(annotation_id)
        outline = _read_outline(entry.get("segmentation"), height, width, name, faults)
        box = _read_box(entry.get("bbox"), outline, height, width, name, faults)
        if box is None:
            return None
        crowd = entry.get("iscrowd") is True or bool(_whole_number(entry.get("iscrowd", 0)))
        if crowd:
            faults.add("crowd", name)
        inside = _cut(box, height, width)
        if outline is None:
            left, top, right, bottom = inside
            outline = [[left, top, right, top, right, bottom, left, bottom]]
            faults.add("no outline", name)
        elif not crowd:
            self.has_outlines = True
        area = _read_area(entry.get("area"), outline, height, width)
        return ListedObject(place, box, inside, label, area, crowd, json.dumps(outline))


def _read_outline(value: Any, height: int, width: int, name: str, faults: FaultCounter) -> Outline | None:
    """What can be used of an outline."""
    if isinstance(value, dict):
        if not usable_run_lengths(value, height, width):
            faults.add("run lengths", name)
            return None
        counts = value["counts"]
        # numbers may be written as 5.0, which the evaluator does not take
        return {"size": [height, width], "counts": counts if isinstance(counts, str) else run_lengths(counts).tolist()}
    if not isinstance(value, list) or not value:
        return None
    # some tools write a single polygon without the list around it
    polygons = [value] if not isinstance(value[0], (list, dict)) else value
    usable = usable_polygons(polygons)
    if len(usable) < len(polygons):
        faults.add("polygon", name)
    return usable or None


def _read_box(
    value: Any, outline: Outline | None, height: int, width: int, name: str, faults: FaultCounter
) -> list[float] | None:
    """Left, top, right and bottom; a box that is not given is that of the outline."""
    if value in (None, []) and outline is not None:
        left, top, right, bottom = outline_box(outline)
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
