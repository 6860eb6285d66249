"""Batches of images with objects, the same whatever number of processes reads them.

As for classifiers (``partialnet.training.batches``), everything random follows from the seed, the epoch and the number
of the image or the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from partialnet.errors import UserError
from partialnet.training.batch_loader import batch_loader, read_or_replace
from partialnet.training.seeding import BATCH_ORDER, IMAGE, ORDER, SIZE, generator

from .annotations import DetectionImages
from .config import DetectionConfig
from .resizing import DetectorTransform, padded_size, resized_size
from .transforms import prepare, to_tensor


@dataclass
class DetectionBatch:
    """Images of various sizes with what is known of them.

    Attributes:
        images: (3, H, W) each, RGB, uint8; a quarter of the bytes that a GPU would get as floats.
        targets: For training, as torchvision's detectors want them: ``boxes``, ``labels`` and perhaps ``masks``, see
            ``transforms.prepare``. None for evaluation.
        indices: Place of each image in the data set, (B,), int64.
        unreadable: Images that should have been here and cannot be read, by their place, with why. In training others
            stand in for them, in evaluation they are left out, so that B is smaller, even 0.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]] | None
    indices: Tensor
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self) -> list[Tensor]:
        """The images as torchvision's detectors take them, where they are: (3, H, W), float32 in [0, 1]."""
        return [image.float().div_(255) for image in self.images]

    def pin_memory(self) -> DetectionBatch:
        """The batch in page-locked memory; torch's loader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DetectionBatch:
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _each(self, function: Callable[[Tensor], Tensor]) -> DetectionBatch:
        targets = self.targets
        if targets is not None:
            targets = [{name: function(tensor) for name, tensor in target.items()} for target in targets]
        return replace(self, images=[*map(function, self.images)], targets=targets, indices=function(self.indices))


def detection_train_loader(
    images: DetectionImages,
    config: DetectionConfig,
    epoch: int,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[DetectionBatch]:
    """The training batches of one epoch for one process, resized.

    All processes together take ``world_size * config.batch_size`` images a step; these are the same images for any
    number of processes with the same product. As a batch is filled up with zeros to its largest height and width, wide
    images come together, and tall ones. What is left at the end of the epoch is dropped, unless there is less than one
    batch in all: then this is the epoch's only batch.

    The detector must not resize again; see ``DetectorTransform``.

    Args:
        images: What is learnt from.
        config: Sides, mirroring, batch size, reading processes, seed, whether masks are learnt.
        epoch: Number of the epoch, from 0.
        first_batch: Number of the batch to start with.
        rank: Number of this process.
        world_size: Number of training processes.

    Raises:
        UserError: There are fewer images than processes, or no masks where they are to be learnt.
    """
    batches = _TrainBatches(images, config, epoch, rank, world_size)
    return batch_loader(batches, config.workers, config.device != "cpu", first_batch)


def detection_eval_loader(
    images: DetectionImages,
    transform: DetectorTransform,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
    pin_memory: bool = False,
) -> DataLoader[DetectionBatch]:
    """Every image once over all processes, in its own size; unreadable images are left out and reported.

    A detector resizes images and fills up a batch with zeros. Networks that look at an image as a whole, as attention
    does, answer differently with zeros beside it. So only images that come to the same size are in one batch, and the
    detections do not depend on the batch size.

    Processes may get different numbers of batches, and a batch whose images are all unreadable is empty.

    Args:
        images: What is evaluated.
        transform: How the detector resizes and fills up images.
        batch_size: Images in a batch at most.
        rank: Number of this process.
        world_size: Number of processes.
        workers: Reading processes; 0 reads in this one.
        pin_memory: Whether the batches are to go to a GPU.
    """
    together: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(images.sizes.tolist()):
        size = padded_size(resized_size((height, width), transform.img_size), transform.size_divisible)
        together.setdefault(size, []).append(index)
    batches = [
        indices[start : start + batch_size]
        for _, indices in sorted(together.items())
        for start in range(0, len(indices), batch_size)
    ]
    return batch_loader(_EvalBatches(images, batches[rank::world_size]), workers, pin_memory)


class _TrainBatches(Dataset[DetectionBatch]):
    """Item k is batch k of one epoch for one process."""

    def __init__(
        self, images: DetectionImages, config: DetectionConfig, epoch: int, rank: int, world_size: int
    ) -> None:
        self.images = images
        self.config = config
        self.with_masks = config.learns_masks(images)
        self.epoch = epoch
        size = min(config.batch_size, len(images) // world_size)
        if size < 1:
            raise UserError(f"{len(images)} training images are too few for {world_size} processes.")
        total = size * world_size
        order = generator(ORDER, config.seed, epoch).permutation(len(images))
        wide = images.sizes[order, 1] >= images.sizes[order, 0]
        groups = [order[wide], order[~wide]]
        # what does not fill a batch of wide or of tall images makes mixed ones
        groups.append(np.concatenate([group[len(group) // total * total :] for group in groups]))
        batches = np.concatenate([group[: len(group) // total * total].reshape(-1, total) for group in groups])
        batches = generator(BATCH_ORDER, config.seed, epoch).permutation(batches)
        self.order = batches[:, rank * size : (rank + 1) * size]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> DetectionBatch:
        images = self.images
        img_size = self._img_size(number)
        unreadable: dict[int, str] = {}
        pixels, targets, indices = [], [], []
        for wanted in self.order[number].tolist():
            read = partial(self._read, img_size=img_size)
            index, image = read_or_replace(read, wanted, len(images), self.config.seed, unreadable)
            mirrored = generator(IMAGE, self.config.seed, self.epoch, index).random() < self.config.horizontal_flip
            size = self._size(index)
            to_size = resized_size(size, img_size)
            prepared = prepare(image, images.instances(index), size, to_size, mirrored, self.with_masks)
            pixels.append(prepared[0])
            targets.append(prepared[1])
            indices.append(index)
        return DetectionBatch(pixels, targets, torch.tensor(indices), unreadable)

    def _read(self, index: int, img_size: tuple[int, int]) -> Image.Image:
        return self.images.read(index, min(resized_size(self._size(index), img_size)))

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self.images.sizes[index].tolist()
        return height, width

    def _img_size(self, number: int) -> tuple[int, int]:
        """Shorter and longer side of batch ``number``."""
        sides = self.config.training_sides
        if not sides:
            return self.config.sides
        drawn = int(generator(SIZE, self.config.seed, self.epoch, number).integers(len(sides)))
        return sides[drawn], self.config.sides[1]


class _EvalBatches(Dataset[DetectionBatch]):
    """Item k is the images at the places ``batches[k]``."""

    def __init__(self, images: DetectionImages, batches: list[list[int]]) -> None:
        self.images = images
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> DetectionBatch:
        pixels, indices = [], []
        unreadable: dict[int, str] = {}
        for index in self.batches[number]:
            try:
                pixels.append(to_tensor(self.images.read(index)))
            except UserError as error:
                unreadable[index] = str(error)
            else:
                indices.append(index)
        return DetectionBatch(pixels, None, torch.tensor(indices, dtype=torch.int64), unreadable)
