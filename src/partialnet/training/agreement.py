"""How the processes of a run exchange numbers between steps, and after which steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_Value = TypeVar("_Value")

#: About the time between two exchanges.
SECONDS_BETWEEN_EXCHANGES = 1.0


class Agreement:
    """Numbers added up over all processes, after steps that are the same in all and about a second apart.

    To read such sums a process waits until its GPU has done all it was given, and the GPU then waits for the next
    step; after every step that would cost time. As clocks differ, all processes follow the first one's.

    Args:
        seconds: Time between two exchanges; after steps that take longer there is one each.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN_EXCHANGES) -> None:
        self.seconds = seconds
        self._interval = 1  # steps from one exchange to the next
        self._steps = 0  # since the last exchange
        self._pace = 0.0  # steps in a second, between the last two exchanges
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Count a step; whether the processes are to exchange something after it."""
        self._steps += 1
        return self._steps >= self._interval

    def total(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Each value added up over the processes, which must all come here after the same step.

        Args:
            values: Numbers that float64 holds exactly.
            device: Where the processes can communicate from.
        """
        pace = self._pace_here() if dist.get_rank() == 0 else 0.0
        sums = torch.tensor([*values, pace], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        *totals, pace = sums.tolist()
        if self._steps:
            # at most twice as many: the first steps after a pause find their batches read already
            self._interval = max(1, min(2 * self._interval, int(pace * self.seconds)))
            self._pace = self._steps_a_second()
        self._steps = 0
        self._last = time.monotonic()
        return totals

    def _pace_here(self) -> float:
        # a GPU may still have to do most of the last steps, so they count only where they were slower than those before
        return min(self._pace, self._steps_a_second())

    def _steps_a_second(self) -> float:
        return self._steps / max(time.monotonic() - self._last, 1e-9)


def gathered(value: _Value) -> list[_Value]:
    """What each process has come here with, by rank; of a single one its own."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
