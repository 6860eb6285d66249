"""A table of image files and their classes, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from partialnet.errors import UserError
from partialnet.messages import listed

from .labelled_images import ImageData, ImageFiles, classes_in_order
from .splits import HELD_OUT, TRAINING, first_part, split_by_class

#: Names of the columns, of which the first that is there is taken, in any case.
FILE_COLUMNS = ("file_name", "filename", "file", "path", "filepath", "image", "image_path", "img")
CLASS_COLUMNS = ("label", "class", "class_name", "target", "category")
PART_COLUMNS = ("split", "part", "set", "subset")


class TableImages(ImageFiles):
    """The files of some rows.

    Args:
        root: Folder that the paths are from.
        files: Path of each file.
        classes: Class of each file, as a text.
    """

    def __init__(self, root: Path, files: Iterable[str], classes: Sequence[str]) -> None:
        class_names = classes_in_order(set(classes))
        numbers = {name: number for number, name in enumerate(class_names)}
        super().__init__(root, files, class_names, np.array([numbers[name] for name in classes], dtype=np.int64))


def open_table(path: Path, val_share: float, seed: int) -> ImageData:
    """Training and held-out images of a table; without a column of parts, each class is split.

    Args:
        path: A file whose first line names the columns, separated by commas, semicolons or tabs. Paths in it are from
            its folder.
        val_share: Share of each class to hold out if the table does not say which images are.
        seed: Of the choice of images to hold out.

    Raises:
        UserError: It cannot be read, lacks a column or a value, or its files are not there.
    """
    rows = _read(path)
    file, label = _column(path, rows, FILE_COLUMNS, "files"), _column(path, rows, CLASS_COLUMNS, "classes")
    part = first_part(rows[0], PART_COLUMNS)
    found = {row[part] for row in rows} if part else {""}
    names = [first_part(found, TRAINING), first_part(found, HELD_OUT)] if part else [""]
    if None in names:
        told = listed(sorted(map(repr, found)))
        raise UserError(f"Column {part!r} of {str(path)!r} should hold train and val; it holds {told}.")
    parts: dict[str, list[dict[str, str]]] = {name: [] for name in names if name is not None}
    for number, row in enumerate(rows, 2):
        if (name := row[part] if part else "") not in parts:
            continue
        if missing := [column for column in (file, label) if not row[column]]:
            raise UserError(f"Line {number} of {str(path)!r} has no {missing[0]!r}.")
        parts[name].append(row)
    if not any((path.parent / row[file]).is_file() for chosen in parts.values() for row in chosen):
        raise UserError(
            f"None of the files that {str(path)!r} names exists, such as {str(path.parent / rows[0][file])!r}."
        )
    images = [
        TableImages(path.parent, [row[file] for row in chosen], [row[label] for row in chosen])
        for chosen in parts.values()
    ]
    if not part:
        return split_by_class(images[0], val_share, seed)
    if differing := set(images[0].class_names) ^ set(images[1].class_names):
        here, there = names if min(differing) in images[0].class_names else names[::-1]
        raise UserError(f"Class {min(differing)!r} of {str(path)!r} is in part {here!r} but not in part {there!r}.")
    return ImageData(images[0], images[1], f"parts {names[0]} and {names[1]} of the table")


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of a table, values without spaces around them."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            lines = csv.DictReader(file, delimiter=max(",;\t", key=header.count), restval="", strict=True)
            rows = [{key.strip(): row[key].strip() for key in row if key is not None} for row in lines]
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} is not in UTF-8.") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}.") from error
    if not rows:
        raise UserError(f"{str(path)!r} has no rows.")
    return rows


def _column(path: Path, rows: list[dict[str, str]], wanted: tuple[str, ...], what: str) -> str:
    """The column of files or classes.

    Raises:
        UserError: There is none.
    """
    found = first_part(rows[0], wanted)
    if found is None:
        raise UserError(
            f"{str(path)!r} has no column of {what} in its first line ({', '.join(wanted)}); it has "
            f"{', '.join(map(repr, rows[0]))}."
        )
    return found
