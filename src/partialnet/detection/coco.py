"""Folders and files in the COCO format: which JSON file is for which part, and where its images may be.

Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from partialnet.data.splits import part_of
from partialnet.errors import UserError

from .annotation_file import Part, read_annotations, read_lists

#: Where annotations are looked for, in words.
LAYOUTS = (
    "the COCO format: annotations/instances_train*.json and instances_val*.json beside folders of images, "
    "train/_annotations.coco.json and valid/_annotations.coco.json, or one JSON file; else name both as IMAGES,JSON"
)
#: COCO's own names of files of objects.
_NAMES = ("instances*.json", "_annotations.coco.json")
#: Other annotations of COCO, which lie beside those of objects and say nothing about them.
_OTHER_KINDS = ("captions", "image_info", "panoptic", "person_keypoints", "stuff")


def annotation_files(root: Path) -> list[Path]:
    """JSON files in a folder that may be those of objects."""
    found = [path for path in _json_files(root) if not path.name.startswith((".", *_OTHER_KINDS))]
    # COCO's names beat all others, as there may be files of results and settings beside them
    for named in _NAMES:
        if matching := [path for path in found if path.match(named)]:
            return matching
    return found


def other_files(root: Path) -> list[str]:
    """Names of JSON files in a folder that are left aside, as of captions."""
    return [path.name for path in _json_files(root) if path.name.startswith(_OTHER_KINDS)]


def has_usual_name(path: Path) -> bool:
    """Whether a JSON file is named as COCO's own of objects."""
    return any(path.match(named) for named in _NAMES)


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file is one of objects by what is in it."""
    try:
        read_lists(path)
    except UserError:
        return False
    return True


def parts_of_file(path: Path, folders: Sequence[Path] | None = None) -> dict[str, Part]:
    """A JSON file as data without parts; its images are in ``folders``, or searched for beside it."""
    if folders is None:
        folders = _image_folders(path, path.parent.parent if path.parent.name == "annotations" else path.parent)
    return {"": Part(path, partial(read_annotations, path, folders))}


def parts_of_folder(root: Path, files: Sequence[Path]) -> dict[str, Part]:
    """The parts of a folder: "train", "val", …, or "" for a file that belongs to none.

    Raises:
        UserError: Several files are for the same part.
    """
    parts: dict[str, Path] = {}
    for path in files:
        part = part_of(path.relative_to(root))
        if part in parts:
            where = f"for {part!r} " if part else ""
            raise UserError(
                f"Folder {str(root)!r} has several JSON files {where}({parts[part].relative_to(root)}, "
                f"{path.relative_to(root)}); name the right one as IMAGES,JSON."
            )
        parts[part] = path
    return {part: parts_of_file(path, _image_folders(path, root))[""] for part, path in parts.items()}


def _json_files(root: Path) -> list[Path]:
    patterns = ("annotations/*.json", "*.json", "*/*.json", "annotations/*/*.json")
    files = dict.fromkeys(path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_file())
    return list(files)


def _image_folders(path: Path, root: Path) -> list[Path]:
    """Where the images of a JSON file may be, the likeliest first."""
    part = part_of(path.relative_to(root))
    synonyms = ["val", "valid", "validation"] if part in ("val", "valid", "validation") else []
    names = dict.fromkeys([path.stem.removeprefix("instances_"), part, *synonyms, "images", ""])
    nested = [f"images/{name}" for name in names] + [f"{name}/images" for name in names]
    places = [place / name for place in (path.parent, root) for name in [*names, *nested]]
    return [place for place in dict.fromkeys(places) if place.is_dir()]
