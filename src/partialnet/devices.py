"""Where a network runs."""

from __future__ import annotations

import torch

from .errors import UserError


def find_device(name: str | None = None) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; without a name the GPU, or the CPU where there is none.

    Raises:
        UserError: PyTorch knows or sees no such device.
        torch.OutOfMemoryError: Others fill its memory.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise UserError(f"PyTorch sees no device {name!r} here; `cpu` always works.") from None
    if device.type == "meta":
        raise UserError("The device 'meta' computes nothing; give cpu or cuda.")
    return device
