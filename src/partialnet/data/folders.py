"""A folder with one folder of images for each class, as torchvision's ImageFolder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from partialnet.errors import UserError
from partialnet.images import SUFFIXES, images_below, is_folder

from .labelled_images import ImageFiles


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
