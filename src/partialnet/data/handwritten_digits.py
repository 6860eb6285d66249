"""Scikit-learn's handwritten digits: the data set that is always available."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from .labelled_images import ImageData, LabelledImages, Subset


class HandwrittenDigits(LabelledImages):
    """1,797 digits of 8×8 pixels, enlarged to 64×64, light on dark.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
    """

    def __init__(self) -> None:
        data = load_digits()
        self.class_names = tuple(str(name) for name in data.target_names)
        self.labels = data.target.astype(np.int64)
        self._images = data.images  # values 0 to 16

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Digit ``index`` as 8-bit RGB."""
        grey = Image.fromarray((self._images[index] * (255 / 16)).round().astype(np.uint8))
        return grey.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")

    def name(self, index: int) -> str:
        """Number within scikit-learn's data."""
        return f"digits/{index}"


def open_digits() -> ImageData:
    """The digits; the same fifth of each class is always held out."""
    images = HandwrittenDigits()
    numbers = np.arange(len(images))
    train, test = train_test_split(numbers, test_size=0.2, random_state=0, stratify=images.labels)
    return ImageData(Subset(images, train), Subset(images, test), "a fixed fifth of each class held out")
