"""WebDataset shards: tar files of images with their classes, read at random."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from partialnet.errors import UserError
from partialnet.images import SUFFIXES, decode_image

from .labelled_images import ImageData, LabelledImages, classes_in_order
from .packed_names import PackedNames
from .splits import HELD_OUT, first_part, part_of, split_by_class

#: Files of a sample that tell its class, in this order; a JSON file has it under one of ``JSON_KEYS``.
LABEL_SUFFIXES = (".cls", ".json")
JSON_KEYS = ("label", "cls", "class")
#: How the names of compressed tar files end.
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class _Places:
    """Where each image is; ``shard_names`` are what a person knows the files ``paths`` by."""

    paths: tuple[Path, ...]
    shard_names: tuple[str, ...]
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: PackedNames


@dataclass(frozen=True)
class _Index:
    """What shards hold: the images, the classes that occur, and the number of each image's class among these."""

    places: _Places
    found: tuple[str, ...]
    classes: np.ndarray


class ShardImages(LabelledImages):
    """The images of some shards; each is found by its place within the tar file, which is looked up once.

    Args:
        index: What the shards hold.
        class_names: Name of each class, in the order of the labels.

    Raises:
        UserError: The shards hold another class.
    """

    def __init__(self, index: _Index, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        numbers = {name: number for number, name in enumerate(class_names)}
        if unknown := set(index.found) - numbers.keys():
            folder = str(index.places.paths[0].parent)
            raise UserError(f"Class {min(unknown)!r} in {folder!r} is not among the known classes.")
        self.labels = np.array([numbers[name] for name in index.found], dtype=np.int64)[index.classes]
        self._places = index.places

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` as 8-bit RGB; a JPEG perhaps in a smaller size."""
        return decode_image(self._content(index), self.name(index), min_side)

    def name(self, index: int) -> str:
        """Shard, below the folder of all shards, and path within it."""
        return f"{self._places.shard_names[self._places.shards[index]]}/{self._places.names[index]}"

    def _content(self, index: int) -> bytes:
        try:
            with self._places.paths[self._places.shards[index]].open("rb") as file:
                file.seek(int(self._places.offsets[index]))
                return file.read(int(self._places.sizes[index]))
        except OSError as error:
            raise UserError(f"{self.name(index)!r} cannot be read: {error.strerror}.") from error


def open_shards(source: str, val_share: float, seed: int) -> ImageData:
    """Training and held-out images of shards.

    Args:
        source: A folder of ``*.tar`` (searched in its folders ``train`` and ``val`` too), or a pattern with braces and
            stars such as ``shards/train-{000..099}.tar``, or several of these with ``::`` between them. Shards are told
            apart by "train" and "val", "valid", "validation" or "test" in the names of files, or else of folders where
            they lie in several; beside the latter, shards without such a word are those to learn from. Where none is
            held out, each class is split.
        val_share: Share of each class to hold out if there are no validation shards.
        seed: Of the choice of images to hold out.

    Raises:
        UserError: There is no shard, a shard is no tar file, an image has no class, or a shard's name does not tell
            whether it is to be learnt from.
    """
    paths = _find(source)
    parts: dict[str, list[Path]] = {}
    # a folder that holds all shards says nothing about any of them, whatever words are in its name
    common = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    for path in paths:
        parts.setdefault(part_of(path.absolute().relative_to(common)), []).append(path)
    held_out = first_part(parts, HELD_OUT)
    given = _given_names(paths[0])
    if held_out and "train" in parts and "" in parts:
        raise UserError(
            f"{source!r} has shards of train and {held_out}, and {parts[''][0].name!r}, whose name does not say which "
            "it belongs to."
        )
    if held_out and (to_learn := parts.get("train") or parts.get("")):
        train, validation = _index(to_learn, common), _index(parts[held_out], common)
        names = given or classes_in_order({*train.found, *validation.found})
        train, validation = _named(train, given), _named(validation, given)
        for name in sorted(set(names)):
            where = [name in part.found for part in (train, validation)]
            if where[0] != where[1]:
                here, there = ("training", "validation") if where[0] else ("validation", "training")
                raise UserError(f"Class {name!r} is in the {here} shards of {source!r} but not in the {there} shards.")
        return ImageData(ShardImages(train, names), ShardImages(validation, names), f"shards of train and {held_out}")
    index = _index(paths, common)
    names = given or classes_in_order(index.found)
    return split_by_class(ShardImages(_named(index, given), names), val_share, seed)


def expand_braces(pattern: str) -> list[str]:
    """All that ``{a,b}``, ``{000..012}`` and ``{0..12..3}``, also within braces, stand for, in order, as in a shell."""
    start = pattern.find("{")
    depth, cuts = 0, [start]
    for place in range(max(start, 0), len(pattern)):
        character = pattern[place]
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0 or (depth == 1 and character == ","):
            cuts.append(place)
        if depth == 0:
            break
    if start < 0 or depth:
        return [pattern]
    pieces = [pattern[before + 1 : after] for before, after in pairwise(cuts)]
    choices = [choice for piece in pieces for choice in (_range(piece) or expand_braces(piece))]
    after = expand_braces(pattern[cuts[-1] + 1 :])
    return [f"{pattern[:start]}{choice}{rest}" for choice in choices for rest in after]


def _range(piece: str) -> list[str]:
    """The numbers of ``000..012`` or ``0..12..3``; none for anything else."""
    if not (numbers := re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", piece)):
        return []
    first, last, step = numbers.groups()
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1, max(int(step or 1), 1))]


def _find(source: str) -> list[Path]:
    found: list[Path] = []
    for part in source.split("::"):
        found += _in_folder(Path(part)) if Path(part).is_dir() else _matching(part)
    return found


def _in_folder(folder: Path) -> list[Path]:
    found = [path for pattern in ("*.tar*", "*.tgz", "*/*.tar*", "*/*.tgz") for path in folder.glob(pattern)]
    if shards := sorted(path for path in found if path.suffix == ".tar"):
        return shards
    if compressed := sorted(path for path in found if path.suffix in _COMPRESSED):
        raise _is_compressed(compressed[0])
    raise UserError(f"Folder {str(folder)!r} holds no shard (*.tar).")


def _matching(pattern_of_all: str) -> list[Path]:
    found = []
    for pattern in expand_braces(pattern_of_all):
        matches = sorted(map(Path, glob.glob(pattern))) if glob.has_magic(pattern) else [Path(pattern)]
        if not matches or not all(path.is_file() for path in matches):
            where = "; shards must be on a disk" if "://" in pattern or pattern.startswith("pipe:") else ""
            raise UserError(f"There is no shard {pattern!r}{where}.")
        found += matches
    for path in found:
        if path.suffix in _COMPRESSED:
            raise _is_compressed(path)
    return found


def _is_compressed(path: Path) -> UserError:
    return UserError(
        f"Shard {str(path)!r} is compressed, so that no single image can be read from it; unpack it to a .tar first, "
        "for example with gunzip."
    )


def _index(paths: Sequence[Path], root: Path) -> _Index:
    shards, offsets, sizes, names, classes = [], [], [], [], []
    found: dict[str, int] = {}
    for number, path in enumerate(tqdm(paths, desc="looking through shards", unit="shard", delay=2)):
        for name, offset, size, class_name in _samples(path):
            shards.append(number)
            offsets.append(offset)
            sizes.append(size)
            names.append(name)
            classes.append(found.setdefault(class_name, len(found)))
    if not names:
        raise UserError(f"The shards in {str(paths[0].parent)!r} hold no image ({', '.join(SUFFIXES)}).")
    arrays = (np.array(shards, np.int32), np.array(offsets, np.int64), np.array(sizes, np.int64))
    shard_names = tuple(path.absolute().relative_to(root).as_posix() for path in paths)
    places = _Places(tuple(paths), shard_names, *arrays, PackedNames(names))
    return _Index(places, tuple(found), np.array(classes, np.int32))


def _samples(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Name, offset, size and class of each image in a shard; a sample's files share their name up to the first dot.

    Of several images in a sample it is the one with the shortest ending, so ``1.png`` and not ``1.mask.png``.
    """
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                place = PurePosixPath(member.name)
                key = f"{place.parent}/{place.name.partition('.')[0]}"
                suffix = place.suffix.lower()
                if suffix in SUFFIXES:
                    image = (member.name, member.offset_data, member.size)
                    images[key] = _image_of_sample(path, images.get(key), image)
                elif suffix in LABEL_SUFFIXES and (suffix == LABEL_SUFFIXES[0] or key not in classes):
                    content = tar.extractfile(member)
                    if content and (text := _class_of(suffix, content.read())) is not None:
                        classes[key] = text
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"Shard {str(path)!r} cannot be read as a tar file: {error}.") from error
    for key, (name, offset, size) in images.items():
        if key not in classes:
            raise UserError(
                f"{name!r} in shard {str(path)!r} has no class; it needs a .cls file beside it, or a .json file with "
                f"{', '.join(JSON_KEYS[:-1])} or {JSON_KEYS[-1]}."
            )
        yield name, offset, size, classes[key]


def _image_of_sample(
    shard: Path, known: tuple[str, int, int] | None, other: tuple[str, int, int]
) -> tuple[str, int, int]:
    """Which of two images in a sample it is, each with name, offset and size."""
    if known is None or known[0] == other[0]:  # the later of two members of one name replaces the other
        return other
    dots = [name.count(".") for name in (PurePosixPath(known[0]).name, PurePosixPath(other[0]).name)]
    if dots[0] == dots[1]:
        raise UserError(
            f"{known[0]!r} and {other[0]!r} in shard {str(shard)!r} are images of one sample; keep only one."
        )
    return known if dots[0] < dots[1] else other


def _class_of(suffix: str, content: bytes) -> str | None:
    text = content.decode(errors="replace").strip()
    if suffix == LABEL_SUFFIXES[0]:
        return text
    try:
        values = json.loads(text)
    except ValueError:
        return None
    found = [values[key] for key in JSON_KEYS if key in values] if isinstance(values, dict) else [values]
    return str(found[0]) if found else None


def _given_names(shard: Path) -> tuple[str, ...]:
    """Class names in ``classes.txt`` beside the shards or one folder above, one a line."""
    for folder in (shard.parent, shard.parent.parent):
        if (path := folder / "classes.txt").is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise UserError(f"{str(path)!r} is not in UTF-8.") from None
            return tuple(line.strip() for line in lines if line.strip())
    return ()


def _named(index: _Index, given: tuple[str, ...]) -> _Index:
    """Numbers of classes replaced by the given names."""
    if not given or not all(name.isdecimal() for name in index.found) or set(index.found) <= set(given):
        return index
    numbers = [int(name) for name in index.found]
    if max(numbers) >= len(given):
        raise UserError(f"A shard has class {max(numbers)}, but classes.txt names {len(given)} classes.")
    return replace(index, found=tuple(given[number] for number in numbers))
