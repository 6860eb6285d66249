"""Accuracy of a classifier on labelled images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoint import Checkpoint
from .data import LabelledImages
from .errors import UserError
from .images import UnreadableImage, none_readable
from .messages import listed
from .prediction import Classifier
from .preprocessing import Preprocessing

CALIBRATION_BINS = 15
_TOP = 5


@dataclass(frozen=True)
class ClassResult:
    """How the images of one class fared.

    Attributes:
        name: The class.
        num_images: Its images that could be read.
        accuracy: Share of them, in [0, 1], that were given this class.
        confused_with: The class that most of the others were given; None if there are no others.
        num_confused: How many were given that class.
    """

    name: str
    num_images: int
    accuracy: float
    confused_with: str | None
    num_confused: int


@dataclass(frozen=True)
class Evaluation:
    """What a classifier answered to N labelled images, and what follows from it.

    Unreadable images have no answer and count nowhere. An answer that is not finite (NaN) counts as wrong.

    Attributes:
        class_names: The network's classes.
        labels: True class of each image as an index into ``class_names``, (N,).
        predicted: Most probable class of each image, (N,); -1 without an answer.
        probability: Its probability in [0, 1], (N,); 0 without an answer.
        in_top5: Whether the true class is among the five most probable, (N,).
        unreadable: Images that could not be read, by their number among the N.
        seconds: Time for all images, with reading them.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    in_top5: np.ndarray
    unreadable: dict[int, UnreadableImage]
    seconds: float

    @cached_property
    def readable(self) -> np.ndarray:
        """Which of the N images could be read, (N,)."""
        mask = np.ones(len(self.labels), bool)
        mask[list(self.unreadable)] = False
        return mask

    @property
    def num_images(self) -> int:
        """Number of images that could be read."""
        return int(self.readable.sum())

    @property
    def num_right(self) -> int:
        """Number of images that were given their class."""
        return int(self._right.sum())

    @property
    def top1(self) -> float:
        """Share of images, in [0, 1], that were given their class."""
        return float(self._right.mean())

    @property
    def top5(self) -> float | None:
        """Share of images whose class is among the five most probable; None for up to five classes."""
        return float(self.in_top5[self.readable].mean()) if len(self.class_names) > _TOP else None

    @property
    def num_not_finite(self) -> int:
        """Number of images to which the network answered NaN or infinity."""
        return int((self.predicted[self.readable] < 0).sum())

    @property
    def images_per_second(self) -> float:
        """Images evaluated in a second, with reading them."""
        return self.num_images / max(self.seconds, 1e-9)

    @property
    def _right(self) -> np.ndarray:
        return (self.predicted == self.labels)[self.readable]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in [0, 1]: how far probabilities are from the share of right answers.

        Mean over 15 bins of equal width, weighted by their images. Source: Guo et al., "On Calibration of Modern
        Neural Networks", 2017, Eq. 3.
        """
        probability, right = self.probability[self.readable], self._right
        bins = np.clip(np.ceil(probability * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        gaps = np.bincount(bins, weights=right - probability, minlength=CALIBRATION_BINS)
        return float(np.abs(gaps).sum() / len(right))

    @property
    def classes(self) -> tuple[ClassResult, ...]:
        """One result for each class that has images, in the order of ``class_names``."""
        size = len(self.class_names)
        labels, predicted = self.labels[self.readable], self.predicted[self.readable]
        counts = np.bincount(labels, minlength=size)
        right = np.bincount(labels[predicted == labels], minlength=size)
        wrong = (predicted != labels) & (predicted >= 0)
        pairs, numbers = np.unique(labels[wrong] * size + predicted[wrong], return_counts=True)
        confused: dict[int, tuple[str, int]] = {}
        for place in np.argsort(-numbers, kind="stable"):
            label, answer = divmod(int(pairs[place]), size)
            confused.setdefault(label, (self.class_names[answer], int(numbers[place])))
        results = []
        for label in np.flatnonzero(counts).tolist():
            accuracy = float(right[label] / counts[label])
            taken_for = confused.get(label, (None, 0))
            results.append(ClassResult(self.class_names[label], int(counts[label]), accuracy, *taken_for))
        return tuple(results)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "num_images": self.num_images,
            "num_unreadable": len(self.unreadable),
            "num_not_finite": self.num_not_finite,
            "top1": self.top1,
            "top5": self.top5,
            "calibration_error": self.calibration_error,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "classes": [vars(result) for result in self.classes],
            "unreadable": [asdict(one) for one in self.unreadable.values()],
        }

    def rows(self, images: LabelledImages) -> Iterator[dict[str, str]]:
        """One row for each of the evaluated ``images``: path, label, predicted and probability."""
        for index, (label, predicted) in enumerate(zip(self.labels.tolist(), self.predicted.tolist(), strict=True)):
            row = {"path": images.name(index), "label": self.class_names[label]}
            if predicted >= 0:
                probability = f"{self.probability[index]:.6f}"
                row |= {"predicted": self.class_names[predicted], "probability": probability}
            yield row


def evaluate(
    network: Checkpoint | Classifier,
    images: LabelledImages,
    batch_size: int = 32,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Classify labelled images, read one batch at a time, as ``partialnet predict`` would.

    Args:
        network: A checkpoint, which is set to evaluation mode and moved to ``device``, or a classifier as it is.
        images: Their classes are matched with the network's by name, in any order; some of the network's are enough.
        batch_size: Images at a time.
        workers: Processes that read images; 0 reads them in this one.
        device: Where a checkpoint runs.
        progress: Show a bar when it takes over two seconds.

    Raises:
        UserError: The classes do not fit, or none of the images can be read.
    """
    classifier = network if isinstance(network, Classifier) else Classifier(network, device)
    labels = match_classes(images, classifier)[images.labels]
    predicted = np.full(len(images), -1, np.int64)
    probability = np.zeros(len(images))
    in_top5 = np.zeros(len(images), bool)
    unreadable: dict[int, UnreadableImage] = {}
    loader = DataLoader(
        _Preprocessed(images, classifier.preprocess), batch_size, num_workers=workers, collate_fn=_collate
    )
    start = time.perf_counter()
    with tqdm(total=len(images), desc="evaluating", unit="image", delay=2, disable=None if progress else True) as bar:
        for indices, batch, errors in loader:
            unreadable |= {index: UnreadableImage(images.name(index), reason) for index, reason in errors}
            if batch is not None:
                probabilities = classifier.probabilities(torch.from_numpy(batch))
                best = probabilities.topk(min(_TOP, classifier.num_classes))
                values, classes = best.values.numpy(), best.indices.numpy()
                finite = np.isfinite(values).all(1)
                predicted[indices] = np.where(finite, classes[:, 0], -1)
                probability[indices] = np.where(finite, values[:, 0], 0)
                in_top5[indices] = (classes == labels[indices, None]).any(1) & finite
            bar.update(len(indices) + len(errors))
    seconds = time.perf_counter() - start
    if len(unreadable) == len(images):
        raise none_readable(unreadable.values())
    return Evaluation(classifier.class_names, labels, predicted, probability, in_top5, unreadable, seconds)


