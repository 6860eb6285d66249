"""Requests to stop: Ctrl-C, the signals that a cluster sends before it takes a machine away, and a closed terminal."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

#: What asks a training to stop, on this system.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)
_SIGHUP = getattr(signal, "SIGHUP", None)


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and SIGHUP, and after ``install`` SIGINT, so that they do not end the process; a second
    Ctrl-C does at once.

    Where SIGHUP is ignored, as under ``nohup``, it stays so: the training is to outlive its terminal.
    As a context it gives the signals back at its end. Only a program's main thread can receive signals; elsewhere
    nothing happens.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over all signals, from now on or from whoever took them in between."""
        self._take(STOP_SIGNALS)

    def _take(self, numbers: Iterable[signal.Signals]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if number == _SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def __enter__(self) -> StopSignals:
        # until there is something to save, Ctrl-C may stop at once
        self._take(number for number in STOP_SIGNALS if number != signal.SIGINT)
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
        if number == _SIGHUP:
            leave_lost_terminal((0, 1, 2))


def leave_lost_terminal(handles: Iterable[int]) -> None:
    """Redirect what is printed to a terminal that is gone to nowhere, as printing there is an error.

    Args:
        handles: Numbers of open files; others than such a terminal stay as they are.
    """
    for handle in handles:
        try:
            os.tcgetpgrp(handle)
        except OSError as error:
            if error.errno == errno.EIO:
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, handle)
                os.close(nothing)
