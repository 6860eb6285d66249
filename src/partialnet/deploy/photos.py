"""The photographs that an export is calibrated with, compared and tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from partialnet.data import spread
from partialnet.errors import UserError
from partialnet.images import UnreadableImage, none_readable, read_image

#: Images that int8 is calibrated with, and that logits are compared on, at most.
CALIBRATION_IMAGES = 300
#: Labelled images that the accuracy is measured on, at most.
TEST_IMAGES = 2000
#: Cut-outs of sample photographs that stand in where no images are given.
SAMPLE_IMAGES = 32
#: With fewer images than this, none can be spared from calibration for the comparison.
LEAST_TO_DIVIDE = 100


class ReadableImages(Protocol):
    """Images of a data set of any task."""

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> Image.Image:
        """Image ``index`` as 8-bit RGB."""

    def name(self, index: int, /) -> str:
        """What a person would find image ``index`` by."""


@dataclass(frozen=True)
class Photos:
    """Images opened when they are asked for, divided by what they are for.

    Attributes:
        read: Opens an image by its number.
        name: What a person would find an image by.
        calibration: Numbers of the images to calibrate with.
        comparison: Numbers of the images to compare logits on.
        test: Numbers of the images to measure the accuracy on, where labels are known.
        held_out: Whether comparison and test have no image of the calibration.
        unreadable: Those of the images opened so far that cannot be read.
    """

    read: Callable[[int], Image.Image]
    name: Callable[[int], str]
    calibration: np.ndarray
    comparison: np.ndarray
    test: np.ndarray
    held_out: bool
    unreadable: dict[int, UnreadableImage] = field(default_factory=dict)

    def images(self, numbers: np.ndarray) -> Iterator[Image.Image]:
        """The images of these numbers, without those that cannot be read.

        Raises:
            UserError: None of them can be read.
        """
        for number in numbers.tolist():
            try:
                image = self.read(number)
            except UserError as error:
                self.unreadable[number] = UnreadableImage(self.name(number), str(error))
                continue
            yield image
        if self.unreadable.keys() >= set(numbers.tolist()):
            raise none_readable([self.unreadable[number] for number in numbers.tolist()])

    def all_unreadable(self, others: Iterable[UnreadableImage] = ()) -> tuple[UnreadableImage, ...]:
        """Those of the opened images that cannot be read, and ``others`` of the same data, by their names."""
        return tuple(sorted({*self.unreadable.values(), *others}, key=lambda one: one.image))


def collect_photos(
    files: Sequence[Path],
    labelled: ReadableImages | None,
    calibrated: bool,
    *,
    most_to_calibrate: int = CALIBRATION_IMAGES,
    most_to_compare: int = CALIBRATION_IMAGES,
    most_to_test: int = TEST_IMAGES,
    num_samples: int = SAMPLE_IMAGES,
) -> Photos:
    """Divide labelled images, else files, else cut-outs of scikit-learn's photographs.

    Args:
        files: Image files without labels.
        labelled: Images of which the answer is known.
        calibrated: Whether something is to be calibrated; if not, every image is there to compare on.
        most_to_calibrate: Images to calibrate with at most.
        most_to_compare: Images to compare on at most.
        most_to_test: Images to measure the accuracy on at most.
        num_samples: Cut-outs.

    Raises:
        UserError: None of the images can be read.
    """
    read: Callable[[int], Image.Image]
    name: Callable[[int], str]
    if labelled is not None:
        read, name, count = labelled.read, labelled.name, len(labelled)
    elif files:
        read, name, count = (lambda number: read_image(files[number])), (lambda number: str(files[number])), len(files)
    else:
        samples = _sample_photos(num_samples)
        read, name, count = samples.__getitem__, str, len(samples)
    everything = np.arange(count)
    held_out = not calibrated or count >= LEAST_TO_DIVIDE
    calibration = spread(everything, min(most_to_calibrate, count // 2) if held_out else most_to_calibrate)
    others = np.setdiff1d(everything, calibration) if calibrated and held_out else everything
    comparison, test = spread(others, most_to_compare), spread(others, most_to_test)
    photos = Photos(read, name, calibration, comparison, test, held_out)
    for numbers in (calibration, comparison) if calibrated else (comparison,):
        next(photos.images(numbers))  # if none can be read, that is told before the work
    return photos


def _sample_photos(num_images: int) -> list[Image.Image]:
    """Random cut-outs of the two photographs that come with scikit-learn, for users who name no folder."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    cuts = []
    for index in range(num_images):
        photo = photos[index % len(photos)]
        side = int(random.integers(100, min(photo.size)))
        left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
        cuts.append(photo.crop((left, top, left + side, top + side)))
    return cuts
