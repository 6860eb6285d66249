"""Classify images with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import UserError
from .images import read_images

#: Images longer than this many times their width, or wider than their height, are trimmed at both ends.
LONGEST_RATIO = 8


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first, as (class name, probability in [0, 1])."""

    path: Path
    classes: tuple[tuple[str, float], ...]


class Classifier:
    """A checkpoint ready to classify images: its network, its class names and the transform it was trained with.

    Args:
        checkpoint: A classifier; a network without classes or for other than three image channels is refused.

    Raises:
        UserError: The network does not classify RGB images.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        num_classes = getattr(checkpoint.model, "num_classes", 0)
        channels = checkpoint.input_config["input_size"][0]
        if not num_classes:
            raise UserError("This network has no classes, it gives features only; it cannot predict.")
        if channels != 3:
            raise UserError(f"This network reads images of {channels} channels; only RGB images can be classified.")
        self.model = checkpoint.model.eval()
        self.class_names = checkpoint.class_names or tuple(f"class {index}" for index in range(num_classes))
        self.crop_mode: str = checkpoint.input_config.get("crop_mode") or "center"
        self.transform: Any = create_transform(**checkpoint.input_config)

    def logits(self, images: Sequence[Image.Image]) -> Tensor:
        """Class logits of RGB images, (number of images, classes)."""
        batch = torch.stack([self.preprocess(image) for image in images])
        with torch.inference_mode():
            return self.model(batch)

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image as the network wants it, (3, H, W), normalised."""
        return self.transform(self._trim(image))

    def _trim(self, image: Image.Image) -> Image.Image:
        """Cut the far ends off very long images, which the centre crop would drop, before they are enlarged."""
        short, long = sorted(image.size)
        if self.crop_mode != "center" or long <= LONGEST_RATIO * short:
            return image
        width, height = (min(length, LONGEST_RATIO * short) for length in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def predict(
        self, paths: Iterable[Path], topk: int = 5, batch_size: int = 16
    ) -> Iterator[tuple[Path, Prediction | UserError]]:
        """Classify image files in order, ``batch_size`` at a time; one that cannot be read yields its error."""
        topk = min(topk, len(self.class_names))
        results = read_images(paths)
        while batch := list(islice(results, batch_size)):
            images = [image for _, image in batch if isinstance(image, Image.Image)]
            best = self.logits(images).float().softmax(1).topk(topk) if images else None
            row = 0
            for path, image in batch:
                if isinstance(image, UserError) or best is None:
                    yield path, image  # type: ignore[misc]
                    continue
                names = (self.class_names[index] for index in best.indices[row].tolist())
                yield path, Prediction(path, tuple(zip(names, best.values[row].tolist(), strict=True)))
                row += 1
