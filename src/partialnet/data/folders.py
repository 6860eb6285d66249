"""A folder with one folder of images for each class, as torchvision's ImageFolder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from partialnet.errors import UserError
from partialnet.images import SUFFIXES, images_below, is_folder

from .labelled_images import ImageData, ImageFiles
from .splits import HELD_OUT, TRAINING, first_part, part_of, split_by_class


class FolderImages(ImageFiles):
    """``root/<class>/**/<image>``; classes and files are sorted by name, hidden ones left out.

    Args:
        root: The folder.
        class_names: Folders to read, in the order of the labels; None takes every folder there is.
        part: The folder in ``root`` that holds the class folders, such as train; none if they lie in ``root`` itself.

    Raises:
        UserError: There is no such folder, it has no folder of images, or one of the classes has no image.
    """

    def __init__(self, root: str | Path, class_names: tuple[str, ...] | None = None, part: str = "") -> None:
        folder = Path(root) / part
        if not folder.is_dir():
            raise UserError(f"There is no folder {str(folder)!r}.")
        class_names = class_names or class_folders(folder)
        if not class_names:
            raise UserError(
                f"Folder {str(folder)!r} holds no folders; it should hold one folder of images for each class."
            )
        names: list[str] = []
        counts: list[int] = []
        for class_name in class_names:
            inside = folder / class_name
            found = sorted(images_below(inside)) if inside.is_dir() else []
            names += [f"{part}/{class_name}/{name}" if part else f"{class_name}/{name}" for name in found]
            counts.append(len(found))
        empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if len(empty) == len(counts):
            raise UserError(f"No folder in {str(folder)!r} holds an image ({', '.join(SUFFIXES)}).")
        if empty:
            raise UserError(f"Class folder {str(folder / empty[0])!r} holds no image; fill or remove it.")
        super().__init__(Path(root), names, class_names, np.repeat(np.arange(len(counts), dtype=np.int64), counts))


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in ``root``, sorted, hidden ones left out."""
    return tuple(
        sorted(entry.name for entry in os.scandir(root) if is_folder(entry) and not entry.name.startswith("."))
    )


def open_folder(root: Path, val_share: float, seed: int) -> ImageData:
    """Training and held-out images of a folder of class folders, or of such folders for the two parts.

    Args:
        root: The folder; its parts, if it has any, are named as in ``TRAINING`` and ``HELD_OUT`` of ``splits``.
        val_share: Share of each class to hold out where there is no held-out part.
        seed: Of the choice of images to hold out.

    Raises:
        UserError: It holds no such images, or its parts are of different classes or under other names.
    """
    folders = class_folders(root)
    train, held_out = first_part(folders, TRAINING), first_part(folders, HELD_OUT)
    if train and held_out:
        images = FolderImages(root, part=train)
        class_names = images.class_names
        differing = sorted(set(class_names) ^ set(class_folders(root / held_out)))
        if differing:
            here, there = (train, held_out) if differing[0] in class_names else (held_out, train)
            raise UserError(f"Class {differing[0]!r} is in {str(root / here)!r} but not in {str(root / there)!r}.")
        validation = FolderImages(root, class_names, held_out)
        return ImageData(images, validation, f"folders {train} and {held_out}")
    if train and len(folders) == 1 and class_folders(root / train):
        root /= train
    else:
        _refuse_parts_as_classes(root, folders)
    return split_by_class(FolderImages(root), val_share, seed)


def _refuse_parts_as_classes(root: Path, folders: Sequence[str]) -> None:
    """Refuse parts under other names, such as train beside dev, which would be learnt as if they were two classes.

    Raises:
        UserError: A folder is named after a part of a data set, and folders of the same names lie in it and another.
    """
    for name in filter(lambda name: part_of(Path(name)), folders):
        inside = set(class_folders(root / name))
        for other in folders:
            if other != name and (shared := inside & set(class_folders(root / other))):
                raise UserError(
                    f"{str(root)!r} holds {min(shared)!r} in both {name!r} and {other!r}, as if these were parts of "
                    "the data rather than classes; name the parts train and val, or the classes without such a word."
                )
