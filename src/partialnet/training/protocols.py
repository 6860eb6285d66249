"""What the engine requires of any task's data, batches and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor


class TrainingItems(Protocol):
    """What is learnt from, or held out, one item at a time."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person would find item ``index`` by."""
        ...


class TrainingData(Protocol):
    """Training and held-out items of one task."""

    @property
    def train(self) -> TrainingItems:
        """What is learnt from."""
        ...

    @property
    def validation(self) -> TrainingItems:
        """What is never learnt from."""
        ...


class TrainingBatch(Protocol):
    """One step's items.

    Attributes:
        indices: Place of each item in the data set, (B,), int64.
        unreadable: Items that should have been here and cannot be read, by their place, with why.
    """

    indices: Tensor
    unreadable: dict[int, str]

    def __len__(self) -> int: ...


class Saves(Protocol):
    """A checkpoint."""

    def save(self, folder: str | Path) -> Path:
        """Write it into ``folder``."""
        ...
