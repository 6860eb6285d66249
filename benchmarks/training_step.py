"""One training step as something to call, for all scripts that time it, and random images to time it on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def training_step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    autocast: torch.dtype | None = None,
) -> Callable[[Tensor, Tensor], None]:
    """What trains a network by one batch: forward, backward and AdamW, fused as in ``partialnet train``.

    Args:
        model: Network in training mode and in the memory layout and on the device in question.
        loss: A scalar from logits, (B, classes), and labels, (B,).
        autocast: The lower precision of mixed precision; None computes in the network's own.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            value = loss(model(images), labels)
        value.backward()
        optimizer.step()

    return step


def random_batch(batch_size: int, img_size: int) -> tuple[Tensor, Tensor]:
    """Random images, (B, 3, H, W) in float32 and channels_last, and labels of 1,000 classes, (B,)."""
    images = torch.randn(batch_size, 3, img_size, img_size).to(memory_format=torch.channels_last)
    return images, torch.randint(0, 1000, (batch_size,))
