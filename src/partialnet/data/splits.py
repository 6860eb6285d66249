"""Hold out a part of each class where a data set has no validation part of its own."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from ..errors import UserError
from .labelled_images import ImageData, LabelledImages, Subset

#: Names of the held-out part in folders and data sets, the first found is taken.
HELD_OUT = ("val", "valid", "validation", "test")


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
            raise UserError(f"Class {class_name!r} has one image only; to hold one out it needs at least two.")
        keys = [blake2b(f"{seed}/{images.name(i)}".encode(errors="surrogateescape")).digest() for i in members.tolist()]
        shuffled = members[sorted(range(len(keys)), key=keys.__getitem__)]
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held_out.append(np.sort(shuffled[:count]))
        train.append(np.sort(shuffled[count:]))
    split = f"{share:.0%} of each class held out, seed {seed}"
    return ImageData(Subset(images, np.concatenate(train)), Subset(images, np.concatenate(held_out)), split)
