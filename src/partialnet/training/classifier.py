"""Training of a classifier: its step, its validation, its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partialnet import plots
from partialnet.checkpoint import Checkpoint
from partialnet.data.labelled_images import ImageData
from partialnet.errors import UserError

from .batches import Batch, eval_loader, train_loader
from .config import TrainConfig
from .network import classifier_parameters
from .pictures import CURVES_NAME
from .task import Task
from .teacher import Teacher, distillation_loss


class ClassifierTask(Task):
    """Training of a classifier, (B, 3, H, W) → (B, classes).

    Args:
        checkpoint: The network, and how it wants its images.
        config: How to train it.
        data: What to learn from.
        num_batches: Batches of an epoch, in each process.
        teacher: A network to learn from as well.
    """

    num_sums = 3

    config: TrainConfig
    data: ImageData

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        data: ImageData,
        num_batches: int,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(checkpoint.model, config, data, num_batches)
        self.start = checkpoint
        self.input_config = checkpoint.input_config
        # in a tuple, as it is not for Lightning's state dict or DDP: the teacher does not change
        self._teacher = (teacher,)

    def bring_to_device(self) -> None:
        """Bring to the network's device what Lightning does not know of."""
        super().bring_to_device()
        if self._teacher[0] is not None:
            self._teacher[0].to(self.device)

    def on_fit_start(self) -> None:
        """Begin to train."""
        super().on_fit_start()
        if self.config.freeze_backbone:
            self.network.eval()  # statistics of the frozen layers stay as they are

    def batches(self, epoch: int, first_batch: int, rank: int, world_size: int) -> Iterable[Batch]:
        """The training batches of one epoch for one process, from number ``first_batch`` on."""
        return train_loader(self.data.train, self.config, self.input_config, epoch, first_batch, rank, world_size)

    def training_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, with the teacher's part; and loss times images, images that were right, images."""
        config = self.config
        images = self._images(batch)
        logits = self.network(images)
        # soft targets are smoothed already
        smoothing = config.label_smoothing if batch.targets.ndim == 1 else 0.0
        loss = F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)
        if (teacher := self._teacher[0]) is not None:
            distance = distillation_loss(logits, teacher(images), config.teacher_temperature)
            loss = (1 - config.teacher_weight) * loss + config.teacher_weight * distance
        return loss, _sums(loss.detach() * len(batch), logits, batch)

    def validate(self, after_batch: Callable[[], None]) -> dict[str, float]:
        """Loss and accuracy of the held-out images of all processes.

        Raises:
            UserError: None of them can be read.
        """
        images, trainer = self.data.validation, self.trainer
        batches = eval_loader(images, self.config, self.input_config, trainer.global_rank, trainer.world_size)
        device = trainer.strategy.root_device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        unreadable: set[int] = set()
        with torch.no_grad(), self.evaluation_mode() as network:
            for batch in self.with_bar(batches):
                unreadable.update(batch.unreadable)
                if len(batch):
                    batch = batch.to(device, non_blocking=True)
                    logits = network(self._images(batch)).float()
                    sums += _sums(F.cross_entropy(logits, batch.labels, reduction="sum"), logits, batch).double()
                after_batch()
        self.progress.unreadable.update(images.name(index) for index in unreadable)
        loss, right, number = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if not number:
            raise UserError(
                "None of the validation images can be read; if the data is gone, bring it back and use --resume."
            )
        return {"val_loss": loss / number, "val_accuracy": right / number}

    def _images(self, batch: Batch) -> Tensor:
        """The images in the memory layout of the network."""
        if self.config.channels_last:
            return batch.images.contiguous(memory_format=torch.channels_last)
        return batch.images

    def metrics(self, sums: list[float], validation: dict[str, float]) -> dict[str, float]:
        """Mean losses in nats and accuracies in [0, 1].

        Those of training are of the images as trained, with augmentation, smoothing and distillation, while the
        network changed; those of validation are of the averaged weights where there are any.
        """
        loss, right, number = sums
        return {"train_loss": loss / number, "train_accuracy": right / number, **validation}

    def score(self, row: dict[str, float]) -> float:
        """The validation accuracy."""
        return row["val_accuracy"]

    def summary(self, row: dict[str, float]) -> str:
        """Losses and accuracy in words."""
        return (
            f"loss {row['train_loss']:.4f}  validation loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.2%}"
        )

    def trained_parameters(self) -> str:
        """How many parameters are trained, in words, and which where only the last layer is."""
        words = super().trained_parameters()
        if self.config.freeze_backbone:
            words += f" (only {', '.join(sorted(classifier_parameters(self.network)))})"
        return words

    def draw(self, folder: Path) -> None:
        """Curves so far."""
        plots.learning_curves(folder / CURVES_NAME, self.progress.rows, self.summary(self.progress.rows[-1]))

    def checkpoint(self, training: dict[str, Any]) -> Checkpoint | None:
        """The network that is evaluated, with classes and preprocessing."""
        return replace(self.start, model=self.evaluated, training=training)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how images are prepared, too: it may come from other weights, which may be gone later."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["input_config"] = self.input_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        self.input_config = checkpoint.get("input_config", self.input_config)
        self.start = replace(self.start, input_config=self.input_config)
        if self._teacher[0] is not None:
            self._teacher[0].expect(self.input_config)


def _sums(loss: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """The summed loss of a batch, how many of its images were right, and how many there are; (3,)."""
    right = (logits.argmax(1) == batch.labels).sum()
    number = loss.new_full((), len(batch))  # unlike torch.tensor, this does not make a GPU wait
    return torch.stack((loss, right, number))
