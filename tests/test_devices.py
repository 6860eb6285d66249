"""Devices by name."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import torch

from partialnet.devices import find_device


def test_a_full_gpu_is_not_taken_for_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):  # for which the command has a sentence
        find_device("cuda")
