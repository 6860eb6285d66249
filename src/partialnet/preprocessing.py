"""From a photograph to a network's input: the same way for predicting, evaluating and exporting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor

#: A rectangle of an image in pixels, which may be fractions: left, top, right, bottom.
Region = tuple[float, float, float, float]

#: Images longer than this many times their width, or wider than their height, are trimmed at both ends.
LONGEST_RATIO = 8


class Preprocessing:
    """timm's evaluation transform of a checkpoint, safe for very long images; it can be sent to other processes.

    Args:
        input_config: ``Checkpoint.input_config``.
    """

    def __init__(self, input_config: Mapping[str, Any]) -> None:
        self.crop_mode: str = input_config.get("crop_mode") or "center"
        self.input_size: tuple[int, int] = tuple(input_config["input_size"][-2:])
        self.transform: Any = create_transform(**input_config)

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as the network wants it, (3, H, W), float32, normalised."""
        return self.transform(self._trim(image))

    def region(self, size: tuple[int, int]) -> Region:
        """What a network sees of an image of ``size`` (width, height): the part of it that fills the whole input.

        It reaches beyond the image where a border is added (``crop_mode="border"``).
        """
        trimmed = self._trimmed(size)
        scaled = self.transform.transforms[0](Image.new("1", trimmed)).size
        height, width = self.input_size
        edges = []
        for given, kept, enlarged, seen in zip(size, trimmed, scaled, (width, height), strict=True):
            # what is too small is padded, what is too large is cropped, both rounded as torchvision does
            start = round((enlarged - seen) / 2) if enlarged >= seen else -((seen - enlarged) // 2)
            offset = (given - kept) // 2
            edges.append((offset + start * kept / enlarged, offset + (start + seen) * kept / enlarged))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def _trimmed(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that are left of an image after trimming."""
        short, long = sorted(size)
        if self.crop_mode != "center" or long <= LONGEST_RATIO * short:
            return size
        return min(size[0], LONGEST_RATIO * short), min(size[1], LONGEST_RATIO * short)

    def _trim(self, image: Image.Image) -> Image.Image:
        """Cut the far ends off very long images, which the centre crop would drop, before they are enlarged."""
        width, height = self._trimmed(image.size)
        if (width, height) == image.size:
            return image
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
