"""Loss and accuracy of held-out images, each counted once however many processes share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import Batch


def validate(
    network: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    channels_last: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[Tensor, list[int]]:
    """Sums over one process's batches, of a network in evaluation mode.

    Returns:
        Loss times images, images that were right, images; (3,), float64. And the indices of images that could not be
        read.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    broken: list[int] = []
    with torch.no_grad():
        for batch in batches:
            broken += batch.broken
            if len(batch):
                batch = batch.to(device, non_blocking=True)
                images = batch.images
                if channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                logits = network(images).float()
                loss = F.cross_entropy(logits, batch.labels, reduction="sum")
                right = (logits.argmax(1) == batch.labels).sum()
                sums += torch.stack((loss, right, loss.new_full((), len(batch)))).double()
            after_batch()
    return sums, broken