class _Preprocessed(Dataset[tuple[int, np.ndarray | str]]):
    """Number and preprocessed pixels (3, H, W) of each image, or why it cannot be read."""

    def __init__(self, images: LabelledImages, preprocess: Preprocessing) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | str]:
        try:
            image = self.images.read(index)
        except UserError as error:
            return index, str(error)
        return index, self.preprocess(image).numpy()


def _collate(
    items: Sequence[tuple[int, np.ndarray | str]],
) -> tuple[list[int], np.ndarray | None, list[tuple[int, str]]]:
    """Numbers and pixels (B, 3, H, W) of the images that could be read, and the others with their reasons.

    An array travels from a worker through a pipe. A tensor would take shared memory, of which containers
    often have less than a few batches.
    """
    good = [(index, item) for index, item in items if not isinstance(item, str)]
    bad = [(index, item) for index, item in items if isinstance(item, str)]
    return [index for index, _ in good], np.stack([item for _, item in good]) if good else None, bad


def match_classes(images: LabelledImages, classifier: Classifier) -> np.ndarray:
    """The network's class of each class of the images, (number of the images' classes,).

    Raises:
        UserError: The network does not know one of the classes, or has no names and another number of classes.
    """
    known = {name: index for index, name in enumerate(classifier.class_names)}
    if not classifier.names_known:
        if len(images.class_names) != len(known):
            raise UserError(
                f"The network has {len(known)} classes without names and the images have {len(images.class_names)}, so "
                "they cannot be matched."
            )
        return np.arange(len(known))
    unknown = [name for name in images.class_names if name not in known]
    if unknown:
        # upper and lower case do not count, for that is what names of the same class differ in most often
        folded = {name.casefold(): name for name in known}
        near = get_close_matches(unknown[0].casefold(), folded, n=1, cutoff=0.5)
        hint = (
            f"the most similar one is {folded[near[0]]!r}" if near else f"it knows {listed(classifier.class_names, 8)}"
        )
        others = f", nor {len(unknown) - 1} more of the classes" if len(unknown) > 1 else ""
        raise UserError(f"The network has no class {unknown[0]!r}{others}; {hint}.")
    return np.array([known[name] for name in images.class_names], np.int64)
