"""Data sets for training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from .handwritten_digits import DIGITS_SIZE, enlarge, split_indices

DIGITS_MEAN = (0.5, 0.5, 0.5)
DIGITS_STD = (0.5, 0.5, 0.5)


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """RGB images in memory with their classes, through a transform to a tensor."""

    def __init__(
        self, images: list[Image.Image], labels: list[int], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


@dataclass(frozen=True)
class Split:
    """Training and test data of one task, with what a checkpoint must remember of it."""

    train: ImageDataset
    test: ImageDataset
    class_names: tuple[str, ...]
    input_config: dict[str, Any]


def digits() -> Split:
    """Scikit-learn's 1,797 handwritten digits, enlarged from 8×8 to 64×64 pixels.

    A fixed fifth of each class is held out for testing. Training images are randomly turned, moved and scaled a
    little. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
    """
    data = load_digits()
    images = [enlarge(image) for image in data.images]
    labels = [int(label) for label in data.target]
    train, test = split_indices(np.array(labels))
    to_tensor: list[Any] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(DIGITS_MEAN, DIGITS_STD)]
    move = v2.RandomAffine(
        degrees=10, translate=(0.1, 0.1), scale=(0.85, 1.15), interpolation=InterpolationMode.BILINEAR
    )
    return Split(
        ImageDataset(
            [images[i] for i in train], [labels[i] for i in train], v2.Compose([*to_tensor[:1], move, *to_tensor[1:]])
        ),
        ImageDataset([images[i] for i in test], [labels[i] for i in test], v2.Compose(to_tensor)),
        tuple(str(name) for name in data.target_names),
        {
            "input_size": [3, DIGITS_SIZE, DIGITS_SIZE],
            "mean": list(DIGITS_MEAN),
            "std": list(DIGITS_STD),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
    )
