"""Labelled images, read one at a time: what every data set is to training and evaluation."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from partialnet.images import read_image

from .packed_names import PackedNames


class LabelledImages(ABC):
    """Images with one class each, opened when they are asked for.

    An object of this kind is sent to data-loading workers, so it must be possible to pickle it, and reading image i
    must give the same pixels in every process.

    Attributes:
        class_names: Name of each class, in the order of the labels.
        labels: Class of each image, (number of images,), int64.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` as 8-bit RGB.

        Args:
            index: Its number.
            min_side: What height and width need at least: where it is faster, a larger image may come in a smaller
                size.

        Raises:
            UserError: It cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person would find image ``index`` by: its path within the data set."""


class ImageFiles(LabelledImages):
    """Image files by their paths from a folder; only the paths are kept in memory, packed.

    Args:
        root: The folder.
        names: Path of each image from it.
        class_names: Name of each class, in the order of the labels.
        labels: Class of each image, (number of images,), int64.
    """

    def __init__(self, root: Path, names: Iterable[str], class_names: tuple[str, ...], labels: np.ndarray) -> None:
        self.root = root
        self.class_names = class_names
        self.labels = labels
        self._names = PackedNames(names)

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` as 8-bit RGB, upright; a JPEG perhaps in a smaller size."""
        return read_image(self.root / self.name(index), min_side)

    def name(self, index: int) -> str:
        """Path from the root."""
        return self._names[index]


class Subset(LabelledImages):
    """Some of other images, in the order of ``indices``."""

    def __init__(self, images: LabelledImages, indices: Sequence[int] | np.ndarray) -> None:
        self.images = images
        self.indices = np.asarray(indices, dtype=np.int64)
        self.class_names = images.class_names
        self.labels = images.labels[self.indices]

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` of the subset as 8-bit RGB."""
        return self.images.read(int(self.indices[index]), min_side)

    def name(self, index: int) -> str:
        """Name of image ``index`` of the subset."""
        return self.images.name(int(self.indices[index]))


def spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the numbers, (N,), evenly over all: of images sorted by class, classes keep their shares."""
    if len(numbers) <= most:
        return numbers
    return numbers[((np.arange(most) + 0.5) * len(numbers) / most).astype(int)]


def classes_in_order(found: Iterable[str]) -> tuple[str, ...]:
    """Classes that occur, as texts: numbers in their order, or names by the alphabet.

    Numbers with leading zeros, such as "007", are names.
    """
    names = sorted(found)
    if all(name.isdecimal() and name == str(int(name)) for name in names):
        names.sort(key=int)
    return tuple(names)


@dataclass(frozen=True)
class ImageData:
    """Training and held-out images of one task.

    Attributes:
        train: What is learnt from.
        validation: What is never learnt from.
        split: How they were told apart, in words, such as "folders train and val" or "a tenth of each class, seed 0".
    """

    train: LabelledImages
    validation: LabelledImages
    split: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.train.class_names


def describe_images(data: ImageData) -> dict[str, Any]:
    """What a run recognises its images by: their numbers, classes, and fingerprints of labels and names."""
    names = hashlib.sha256()  # on which also depends what is held out
    for images in (data.train, data.validation):
        for index in range(len(images)):
            names.update(os.fsencode(images.name(index)) + b"\0")
    labels = hashlib.sha256(data.train.labels.tobytes() + data.validation.labels.tobytes()).hexdigest()
    return {
        "number_of_training_images": len(data.train),
        "number_of_validation_images": len(data.validation),
        "classes": list(data.class_names),
        "labels": labels[:16],
        "image_names": names.hexdigest()[:16],
    }
