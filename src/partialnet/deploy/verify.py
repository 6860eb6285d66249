"""Compare an exported network with the original on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from partialnet.errors import UserError
from partialnet.evaluation import Evaluation
from partialnet.prediction import Classifier

#: Share of the largest logit by which equal ones may differ in float32.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Agreement:
    """How far an exported network's logits are from the original's.

    An image to which the original answers NaN or infinity has no class, so none that is the same, and no error.

    Attributes:
        num_images: Images compared.
        max_error: Largest absolute difference of a logit.
        max_logit: Largest absolute logit of the original, to judge the error by.
        top1: Share of images, in [0, 1], with the same most probable class.
        num_not_finite: Images to which the original answers NaN or infinity.
        error_to_spread: Root mean square of the errors as a share of that of the original's logits about each class's
            mean over the images: 1 if the exported network gave every image the same answer. None where the original
            itself does, as to a single image.
    """

    num_images: int
    max_error: float
    max_logit: float
    top1: float
    num_not_finite: int = 0
    error_to_spread: float | None = None


def compare_logits(original: Classifier, exported: Classifier, batches: Iterable[Tensor]) -> Agreement:
    """Compare two classifiers on batches of preprocessed images, (B, C, H, W).

    Raises:
        UserError: The original answers NaN or infinity to every image, or the exported network to one to which the
            original does not.
    """
    pairs = [(original.run(batch), exported.run(batch)) for batch in batches]
    expected, given = (torch.cat(answers) for answers in zip(*pairs, strict=True))
    count, known = len(expected), expected.isfinite().all(1)
    if not known.any():
        raise UserError("The network itself answers NaN or infinity to every image; there is nothing to export.")
    expected, given = expected[known], given[known]
    if not given.isfinite().all():
        raise UserError("The exported network answers NaN or infinity, so it is not kept; use another precision.")
    errors, largest = given - expected, float(expected.abs().max())
    spread = _root_mean_square(expected - expected.mean(0))
    return Agreement(
        count,
        float(errors.abs().max()),
        largest,
        int((expected.argmax(1) == given.argmax(1)).sum()) / count,
        count - len(expected),
        _root_mean_square(errors) / spread if spread > _ROUNDING * largest else None,
    )


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@dataclass(frozen=True)
class Accuracy:
    """How many labelled images the original and the exported network get right.

    Attributes:
        num_images: Images that could be read.
        original: Share, in [0, 1], that the network gets right in PyTorch.
        exported: Share that the exported network gets right.
        difference: ``exported - original``.
        agreement: Share that both give the same class, right or wrong; NaN is none.
        held_out: Whether none of the images was used for calibration.
    """

    num_images: int
    original: float
    exported: float
    difference: float
    agreement: float
    held_out: bool


def compare_accuracy(original: Evaluation, exported: Evaluation, held_out: bool) -> Accuracy:
    """Compare two evaluations on the same images.

    Args:
        original: Of the network in PyTorch.
        exported: Of the exported network.
        held_out: Whether none of the images was used for calibration.
    """
    same = ((original.predicted == exported.predicted) & (original.predicted >= 0))[original.readable]
    difference = exported.top1 - original.top1
    return Accuracy(original.num_images, original.top1, exported.top1, difference, float(same.mean()), held_out)


def random_batches(input_size: Sequence[int]) -> Iterable[Tensor]:
    """Sixteen batches of one image of normally distributed noise, as a network sees them, (1, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        yield torch.randn(1, *input_size, generator=generator)


def image_batches(classifier: Classifier, images: Iterable[Image.Image], batch_size: int = 16) -> Iterable[Tensor]:
    """Photographs through the classifier's preprocessing, (B, C, H, W)."""
    images = iter(images)
    while batch := list(islice(images, batch_size)):
        yield classifier.prepare(batch)
