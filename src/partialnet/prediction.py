"""Classify images with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import UserError
from .images import read_images
from .preprocessing import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first, as (class name, probability in [0, 1])."""

    path: Path
    classes: tuple[tuple[str, float], ...]


class Classifier:
    """A checkpoint ready to classify images: its network, its class names and the preprocessing it was trained with.

    Args:
        checkpoint: A classifier; a network without classes or for other than three image channels is refused. It is
            set to evaluation mode.
        device: Where the network is moved to and runs.

    Raises:
        UserError: The network does not classify RGB images.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> None:
        channels = checkpoint.input_config["input_size"][0]
        if not checkpoint.num_classes:
            raise UserError("This network has no classes and gives features only, so it cannot predict.")
        if channels != 3:
            raise UserError(f"This network reads images of {channels} channels; only RGB images can be classified.")
        self.device = torch.device(device)
        self.model = checkpoint.model.eval().to(self.device)
        self.names_known = bool(checkpoint.class_names)
        self.class_names = checkpoint.class_labels
        self.preprocess = Preprocessing(checkpoint.input_config)

    def logits(self, images: Sequence[Image.Image]) -> Tensor:
        """Class logits of RGB images, (number of images, classes), float32 on the CPU."""
        return self.run(torch.stack([self.preprocess(image) for image in images]))

    def run(self, batch: Tensor) -> Tensor:
        """Class logits, (B, classes), float32 on the CPU, of preprocessed images, (B, 3, H, W)."""
        parameter = next(self.model.parameters(), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        with torch.inference_mode():
            return self.model(batch.to(self.device, dtype)).float().cpu()

    def predict(
        self, paths: Iterable[Path], topk: int = 5, batch_size: int = 16
    ) -> Iterator[tuple[Path, Prediction | UserError]]:
        """Classify image files in order, ``batch_size`` at a time.

        An image that cannot be read, or to which the network answers NaN, yields its error.

        Of the photographs only one at a time is in memory in full size.
        """
        topk = min(topk, len(self.class_names))
        results = (
            (path, image if isinstance(image, UserError) else self.preprocess(image))
            for path, image in read_images(paths)
        )
        while batch := list(islice(results, batch_size)):
            inputs = [item for _, item in batch if isinstance(item, Tensor)]
            best = self.run(torch.stack(inputs)).softmax(1).topk(topk) if inputs else ((), ())
            answers = zip(*best, strict=True)
            for path, item in batch:
                yield path, item if isinstance(item, UserError) else self._prediction(path, *next(answers))

    def _prediction(self, path: Path, probabilities: Tensor, classes: Tensor) -> Prediction | UserError:
        if not probabilities.isfinite().all():
            return UserError(f"{str(path)!r}: the network's answer is not a number (NaN): it overflows.")
        names = (self.class_names[index] for index in classes.tolist())
        return Prediction(path, tuple(zip(names, probabilities.tolist(), strict=True)))
