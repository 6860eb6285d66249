"""Which part of a command's data is evaluated: the held-out one, or the one that the user names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partialnet.errors import UserError
from partialnet.messages import listed

from .folders import class_folders
from .labelled_images import ImageData, LabelledImages, Subset, describe_images
from .sources import open_data
from .splits import HELD_OUT, TRAINING, first_part


def evaluation_part(source: str, split: str | None, training: Mapping[str, Any]) -> tuple[LabelledImages, str]:
    """The images to evaluate of data that is no folder, and which they are, in words.

    They are the held-out part, or with ``split`` "train" the other one. Data that has no parts of its own is taken
    whole, unless the network learnt from a share of it.

    Args:
        source: The data.
        split: "train", "val", or None.
        training: What a checkpoint says of its training; empty where it says nothing.

    Raises:
        UserError: There is no such data or part.
    """
    if split not in (None, "train", "val"):
        raise UserError(f"Of {source!r} the parts train and val can be evaluated, not {split!r}.")
    data = _opened_as_in(training, source)
    if split == "train":
        return data.train, f"the training part of {source} ({data.split})"
    whole = _shared(data) if split is None and source != "digits" else None
    if whole is not None and describe_images(data) != training.get("data"):
        return whole, f"all of {source}, which has no parts; --split val takes a share as in training"
    return data.validation, f"the held-out part of {source} ({data.split})"


def _shared(data: ImageData) -> LabelledImages | None:
    """All images, where the two parts are shares of the same; else None."""
    train, validation = data.train, data.validation
    if isinstance(train, Subset) and isinstance(validation, Subset) and train.images is validation.images:
        return train.images
    return None


def num_learnt(folder: str, training: Mapping[str, Any]) -> int:
    """How many images of a folder without parts a network learnt from; 0 if it is not the data of its training.

    Args:
        folder: The folder.
        training: What the network's checkpoint says of its training.
    """
    if "data" not in training:
        return 0
    try:
        data = _opened_as_in(training, folder)
    except UserError:  # such as a class of one image, of which none can be held out
        return 0
    return len(data.train) if describe_images(data) == training["data"] else 0


def _opened_as_in(training: Mapping[str, Any], source: str) -> ImageData:
    """Data with the images held out that a training held out."""
    settings = training.get("config", {})
    return open_data(source, settings.get("val_share", 0.1), settings.get("seed", 0))


def evaluation_folder(folder: str | Path, split: str | None = None) -> Path:
    """The folder of class folders to evaluate: ``folder`` itself, or a part such as ``val`` inside it.

    A part is looked for where all folders inside are parts of a data set (train, val, test, …); ``split`` names it.

    Raises:
        UserError: There is no such folder or part.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(
            f"{str(folder)!r} is a file; give a folder that holds one folder of images for each class. To classify "
            "single images, use `partialnet predict`."
        )
    if not folder.is_dir():
        raise UserError(f"There is no folder {str(folder)!r}.")
    inside = class_folders(folder)
    if split is not None:
        if split not in inside:
            raise UserError(f"{str(folder)!r} has no folder {split!r}; it has {listed(inside, 8) or 'none'}.")
        return folder / split
    if inside and all(name.lower() in (*TRAINING, *HELD_OUT) for name in inside):
        part = first_part(inside, HELD_OUT)
        # a folder with nothing but training images is not evaluated unasked
        if part is None:
            found = listed(inside, 8)
            raise UserError(f"{str(folder)!r} has no part to evaluate, only {found}; name one with --split.")
        return folder / part
    return folder
