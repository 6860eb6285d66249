"""Notice losses and gradients that are not finite, without making a GPU wait."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partialnet.errors import UserError
from partialnet.messages import listed

from .protocols import TrainingItems

#: Names in the message; the rest is counted.
SHOWN = 10


@dataclass
class _Step:
    place: str
    flags: Tensor  # (number of losses + 1,): whether each loss, and the gradients, are finite; on the CPU
    ready: torch.cuda.Event | None
    indices: list[Tensor]


class FiniteCheck:
    """Remembers whether losses and gradients were finite, and reports when they were not.

    On a GPU the answer is fetched without waiting, so it is known some steps later; by then the weights may be spoilt,
    so nothing is written before ``check(wait=True)``.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._steps: list[_Step] = []

    def note_loss(self, loss: Tensor, indices: Tensor) -> None:
        """Note a batch's loss, a scalar, and the indices of its images, (B,)."""
        self._losses.append(loss.detach())
        self._indices.append(indices)

    def note_step(self, norm: Tensor | None, place: str) -> None:
        """Note a step to which the noted losses have led.

        Args:
            norm: Of its gradient, a scalar; None where that may be infinite.
            place: What the message calls the step.
        """
        norm = torch.zeros_like(self._losses[0]) if norm is None else norm
        flags = torch.stack([*self._losses, norm.to(self._losses[0].dtype)]).isfinite()
        ready = None
        if flags.is_cuda:
            on_cpu = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
            on_cpu.copy_(flags, non_blocking=True)
            flags, ready = on_cpu, torch.cuda.Event()
            ready.record()
        self._steps.append(_Step(place, flags, ready, self._indices))
        self._losses, self._indices = [], []

    def check(self, images: TrainingItems, wait: bool, world_size: int = 1) -> None:
        """Look at the noted steps: at all of them, or at those whose answer is there.

        Args:
            images: What is learnt from.
            wait: Whether to look at all of them.
            world_size: Number of training processes, whose gradients are added up.

        Raises:
            UserError: A loss or gradient was NaN or infinite; names the images of the batch, unless it may come from
                those of another process.
        """
        while self._steps and (wait or self._steps[0].ready is None or self._steps[0].ready.query()):
            step = self._steps.pop(0)
            if step.ready is not None:
                step.ready.synchronize()
            if bool(step.flags.all()):
                continue
            losses = step.flags[:-1].tolist()
            spoilt = [part for part, finite in zip(step.indices, losses, strict=True) if not finite]
            names = [images.name(int(index)) for part in spoilt or step.indices for index in part]
            named = f"Images: {listed(names, SHOWN)}."
            if not spoilt and world_size > 1:
                named = "The losses of this process were finite."  # an infinite one reaches the gradients of all
            raise UserError(
                f"The {'loss' if spoilt else 'gradient'} is NaN or infinite in {step.place}, so training stopped; the "
                f"checkpoints of the last whole epoch are untouched. A lower lr or clip_grad helps if the images are "
                f"sound. {named}"
            )
