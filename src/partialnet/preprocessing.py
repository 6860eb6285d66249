"""From a photograph to what a network takes: the one way for predicting, evaluating and exporting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor

#: Images longer than this many times their width, or wider than their height, are trimmed at both ends.
LONGEST_RATIO = 8


class Preprocessing:
    """timm's evaluation transform of a checkpoint, safe for very long images; it can be sent to other processes.

    Args:
        input_config: ``Checkpoint.input_config``.
    """

    def __init__(self, input_config: Mapping[str, Any]) -> None:
        self.crop_mode: str = input_config.get("crop_mode") or "center"
        self.transform: Any = create_transform(**input_config)

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as the network wants it, (3, H, W), float32, normalised."""
        return self.transform(self._trim(image))

    def _trim(self, image: Image.Image) -> Image.Image:
        """Cut the far ends off very long images, which the centre crop would drop, before they are enlarged."""
        short, long = sorted(image.size)
        if self.crop_mode != "center" or long <= LONGEST_RATIO * short:
            return image
        width, height = (min(length, LONGEST_RATIO * short) for length in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
