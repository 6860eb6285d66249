"""Training of a detector: its step, its validation, its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from partialnet.errors import UserError
from partialnet.training.agreement import gathered
from partialnet.training.task import Task

from . import pictures
from .batches import DetectionBatch, detection_eval_loader, detection_train_loader
from .checkpoint import DetectorCheckpoint
from .config import DetectionConfig
from .data_sources import DetectionData
from .evaluator import Detection, DetectionEvaluation, evaluate, gather
from .inference import find_objects
from .model import Detector

#: torchvision's losses, in the order of the columns of metrics.csv; that of masks only where they are learnt.
_MASK_LOSS = "loss_mask"
LOSSES = ("loss_classifier", "loss_box_reg", _MASK_LOSS, "loss_objectness", "loss_rpn_box_reg")


class DetectorTask(Task):
    """Training of a detector, with or without masks.

    Args:
        checkpoint: The detector.
        config: How to train it.
        data: What to learn from.
        num_batches: Batches of an epoch, in each process.
    """

    unreadable = "cannot be read, or have another size than the file says"
    config: DetectionConfig
    data: DetectionData

    def __init__(
        self, checkpoint: DetectorCheckpoint, config: DetectionConfig, data: DetectionData, num_batches: int
    ) -> None:
        super().__init__(checkpoint.model, config, data, num_batches)
        self.start = checkpoint
        checkpoint.model.transform.resizes_training = False  # the batches are resized
        #: The last validation, and its detections on the images that are drawn; of the first process.
        self._validated: tuple[DetectionEvaluation, list[Detection]] | None = None

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of its losses, among ``LOSSES``."""
        has_masks = cast(Detector, self.network).has_masks
        return tuple(name for name in LOSSES if has_masks or name != _MASK_LOSS)

    @property
    def num_sums(self) -> int:
        """Each loss, and the number of images."""
        return len(self.losses) + 1

    def batches(self, epoch: int, first_batch: int, rank: int, world_size: int) -> Iterable[DetectionBatch]:
        """The training batches of one epoch for one process, from number ``first_batch`` on."""
        return detection_train_loader(self.data.train, self.config, epoch, first_batch, rank, world_size)

    def training_loss(self, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        """Sum of torchvision's losses, a scalar; and each of them times images, images: (number of losses + 1,)."""
        losses = self.network(batch.inputs(), batch.targets)
        loss = torch.stack([losses[name] for name in self.losses]).sum()
        with torch.no_grad():
            number = loss.new_full((), len(batch))
            return loss, torch.stack([*(losses[name].detach() * number for name in self.losses), number])

    def validate(self, after_batch: Callable[[], None]) -> dict[str, float]:
        """Average precision of boxes, and of masks if there are any, on the held-out images of all processes.

        Raises:
            UserError: None of them can be read.
        """
        images, trainer, config = self.data.validation, self.trainer, self.config
        device = trainer.strategy.root_device
        batches = detection_eval_loader(
            images,
            self.start.model.transform,
            batch_size=config.eval_batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            workers=config.workers,
            pin_memory=device.type == "cuda",
        )
        with self.evaluation_mode() as network:
            found = find_objects(network, images, self.with_bar(batches), device, after_batch)
        self.progress.unreadable.update(images.name(index) for index in found.unreadable)
        detections, indices = gather(found.detections, found.indices)
        if not indices:
            first = f"; the first: {next(iter(found.unreadable.values()))}" if found.unreadable else "."
            raise UserError(
                f"None of the validation images can be read{first} If the data is gone, bring it back and use --resume."
            )
        metrics: dict[str, float] = {}
        if trainer.is_global_zero:
            evaluation = evaluate(images, detections, indices, self.start.has_masks)
            drawn = set(images.image_ids[pictures.compared_images(images)].tolist())
            self._validated = evaluation, [one for one in detections if one["image_id"] in drawn]
            for kind, numbers in (("box", evaluation.boxes), ("mask", evaluation.masks)):
                if numbers is not None:
                    metrics |= {f"val_{kind}_ap": numbers.ap or 0.0, f"val_{kind}_ap50": numbers.ap50 or 0.0}
        return gathered(metrics)[0]

    def metrics(self, sums: list[float], validation: dict[str, float]) -> dict[str, float]:
        """Mean of each loss and of their sum over the epoch's images; average precisions in [0, 1]."""
        losses = {name: total / sums[-1] for name, total in zip(self.losses, sums[:-1], strict=True)}
        return {"train_loss": sum(losses.values()), **losses, **validation}

    def score(self, row: dict[str, float]) -> float:
        """Mean of the average precisions of boxes and masks, or that of boxes alone."""
        return (row["val_box_ap"] + row.get("val_mask_ap", row["val_box_ap"])) / 2

    def summary(self, row: dict[str, float]) -> str:
        """Loss and average precisions in words."""
        masks = f", masks AP {row['val_mask_ap']:.1%}" if "val_mask_ap" in row else ""
        return (
            f"loss {row['train_loss']:.4f}  validation boxes AP {row['val_box_ap']:.1%}, AP50 "
            f"{row['val_box_ap50']:.1%}{masks}"
        )

    def draw(self, folder: Path) -> None:
        """Curves so far, and what the last validation found."""
        pictures.draw_curves(folder / pictures.CURVES_NAME, self.progress.rows)
        if self._validated is not None:
            pictures.draw_results(folder, self.data.validation, *self._validated, f"epoch {self.progress.epoch}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how images are normalised, too: it may come from other weights, and no tensor holds it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["normalisation"] = {"mean": list(self.start.mean), "std": list(self.start.std)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        for network in (self.network, self.evaluated):
            transform: Any = network.transform
            transform.image_mean = list(checkpoint["normalisation"]["mean"])
            transform.image_std = list(checkpoint["normalisation"]["std"])

    def checkpoint(self, training: dict[str, Any]) -> DetectorCheckpoint:
        """The detector that is evaluated, with its categories."""
        return replace(self.start, model=cast(Detector, self.evaluated), training=training)
