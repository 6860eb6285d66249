"""How far a training run has come: the part of its state that neither network nor optimiser hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass
class Progress:
    """A place in a run, and what has been found out up to there.

    Attributes:
        sums: Of the unfinished epoch, what the task adds up over its items; float64, the last entry their number.
        epoch: Epochs trained.
        batch: Batches of the next epoch that are done, in each process.
        seconds: Time spent in the unfinished epoch, or in the one that waits for validation.
        lr: Highest learning rate of the last finished epoch's last step.
        validated: Whether the last finished epoch has been validated.
        rows: Metrics of the validated epochs, the rows of ``metrics.csv``: ``epoch``, from 1; those of the task;
            ``lr``, the highest learning rate of the last step; ``seconds`` of training, without validation; and
            ``images_per_second`` of all processes in that time.
        best_epoch: Epoch of the checkpoint in the run folder, from 1; 0 where there is none.
        best_score: How good it is, as the task says.
        unreadable: Names of images that could not be read.
    """

    sums: Tensor
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    validated: bool = True
    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    unreadable: set[str] = field(default_factory=set)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        return state | {
            "sums": self.sums.cpu(),
            "rows": [dict(row) for row in self.rows],
            "unreadable": sorted(self.unreadable),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        for name, value in state.items():
            setattr(self, name, value)
        self.unreadable = set(state["unreadable"])
