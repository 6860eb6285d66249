"""The parts of a data set by their names; if it has none, a part of each class is held out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from partialnet.errors import UserError

from .labelled_images import ImageData, LabelledImages, Subset

#: Names of the training part in folders and data sets, the first found is taken.
TRAINING = ("train", "training")
#: Names of the held-out part, the first found is taken.
HELD_OUT = ("val", "valid", "validation", "test", "testing")


def first_part(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted parts that is there, as it is written there, in upper or lower case; None without any.

    Args:
        names: The parts that are there.
        wanted: ``TRAINING``, ``HELD_OUT`` or some of them.
    """
    found = {name.lower(): name for name in names}
    return next((found[part] for part in wanted if part in found), None)


def part_of(path: Path) -> str:
    """The part of a file: "train" or a name of ``HELD_OUT``, the first word of its name or else its folder's; or ""."""
    for text in (path.stem, path.parent.name):
        for word in re.findall(r"[a-z]+", text.lower()):
            if word in TRAINING:
                return "train"
            if word in HELD_OUT:
                return word
    return ""


def split_by_class(images: LabelledImages, share: float, seed: int) -> ImageData:
    """Hold out ``share`` of each class, at least one image and never all.

    An image's place follows from ``seed`` and its name alone: other classes do not matter, and images that are added
    to a class move few of the others.

    Raises:
        UserError: ``share`` is not within (0, 1), or a class has only one image.
    """
    if not 0 < share < 1:
        raise UserError(f"The share to hold out must be between 0 and 1, not {share}.")
    train, held_out = [], []
    for label, class_name in enumerate(images.class_names):
        members = np.flatnonzero(images.labels == label)
        if len(members) == 1:
            raise UserError(f"Class {class_name!r} has only one image; to hold one out it needs at least two.")
        held_out_here = choose_by_name([images.name(i) for i in members.tolist()], share, seed)
        held_out.append(members[held_out_here])
        train.append(members[~held_out_here])
    split = f"{share:.0%} of each class held out, seed {seed}"
    return ImageData(Subset(images, np.concatenate(train)), Subset(images, np.concatenate(held_out)), split)


def choose_by_name(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which of two or more images to hold out, at least one and never all: a mask, (number of names,), bool.

    The place of an image in the draw follows from ``seed`` and its name alone.
    """
    keys = [blake2b(f"{seed}/{name}".encode(errors="surrogateescape")).digest() for name in names]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    chosen = np.zeros(len(keys), bool)
    chosen[order[: min(max(round(share * len(keys)), 1), len(keys) - 1)]] = True
    return chosen
