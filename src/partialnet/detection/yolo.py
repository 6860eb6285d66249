"""Folders in the YOLO format of Ultralytics: a text file for each image, and a YAML file of parts and class names.

A line of the text file is ``class x y width height``, the middle and the size of a box, or ``class x y x y x y …``, the
corners of an outline; both as shares of the width and height of the upright image. An image without a file has no
objects.

Source: https://docs.ultralytics.com/datasets/detect and https://docs.ultralytics.com/datasets/segment
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from partialnet.data.splits import HELD_OUT, part_of
from partialnet.errors import UserError
from partialnet.images import image_sizes, images_below
from partialnet.messages import listed, yaml_problem

from .annotation_file import Part, images_with_objects, with_progress
from .annotations import DetectionImages
from .faults import FaultCounter
from .listed_files import FilesBelow, listed_path, possible_paths

#: Where annotations are looked for, in words.
LAYOUTS = "the YOLO format: a data.yaml, or images/ and labels/ with a classes.txt"
#: How the files that name parts and classes end.
SUFFIXES = (".yaml", ".yml")
#: What such a file has, unlike other YAML files.
_ENTRIES = re.compile(rb"^(names|train|val)\s*:", re.MULTILINE)
#: How the file that Ultralytics, Roboflow and CVAT write is called, without its ending.
_USUAL_NAMES = ("data", "dataset")
#: Class names, one a line, as LabelImg and Label Studio write them; Darknet's, from CVAT and Roboflow.
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
#: Larger numbers are no shares of an image, even where an object is far larger than what the image shows of it.
_LARGEST_SHARE = 10


def recognises(root: Path) -> bool:
    """Whether a folder is in this format, and says what its classes are called."""
    return bool(_yaml_files(root)) or (bool(_class_files(root)) and _has_labels(root))


def seems_meant(root: Path) -> bool:
    """Whether a folder has something of this format, though its classes may have no names."""
    return bool(_usual(_files_called_yaml(root))) or _has_labels(root)


def _has_labels(root: Path) -> bool:
    """Whether an image of the folder has a text file in the place of this format."""
    return any(os.path.isfile(_label_file(os.path.abspath(root / name))) for name in images_below(root))


def parts_of_folder(root: Path) -> dict[str, Part]:
    """The parts of a folder: "train", "val", …, or "" for images that belong to none.

    Raises:
        UserError: There are no class names, or several files of them.
    """
    files = _yaml_files(root)
    files = _usual(files) or files  # the usual names beat all others
    if len(files) > 1:
        there = listed([file.name for file in files])
        raise UserError(f"Folder {str(root)!r} has several YAML files ({there}); give the right one itself.")
    if files:
        return parts_of_yaml(files[0])
    class_files = _class_files(root)
    if not class_files:
        for file in _usual(_files_called_yaml(root)):
            return parts_of_yaml(file)  # which says what is wrong with it
        raise UserError(
            f"Folder {str(root)!r} has labels, but no names of their classes; add a data.yaml with a line such as "
            f"names: [cat, dog], or a {_CLASS_FILES[0]} with one name a line."
        )
    names = [_lines_of_names(file) for file in class_files]
    for file, others in zip(class_files, names, strict=True):
        if others != names[0]:
            raise UserError(
                f"{str(class_files[0])!r} and {str(file)!r} name the classes differently, so that a number means one "
                "class here and another there; number them alike and give both folders the same file."
            )
    return _parts_by_folders(root, _Classes(class_files[0], dict(enumerate(names[0]))))


def _lines_of_names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} is not written in UTF-8; save it anew so.") from None


def parts_of_yaml(path: Path) -> dict[str, Part]:
    """The parts that a YAML file names; if it names none, those of the folders beside it.

    Raises:
        UserError: The file cannot be read, or has no class names.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not a YAML file: {yaml_problem(error)}.") from None
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    if not names or not isinstance(names, (list, dict)):
        raise UserError(f"{str(path)!r} has no names of classes; add a line such as names: [cat, dog].")
    numbered = names if isinstance(names, dict) else dict(enumerate(names))
    classes = _Classes(path, numbered, has_keypoints="kpt_shape" in content)
    parts = {}
    for name in ("train", *HELD_OUT):
        if source := content.get(name):
            sources = source if isinstance(source, list) else [source]
            parts[name] = _part([_find(str(one), path, content) for one in sources], classes)
    return parts or _parts_by_folders(path.parent, classes)


@dataclass(frozen=True)
class _Classes:
    """What is known of the labels.

    Attributes:
        path: The file that says so.
        names: By class number.
        has_keypoints: Whether a line goes on with the points of a pose behind the box.
    """

    path: Path
    names: Mapping[Any, Any]
    has_keypoints: bool = False


def _yaml_files(root: Path) -> list[Path]:
    """Those that name parts or classes."""
    found = []
    for path in _files_called_yaml(root):
        with suppress(OSError):  # a file of others
            if _ENTRIES.search(path.read_bytes()):
                found.append(path)
    return found


