"""From photographs to a network's answers, for everything that asks a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .errors import UserError
from .images import read_images
from .preprocessing import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """What a classifier answers to one image.

    Attributes:
        path: The image's file.
        classes: The most probable classes, best first: name, and probability in [0, 1].
    """

    path: Path
    classes: tuple[tuple[str, float], ...]


class PhotoNetwork:
    """A checkpoint ready for photographs: its network on a device, its class names and its preprocessing.

    Here, and nowhere else, a photograph becomes an answer: ``prepare`` makes the network's input of it, ``run`` or
    ``probabilities`` the answer to that, and ``named`` the names of the best classes.

    Args:
        checkpoint: Any network for RGB images, also an exported one; without classes it gives features only. It is set
            to evaluation mode.
        device: Where the network is moved to and runs.

    Raises:
        UserError: The network is for other images than RGB.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> None:
        channels, height, width = checkpoint.input_config["input_size"]
        if channels != 3:
            plural = "" if channels == 1 else "s"
            raise UserError(f"This network reads images of {channels} channel{plural}; photographs have three (RGB).")
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.model: nn.Module = checkpoint.model.eval().to(self.device)
        self.num_classes = checkpoint.num_classes
        self.names_known = bool(checkpoint.class_names)
        self.class_names = checkpoint.class_labels
        self.input_size: tuple[int, int] = (height, width)
        self.preprocess = Preprocessing(checkpoint.input_config)

    def prepare(self, images: Iterable[Image.Image]) -> Tensor:
        """RGB images as the network takes them, (B, 3, H, W), on its device and in its data type."""
        return self._place(torch.stack([self.preprocess(image) for image in images]))

    def _place(self, batch: Tensor) -> Tensor:
        parameter = next(self.model.parameters(), None)
        return batch.to(self.device, torch.float32 if parameter is None else parameter.dtype)

    def run(self, batch: Tensor) -> Tensor:
        """Class logits, (B, classes), float32 on the CPU, of preprocessed images, (B, 3, H, W)."""
        with torch.inference_mode():
            return self.model(self._place(batch)).float().cpu()

    def probabilities(self, batch: Tensor) -> Tensor:
        """Probability of each class, (B, classes), of preprocessed images; NaN where the network overflows."""
        return self.run(batch).softmax(1)

    def named(self, probabilities: Tensor, count: int) -> tuple[tuple[str, float], ...]:
        """Name and probability of the ``count`` most probable classes of one image, (classes,), best first.

        Raises:
            UserError: The probabilities are not finite.
        """
        values, classes = finite(probabilities).topk(min(count, self.num_classes))
        return tuple(
            (self.class_names[index], value) for index, value in zip(classes.tolist(), values.tolist(), strict=True)
        )

    def most_probable(self, image: Image.Image, count: int) -> tuple[tuple[str, float], ...]:
        """The same of a photograph; empty for a network without classes."""
        return self.named(self.probabilities(self.prepare([image]))[0], count) if self.num_classes else ()


def finite(probabilities: Tensor) -> Tensor:
    """The same probabilities.

    Raises:
        UserError: The network overflowed, so that they are not numbers.
    """
    if not probabilities.isfinite().all():
        raise UserError("The network's answer is not a number (NaN): it overflows.")
    return probabilities


class Classifier(PhotoNetwork):
    """A checkpoint ready to classify images.

    Args:
        checkpoint: A classifier, also an exported one; see ``PhotoNetwork``.
        device: Where the network is moved to and runs.

    Raises:
        UserError: The network does not classify RGB images.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> None:
        if not checkpoint.num_classes:
            raise UserError("This network has no classes and gives features only, so it cannot predict.")
        super().__init__(checkpoint, device)

    def predict(
        self, paths: Iterable[Path], topk: int = 5, batch_size: int = 16
    ) -> Iterator[tuple[Path, Prediction | UserError]]:
        """Classify image files in order, ``batch_size`` at a time.

        An image that cannot be read, or to which the network answers NaN, yields its error.

        Of the photographs only one at a time is in memory in full size.
        """
        results = (
            (path, image if isinstance(image, UserError) else self.preprocess(image))
            for path, image in read_images(paths)
        )
        while batch := list(islice(results, batch_size)):
            inputs = [item for _, item in batch if isinstance(item, Tensor)]
            answers = iter(self.probabilities(torch.stack(inputs)) if inputs else ())
            for path, item in batch:
                yield path, item if isinstance(item, UserError) else self._prediction(path, next(answers), topk)

    def _prediction(self, path: Path, probabilities: Tensor, topk: int) -> Prediction | UserError:
        try:
            return Prediction(path, self.named(probabilities, topk))
        except UserError as error:
            return UserError(f"{str(path)!r}: {error}")
