"""How far a training run has come: what of it neither the network nor the optimiser remember."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochMetrics:
    """One row of ``metrics.csv``; losses are in nats, accuracies shares in [0, 1].

    Attributes:
        epoch: Number of the epoch, from 1.
        train_loss: Mean over the epoch's images, as trained: with augmentation, smoothing and distillation.
        train_accuracy: Share of the augmented training images that the changing network got right.
        val_loss: Mean cross-entropy of the held-out images, of the averaged weights where there are any.
        val_accuracy: Share of the held-out images that it gets right.
        lr: Highest learning rate of the epoch's last step.
        seconds: Duration of the epoch's training, without validation.
        images_per_second: Training images of all processes by that time.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_second: float


@dataclass
class Progress:
    """A place in a run, and what has been found out up to there.

    Attributes:
        epoch: Epochs trained.
        batch: Batches of the next epoch that are done, in each process.
        sums: Of the unfinished epoch: loss times images, images that were right, images; (3,), float64.
        seconds: Time spent in the unfinished epoch, or in the one that waits for validation.
        lr: Highest learning rate of the last finished epoch's last step.
        validated: Whether the last finished epoch has been validated.
        rows: Metrics of the validated epochs.
        best_epoch: Epoch of the checkpoint in the run folder, from 1; 0 where there is none.
        best_accuracy: Its validation accuracy.
        broken: Names of images that could not be read.
    """

    epoch: int = 0
    batch: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    seconds: float = 0.0
    lr: float = 0.0
    validated: bool = True
    rows: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0
    broken: set[str] = field(default_factory=set)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        return state | {
            "sums": self.sums.cpu(),
            "rows": [asdict(row) for row in self.rows],
            "broken": sorted(self.broken),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        for name, value in state.items():
            setattr(self, name, value)
        self.rows = [EpochMetrics(**row) for row in state["rows"]]
        self.broken = set(state["broken"])