def _files_called_yaml(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _usual(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.stem in _USUAL_NAMES]


def _class_files(root: Path) -> list[Path]:
    """Those of the likeliest place; there are several where each part has its own."""
    for place in ("", "labels", "labels/*", "*/labels", "*"):
        for name in _CLASS_FILES:
            if found := sorted(root.glob(f"{place}/{name}".lstrip("/"))):
                return found
    return []


def _find(source: str, path: Path, content: Mapping[str, Any]) -> Path:
    """What a YAML file names, also with folders of another machine; where it should be if it is not there."""
    places = [path.parent / source]
    if base := str(content.get("path") or ""):
        places = [path.parent / base / source, Path(base) / source, *places]
    # also Ultralytics leaves out a "../" that leads nowhere; of "train/images" not only "images" may remain
    places += [path.parent / rest for rest in possible_paths(source) if part_of(Path(rest)) == part_of(Path(source))]
    return next((place for place in places if place.exists()), places[0])


def _parts_by_folders(root: Path, classes: _Classes) -> dict[str, Part]:
    """``images/train`` or ``train/images`` or ``train``, and others of such names; else all images."""
    parts: dict[str, Path] = {}
    for pattern in ("images/*", "*/images", "*"):
        for folder in sorted(root.glob(pattern)):
            if folder.is_dir() and (name := part_of(folder.relative_to(root))):
                parts.setdefault(name, folder)
    if not parts:
        parts[""] = root / "images" if (root / "images").is_dir() else root
    return {name: _part([folder], classes) for name, folder in parts.items()}


def _part(sources: list[Path], classes: _Classes) -> Part:
    path = sources[0] if len(sources) == 1 else classes.path
    return Part(path, lambda class_names: _read(sources, path, classes, class_names))


def _read(sources: Sequence[Path], path: Path, classes: _Classes, class_names: Sequence[str] | None) -> DetectionImages:
    """Images and objects of a part, whose images are in folders or in lists of them."""
    files = list(dict.fromkeys(file for source in sources for file in _image_files(source, classes.path)))
    # names of images begin here; which ones are held out follows from them
    root = os.path.commonpath(
        [os.path.abspath(source) for source in sources if source.is_dir()]
        + [os.path.dirname(file) for source in sources if not source.is_dir() for file in files]
    )
    images: list[dict[str, Any]] = []
    annotations: list[Any] = []
    faults = FaultCounter()
    num_labelled = 0
    for number, file in enumerate(with_progress(files, path.name, "images"), 1):
        name = os.path.relpath(file, root)
        entry: dict[str, Any] = {"id": number, "file_name": name}
        images.append(entry)
        lines = _lines(_label_file(file))
        num_labelled += lines is not None
        try:
            _, (width, height) = image_sizes(file)
        except UserError:
            continue  # it is tried again, and counted as a fault, where images without a size are
        entry.update(width=width, height=height)
        for line in filter(str.strip, lines or ()):
            read = _read_line(line, classes.has_keypoints)
            if read is None:
                annotations.append(f"{name}: {line}")
            elif any(abs(share) > _LARGEST_SHARE for share in read[1]):
                faults.add("pixels", name)
            else:
                annotations.append({"image_id": number, **_object_of(*read, width, height)})
    if not num_labelled:
        raise UserError(f"No image of {str(path)!r} has a file of labels, such as {_label_file(files[0])!r}.")
    # YAML takes a name such as 7 for a number
    names = {number: str(name) if type(name) in (int, float) else name for number, name in classes.names.items()}
    for number, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise UserError(
                f"Class {number!r} of {str(classes.path)!r} has {name!r} for a name; give it one, in quotes if YAML "
                "takes it for something else, as it does with yes, no and null."
            )
    categories = [{"id": number, "name": name} for number, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return images_with_objects(content, Path(root), path, class_names, faults)


def _image_files(source: Path, named_by: Path) -> Iterator[str]:
    """Absolute paths of the images in a folder or a list, also of those that are not there."""
    folder = os.path.abspath(source if source.is_dir() else source.parent)
    if source.is_dir():
        names = sorted(images_below(source))
    else:
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError):  # also of names that no file can have
            raise UserError(
                f"{str(source)!r}, where the images of {str(named_by)!r} should be, is neither a folder nor a list of "
                "files; mend the paths in it."
            ) from None
        files = FilesBelow(source.parent)
        names = [
            line if os.path.isabs(line) and os.path.isfile(line) else files.find(line) or listed_path(line).lstrip("/")
            for line in map(str.strip, lines)
            if line
        ]
    if not names:
        raise UserError(f"{str(source)!r}, which {str(named_by)!r} means, holds no images.")
    return (os.path.normpath(os.path.join(folder, name)) for name in names)


def _label_file(image: str) -> str:
    """The last folder ``images`` of a path becomes ``labels``; without one, the file is beside the image."""
    beside = f"{os.path.splitext(image)[0]}.txt"
    folder, found, rest = beside.rpartition(f"{os.sep}images{os.sep}")
    apart = f"{folder}{os.sep}labels{os.sep}{rest}"
    return apart if found and (os.path.isfile(apart) or not os.path.isfile(beside)) else beside


def _lines(path: str) -> list[str] | None:
    try:
        return Path(path).read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path!r} cannot be read: {error.strerror}.") from None


def _read_line(line: str, has_keypoints: bool) -> tuple[float, list[float]] | None:
    """Class number, and shares of a box or an outline; None if it is neither."""
    try:
        number, *shares = map(float, line.split())
    except ValueError:
        return None
    if has_keypoints:
        shares = shares[:4]
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        return None
    return int(number) if number.is_integer() else number, shares


def _object_of(category_id: float, shares: Sequence[float], width: int, height: int) -> dict[str, Any]:
    """Class and box or outline, in pixels."""
    if len(shares) == 4:
        x, y, w, h = shares
        return {"category_id": category_id, "bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
    polygon = [share * side for share, side in zip(shares, (width, height) * (len(shares) // 2), strict=True)]
    return {"category_id": category_id, "segmentation": [polygon]}
