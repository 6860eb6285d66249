"""Everything that a command can take as its data: a folder, a built-in or downloaded data set, shards."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from partialnet.errors import UserError
from partialnet.images import images_below

from .folders import class_folders, open_folder
from .labelled_images import ImageData

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
            raise UserError(f"Folder {source!r} holds no image; did you mean '{scheme}/{source}'?")
        data = open_folder(Path(source), val_share, seed)
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
        raise UserError(f"{source!r} has only one class, {data.class_names[0]!r}; a classifier needs at least two.")
    return data


def is_folder(source: str) -> bool:
    """Whether data is looked for in a folder of that name, not in a table, by a scheme or among what is built in."""
    schemes = tuple(f"{name}{mark}" for name, mark in SCHEMES.items())
    return not (source == "digits" or source.startswith(schemes) or _is_table(source))


def _is_table(source: str) -> bool:
    return source.lower().endswith((".csv", ".tsv")) and Path(source).is_file()


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
