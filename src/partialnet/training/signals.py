"""Requests to stop: Ctrl-C, and the signals that a cluster sends before it takes a machine away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """Notes SIGTERM and SIGUSR1, and after ``install`` SIGINT, instead of dying of them; a second Ctrl-C stops at once.

    As a context it gives the signals back at its end. Only a program's main thread can receive signals; elsewhere
    nothing happens.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over all signals, from now on or from whoever took them in between."""
        self._take(_SIGNALS)

    def _take(self, numbers: Iterable[signal.Signals]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def __enter__(self) -> StopSignals:
        # until there is something to save, Ctrl-C may stop at once
        self._take(number for number in _SIGNALS if number != signal.SIGINT)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
