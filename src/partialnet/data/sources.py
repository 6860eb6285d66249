"""Everything that a command can take as its data: a folder, a built-in or downloaded data set, shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from partialnet.errors import UserError
from partialnet.images import images_below
from partialnet.messages import listed

from .folders import FolderImages, class_folders
from .labelled_images import ImageData, LabelledImages, Subset, describe_images
from .splits import HELD_OUT, TRAINING, first_part, part_of, split_by_class

#: How sources other than folders and "digits" begin, and what separates the beginning from the name.
SCHEMES = {"torchvision": ":", "hfds": "/", "wds": "/"}
#: What data may be, in words.
KINDS_OF_DATA = (
    "a folder with one folder of images for each class, a table of files and classes as CSV, digits, torchvision:NAME, "
    "hfds/NAME or wds/FOLDER"
)


def open_data(source: str, val_share: float = 0.1, seed: int = 0, root: str | Path = "data") -> ImageData:
    """Training and held-out images of ``source``.

    Args:
        source: ``digits``; ``torchvision:NAME``; ``hfds/NAME`` of the Hugging Face hub; ``wds/FOLDER`` or
            ``wds/PATTERN`` of WebDataset shards; a table of files and classes, as CSV; or a folder with one folder of
            images for each class, or with such folders for training and validation; their names are ``TRAINING`` and
            ``HELD_OUT`` of ``splits``.
        val_share: Share of each class to hold out where the source has no validation part.
        seed: Of the choice of images to hold out.
        root: Folder for downloads of torchvision.

    Raises:
        UserError: There is no such source, or it is no data set of at least two classes.
    """
    if source == "digits":
        from .handwritten_digits import open_digits

        data = open_digits()
    elif source.startswith("torchvision:"):
        from .torchvision_datasets import open_torchvision

        data = open_torchvision(source.partition(":")[2], val_share, seed, root)
    elif source.startswith("hfds/"):
        from .hugging_face import open_hugging_face

        data = open_hugging_face(source.partition("/")[2], val_share, seed)
    elif source.startswith("wds/"):
        from .shards import open_shards

        data = open_shards(source.partition("/")[2], val_share, seed)
    elif Path(source).is_dir():
        if (scheme := _packed(Path(source))) and not any(images_below(Path(source))):
            raise UserError(f"Folder {source!r} holds no file of an image; did you mean '{scheme}/{source}'?")
        data = _open_folder(Path(source), val_share, seed)
    elif _is_table(source):
        from .tables import open_table

        data = open_table(Path(source), val_share, seed)
    elif Path(source).exists() and not source.endswith(".tar"):
        raise UserError(
            f"{source!r} is a file; data is a folder with one folder of images for each class, or a table as CSV."
        )
    else:
        raise UserError(f"There is no data {source!r}; {_hint(source)}")
    if len(data.class_names) < 2:
        raise UserError(f"{source!r} has one class only, {data.class_names[0]!r}; a classifier needs at least two.")
    return data


def is_folder(source: str) -> bool:
    """Whether data is looked for in a folder of that name, not in a table, by a scheme or among what is built in."""
    schemes = tuple(f"{name}{mark}" for name, mark in SCHEMES.items())
    return not (source == "digits" or source.startswith(schemes) or _is_table(source))


def _is_table(source: str) -> bool:
    return source.lower().endswith((".csv", ".tsv")) and Path(source).is_file()


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


def _open_folder(root: Path, val_share: float, seed: int) -> ImageData:
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
                    f"{str(root)!r} holds {min(shared)!r} in {name!r} and in {other!r}, as if these were parts "
                    "of the data, not classes; call parts train and val, and classes by names without such a word."
                )


def _packed(root: Path) -> str:
    """How data begins that is packed into files as they are in a folder; "" where there are none."""
    for scheme, endings in (("wds", (".tar",)), ("hfds", (".parquet", ".arrow"))):
        if any(True for ending in endings for below in ("", "*/") for _ in root.glob(f"{below}*{ending}")):
            return scheme
    return ""


def _hint(source: str) -> str:
    """What may have been meant."""
    if source.endswith(".tar"):
        return f"did you mean 'wds/{source}'?"
    path = Path(source)
    beside = class_folders(path.parent) if path.parent.is_dir() else ()
    known = ["digits", *(str(path.parent / name) for name in beside)]
    scheme, _, rest = source.partition(":" if ":" in source else "/")
    if rest and (near := get_close_matches(scheme, SCHEMES, 1, cutoff=0.65)):
        return f"did you mean '{near[0]}{SCHEMES[near[0]]}{rest}'?"
    if near := get_close_matches(source, known, 1):
        return f"did you mean {near[0]!r}?"
    from .torchvision_datasets import torchvision_names

    names = {name.lower(): name for name in torchvision_names()}
    if near := get_close_matches(source.lower(), names, 1, cutoff=0.8):
        return f"did you mean 'torchvision:{names[near[0]]}'?"
    return f"it may be {KINDS_OF_DATA}."
