"""How faithful a map is: how the network's answer changes as pixels are deleted or inserted in the map's order.

Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018, Sec. 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .cam import ClassMap, Explainer

#: Deviation of the blur from which insertion starts, in pixels of a 224-pixel input; RISE's.
BLUR = 5.0


@dataclass(frozen=True)
class Scores:
    """Deletion and insertion of the pixels of one image, the most important first.

    Attributes:
        shares: Share of pixels deleted or inserted at each step, from 0 to 1.
        deletion: Probability of the class at each step, with the deleted pixels grey (the mean of the training data).
        insertion: The same with all pixels but the inserted ones blurred.
        deletion_center: Deletion in order of the distance to the middle, which knows nothing of the image.
        insertion_center: Insertion in that order.
    """

    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    deletion_center: np.ndarray
    insertion_center: np.ndarray

    def areas(self) -> dict[str, float]:
        """Area under each curve, in [0, 1]: a good map has a small one for deletion and a large one for insertion."""
        names = ("deletion", "insertion", "deletion_center", "insertion_center")
        return {name: float(np.trapezoid(getattr(self, name), self.shares)) for name in names}


def deletion_and_insertion(
    explainer: Explainer, image: Image.Image, class_map: ClassMap, num_steps: int = 28, batch_size: int = 32
) -> Scores:
    """Delete and insert the pixels of an image in the order of a map, and in order of their distance to the middle.

    Pixels are those of the network's input. Their order among equals is random, the same in every call.

    Args:
        explainer: The network.
        image: RGB.
        class_map: A map of the image, with a class.
        num_steps: Steps from none to all pixels.
        batch_size: Images that the network gets at a time.

    Raises:
        ValueError: The map is of no class.
    """
    if class_map.target is None:
        raise ValueError(f"A map by {class_map.method} is of no class; its deletion and insertion are not defined.")
    full = explainer.prepare([image])[0]
    grey = torch.zeros_like(full)  # zero is the mean after normalisation
    blurred = _blur(full)
    height, width = full.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    middle = -np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)
    shares = np.linspace(0, 1, num_steps + 1)
    curves = []
    for order in (_order(class_map.at_input), _order(middle)):
        steps = _masks(order, shares, (height, width)).to(full.device)
        curves.append(_answers(explainer, grey, full, steps, class_map.target, batch_size))
        curves.append(_answers(explainer, full, blurred, steps, class_map.target, batch_size))
    return Scores(shares, *curves)


def _order(importance: np.ndarray) -> np.ndarray:
    """Indices of the flattened pixels, the most important first."""
    chance = np.random.default_rng(0).random(importance.size)
    return np.lexsort((chance, -importance.ravel()))


def _masks(order: np.ndarray, shares: np.ndarray, size: tuple[int, int]) -> Tensor:
    """(steps, 1, H, W), True for the leading share of the pixels."""
    rank = np.empty(order.size, dtype=np.int64)
    rank[order] = np.arange(order.size)
    counts = np.rint(shares * order.size).astype(np.int64)
    return torch.from_numpy(rank[None] < counts[:, None]).unflatten(1, size)[:, None]


def _answers(
    explainer: Explainer, chosen: Tensor, others: Tensor, masks: Tensor, target: int, batch_size: int
) -> np.ndarray:
    """Probability of the class for images with the masked pixels of ``chosen`` and the rest of ``others``."""
    answers = [
        explainer.probabilities(torch.where(part, chosen[None], others[None]))[:, target]
        for part in masks.split(batch_size)
    ]
    return torch.cat(answers).numpy()


def _blur(image: Tensor) -> Tensor:
    """Gaussian blur of (3, H, W), as strong for its size as RISE's for 224 pixels."""
    sigma = max(BLUR * min(image.shape[1:]) / 224, 0.5)
    radius = min(round(3 * sigma), min(image.shape[1:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image.dtype)
    blurred = F.pad(image[:, None], [radius] * 4, mode="reflect")
    blurred = F.conv2d(blurred, kernel[None, None, :, None])
    return F.conv2d(blurred, kernel[None, None, None, :])[:, 0]
