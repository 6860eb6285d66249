"""The photographs that an export is calibrated with, compared and tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from partialnet.data import spread
from partialnet.errors import UserError
from partialnet.images import read_image

from .verify import sample_photos

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


@dataclass(frozen=True)
class Photos:
    """Images opened when they are asked for, divided by what they are for.

    Attributes:
        read: Opens an image by its number.
        calibration: Numbers of the images to calibrate with.
        comparison: Numbers of the images to compare logits on.
        test: Numbers of the images to measure the accuracy on, where labels are known.
        held_out: Whether comparison and test have no image of the calibration.
    """

    read: Callable[[int], Image.Image]
    calibration: np.ndarray
    comparison: np.ndarray
    test: np.ndarray
    held_out: bool

    def images(self, numbers: np.ndarray) -> Iterator[Image.Image]:
        """The images of these numbers, without those that cannot be read.

        Raises:
            UserError: None of them can be read.
        """
        num_read = 0
        for number in numbers.tolist():
            try:
                image = self.read(number)
            except UserError:
                continue
            num_read += 1
            yield image
        if not num_read:
            raise UserError("None of the calibration images can be read.")


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
    """
    read: Callable[[int], Image.Image]
    if labelled is not None:
        read, count = labelled.read, len(labelled)
    elif files:
        read, count = (lambda number: read_image(files[number])), len(files)
    else:
        samples = sample_photos(num_samples)
        read, count = samples.__getitem__, len(samples)
    everything = np.arange(count)
    held_out = not calibrated or count >= LEAST_TO_DIVIDE
    calibration = spread(everything, min(most_to_calibrate, count // 2) if held_out else most_to_calibrate)
    others = np.setdiff1d(everything, calibration) if calibrated and held_out else everything
    return Photos(read, calibration, spread(others, most_to_compare), spread(others, most_to_test), held_out)
