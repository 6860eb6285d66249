"""Batches for training and evaluation, the same whatever number of processes reads them.

Everything random about an image follows from (seed, epoch, index of the image), everything random about a batch from
(seed, epoch, number of the batch). So batch k of an epoch is the same bits with any number of workers, and
when reading starts at batch k, as an interrupted run does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ColorJitter, Compose, Resize

from partialnet.data.labelled_images import LabelledImages
from partialnet.errors import UserError
from partialnet.preprocessing import Preprocessing

from .batch_loader import batch_loader, read_or_replace
from .config import TrainConfig
from .seeding import ERASING, IMAGE, MIX, ORDER, SIZE, generator, random_state_restored, seed_everything

#: Least height of timm's random crops as a share of their width, and the other way round.
_NARROWEST = 3 / 4


@dataclass
class Batch:
    """Images as a network wants them, with what is known of them.

    Attributes:
        images: (B, 3, H, W), float32, normalised, in channels_last memory.
        targets: What is to be learnt: classes, (B,), int64; with mixup or cutmix probabilities, (B, classes), float32.
        labels: True class of each image, (B,), int64.
        indices: Place of each image in the data set, (B,), int64.
        unreadable: Images that should have been here and cannot be read, by their place, with why. In training others
            stand in for them, in evaluation they are left out, so that B is smaller, even 0.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; torch's loader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=function(self.images),
            targets=function(self.targets),
            labels=function(self.labels),
            indices=function(self.indices),
        )


