"""Many names in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np


class PackedNames:
    """Names packed as bytes into one array, which data-loading workers share.

    A list of strings would be copied into every worker, because counting a reference is a write.

    Args:
        names: The names, in the order of their indices.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def joined(self, start: int, stop: int) -> bytes:
        """The names from ``start`` to before ``stop``, one after the other."""
        first = self._ends[start - 1] if start else 0
        return self._bytes[first : self._ends[stop - 1]].tobytes() if stop > start else b""
