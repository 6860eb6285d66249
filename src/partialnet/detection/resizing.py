"""The one rule for resizing images to what a detector sees.

Training, evaluation, prediction and the canvas of an exported detector all resize by it, so that a detector is used on
the pixels that it has learnt from. Sizes are torchvision's; pixels of a reduced image are means over all those that it
had, while torchvision leaves most of a camera's photograph out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

#: Shorter and at most longer side of an image, in pixels (paper, Table 7).
IMG_SIZE = (800, 1333)


def resized_size(
    size: tuple[int, int], img_size: tuple[int, int], room: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width at which a detector sees an image of ``size``.

    Args:
        size: Height and width.
        img_size: Shorter side, and at most longer side.
        room: Height and width at most.
    """
    # torchvision's own operations, as their rounding decides whether a side comes to 799 or 800 pixels
    scale = min(img_size[0] / min(size), img_size[1] / max(size))
    if room is not None:
        scale = min(scale, room[0] / size[0], room[1] / size[1])
    # at least a pixel, where torchvision makes images without any of narrow strips
    height, width = (max(1, math.floor(float(side) * scale)) for side in size)
    return height, width


def padded_size(size: tuple[int, int], divisible: int) -> tuple[int, int]:
    """Height and width of the smallest canvas for an image of ``size`` whose sides are multiples of ``divisible``."""
    height, width = (-(-side // divisible) * divisible for side in size)
    return height, width


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image, (3, H, W), uint8 or floating point, resized to another height and width."""
    if size == tuple(image.shape[1:]):
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


class DetectorTransform(GeneralizedRCNNTransform):  # type: ignore[misc] # torchvision has no types
    """torchvision's: images resized, normalised and filled up to a batch; with the sizes and pixels of this module.

    Args:
        img_size: Shorter side, and at most longer side, in pixels.
        mean: Of each RGB channel, of values in [0, 1].
        std: Standard deviation of each.
        size_divisible: What height and width of a batch are multiples of.
        resizes_training: Whether it resizes in training, too, or takes images as they come there.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        size_divisible: int = 32,
        resizes_training: bool = True,
    ) -> None:
        super().__init__(*img_size, list(mean), list(std), size_divisible)
        self.resizes_training = resizes_training

    @property
    def img_size(self) -> tuple[int, int]:
        """Shorter side, and at most longer side, in pixels."""
        return int(self.min_size[-1]), int(self.max_size)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """RGB images, (3, H, W) in [0, 1] each, and in training their objects, as the network takes them."""
        known = [None] * len(images) if targets is None else targets
        resized = [self.resize(image, target) for image, target in zip(images, known, strict=True)]
        # normalised afterwards, as this takes further copies of an image
        pixels = [self.normalize(image) for image, _ in resized]
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in pixels]
        batch = ImageList(self.batch_images(pixels, self.size_divisible), sizes)
        return batch, None if targets is None else [target for _, target in resized if target is not None]

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image, (3, H, W), and perhaps its objects in the size in which the network sees it."""
        if self.training and not self.resizes_training:
            return image, target
        before = (int(image.shape[1]), int(image.shape[2]))
        size = resized_size(before, self.img_size)
        if target is not None:
            target = {**target, "boxes": resize_boxes(target["boxes"], list(before), list(size))}
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None].float(), size)[:, 0].byte()
        return resize_image(image, size), target