def train_loader(
    images: LabelledImages,
    config: TrainConfig,
    input_config: Mapping[str, Any],
    epoch: int,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """The training batches of one epoch for one process.

    All processes together take ``world_size * config.batch_size`` images a step; these are the same images for any
    number of processes with the same product. What is left at the end of the epoch is dropped, unless there is less
    than one batch in all: then this is the epoch's only batch.

    Args:
        images: What is learnt from.
        config: Augmentation, batch size, workers, seed.
        input_config: timm's data configuration: ``input_size``, ``mean``, ``std``, ``interpolation``.
        epoch: Number of the epoch, from 0.
        first_batch: Number of the batch to start with.
        rank: Number of this process.
        world_size: Number of training processes.

    Raises:
        UserError: There are too few images, or mixup or cutmix is to mix an odd number of them.
    """
    batches = _TrainBatches(images, config, dict(input_config), epoch, rank, world_size)
    return batch_loader(batches, config.workers, config.device != "cpu", first_batch)


def eval_loader(
    images: LabelledImages, config: TrainConfig, input_config: Mapping[str, Any], rank: int = 0, world_size: int = 1
) -> DataLoader[Batch]:
    """Every image once over all processes, prepared as for prediction; unreadable images are left out and reported.

    Processes may get different numbers of batches, and a batch whose images are all unreadable is empty.

    Args:
        images: What is evaluated.
        config: Batch size, workers, and the share of an image that is kept.
        input_config: timm's data configuration: ``input_size``, ``mean``, ``std``, ``interpolation``.
        rank: Number of this process.
        world_size: Number of training processes.
    """
    batches = _EvalBatches(images, config, dict(input_config), rank, world_size)
    return batch_loader(batches, config.workers, config.device != "cpu")


class _TrainBatches(Dataset[Batch]):
    """Item k is batch k of one epoch for one process."""

    def __init__(
        self,
        images: LabelledImages,
        config: TrainConfig,
        input_config: dict[str, Any],
        epoch: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.images = images
        self.config = config
        self.input_config = input_config
        self.epoch = epoch
        mixes = config.mixup > 0 or config.cutmix > 0
        if mixes and config.batch_size % 2:
            raise UserError(f"Mixup and cutmix mix pairs: batch_size must be even, not {config.batch_size}.")
        size = min(config.batch_size, len(images) // world_size)
        size -= size % 2 if mixes else 0
        if size < min(2, config.batch_size):
            raise UserError(
                f"{len(images)} training images are too few: each of {world_size} processes needs at least 2."
                if world_size > 1
                else f"Training needs at least 2 images, not {len(images)}."
            )
        total = size * world_size
        order = generator(ORDER, config.seed, epoch).permutation(len(images))
        # Place i and its mirror image belong to the same process: these are the pairs that mixup mixes, so that the
        # mixed images, too, do not depend on the number of processes
        if size % 2 == 0:
            half = np.arange(rank * (size // 2), (rank + 1) * (size // 2))
            mine = np.concatenate((half, total - 1 - half[::-1]))
        else:
            mine = np.arange(rank * size, (rank + 1) * size)
        self.order = order[: len(images) // total * total].reshape(-1, total)[:, mine]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Batch:
        config = self.config
        size = self._size(number)
        unreadable: dict[int, str] = {}
        pixels = np.empty((self.order.shape[1], *size, 3), np.uint8)
        indices = []
        read = partial(self.images.read, min_side=self._min_side(size))
        with random_state_restored():
            for place, wanted in enumerate(self.order[number].tolist()):
                index, image = read_or_replace(read, wanted, len(self.images), config.seed, unreadable)
                seed_everything(IMAGE, config.seed, self.epoch, index)
                pixels[place] = np.asarray(self._transform(size)(image))
                indices.append(index)
            images = _normalise(pixels, self.input_config)
            if self._erase:
                for index, image in zip(indices, images, strict=True):
                    seed_everything(ERASING, config.seed, self.epoch, index)
                    self._erase(image)
            labels = torch.from_numpy(self.images.labels[indices])
            targets = labels
            if self._mix:
                seed_everything(MIX, config.seed, self.epoch, number)
                images, targets = self._mix(images, labels)
        return Batch(images, targets, labels, torch.tensor(indices), unreadable)

    def _size(self, number: int) -> tuple[int, int]:
        """Height and width of batch ``number``."""
        config = self.config
        if config.random_sizes and self.epoch < config.random_sizes_until * config.epochs:
            drawn = int(generator(SIZE, config.seed, self.epoch, number).integers(len(config.random_sizes)))
            return (config.random_sizes[drawn],) * 2
        _, height, width = self.input_config["input_size"]
        return height, width

    def _min_side(self, size: tuple[int, int]) -> int:
        """How large an image must be so that the smallest random crop need not be enlarged."""
        return math.ceil(max(size) / math.sqrt(min(max(self.config.crop_scale_min, 0.01), 1.0) * _NARROWEST))

    @cached_property
    def _transforms(self) -> dict[tuple[int, int], Compose]:
        return {}

    def _transform(self, size: tuple[int, int]) -> Compose:
        """Random changes of an RGB image of any size; the result has the given height and width."""
        if size not in self._transforms:
            config, interpolation = self.config, self.input_config["interpolation"]
            spatial, colour, _ = create_transform(
                size,
                is_training=True,
                scale=(config.crop_scale_min, 1.0),
                hflip=config.horizontal_flip,
                color_jitter=None,  # type: ignore[arg-type] # timm would leave it out beside auto_augment
                auto_augment=config.auto_augment,
                interpolation=interpolation,
                mean=self.input_config["mean"],
                separate=True,  # the third part, to a tensor and normalised, is done for the batch as a whole
            )
            steps = [*spatial.transforms, *colour.transforms]
            if config.color_jitter:
                steps.append(ColorJitter(*[config.color_jitter] * 3))
            if config.crop_scale_min >= 1:
                # a random crop of the whole area would still draw a shape and cut the image to it
                steps[0] = Resize(size, str_to_interp_mode(interpolation))
            self._transforms[size] = Compose(steps)
        return self._transforms[size]

    @cached_property
    def _erase(self) -> RandomErasing | None:
        return RandomErasing(self.config.erasing, mode="pixel", device="cpu") if self.config.erasing else None

    @cached_property
    def _mix(self) -> Mixup | None:
        config = self.config
        if not config.mixup and not config.cutmix:
            return None
        return Mixup(
            config.mixup,
            config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=len(self.images.class_names),
        )


class _EvalBatches(Dataset[Batch]):
    """Item k is batch k of one process's share of the images."""

    def __init__(
        self, images: LabelledImages, config: TrainConfig, input_config: dict[str, Any], rank: int, world_size: int
    ) -> None:
        self.images = images
        self.input_config = {**input_config, "crop_pct": config.test_crop}
        self.batch_size = config.batch_size
        self.mine = np.arange(rank, len(images), world_size)

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        _, height, width = self.input_config["input_size"]
        read: list[np.ndarray] = []
        indices: list[int] = []
        unreadable: dict[int, str] = {}
        for index in self.mine[number * self.batch_size : (number + 1) * self.batch_size].tolist():
            try:
                image = self.images.read(index)
            except UserError as error:
                unreadable[index] = str(error)
                continue
            read.append(self._transform(image).permute(1, 2, 0).numpy())
            indices.append(index)
        pixels = np.stack(read) if read else np.empty((0, height, width, 3), np.uint8)
        labels = torch.from_numpy(self.images.labels[np.array(indices, dtype=np.int64)])
        images = _normalise(pixels, self.input_config)
        return Batch(images, labels, labels, torch.tensor(indices, dtype=torch.int64), unreadable)

    @cached_property
    def _transform(self) -> Preprocessing:
        """What prediction does to an image, up to the 8-bit pixels."""
        return Preprocessing({**self.input_config, "normalize": False})


def _normalise(pixels: np.ndarray, input_config: Mapping[str, Any]) -> Tensor:
    """8-bit images (B, H, W, 3) as (B, 3, H, W) float32 in channels_last memory, less the mean, by the deviation."""
    batch, height, width, _ = pixels.shape
    # Rows of W·3 values instead of 3 at a time, which takes a third of the time. The operations are those of
    # torchvision's ToTensor and Normalize, in their order, so that the bits are those of prediction.
    mean, std = (torch.tensor(input_config[name], dtype=torch.float32).repeat(width) for name in ("mean", "std"))
    rows = torch.from_numpy(pixels).view(batch, height, width * 3).float().div_(255).sub_(mean).div_(std)
    return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)
