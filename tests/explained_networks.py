"""Networks and images for tests of what explains them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conftest import randomize_parameters
from PIL import Image
from torch import Tensor, nn

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.explain import Explainer

NAMES = ("tench, Tinca tinca", "English springer", "church", "golf ball")


def image(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def network(name: str = "partialnet_t0", size: int = 64, **model_args: Any) -> Checkpoint:
    checkpoint = create_checkpoint(name, **{"num_classes": 4, **model_args})
    randomize_parameters(checkpoint.model)
    checkpoint.input_config |= {"input_size": (3, size, size), "crop_pct": 1.0}
    return checkpoint


class RedFinder(nn.Module):
    """Class 0 is as probable as there is red in the image, class 1 as there is green."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 8, 8, bias=False)
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.weight[0, 0] = self.features.weight[1, 1] = 1 / 64

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.features(x).mean((2, 3))


def red_finder(size: int = 64) -> Explainer:
    config = {
        "input_size": (3, size, size),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    return Explainer(Checkpoint(RedFinder().eval(), "red_finder", {}, ("red", "green"), config))


def with_square(left: int, top: int, side: int, size: tuple[int, int], color: str = "red") -> Image.Image:
    picture = Image.new("RGB", size, "black")
    picture.paste(color, (left, top, left + side, top + side))
    return picture
