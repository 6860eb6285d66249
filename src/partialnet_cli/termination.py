"""SIGTERM ends a command as Ctrl-C does, so that it leaves no half-written files behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """The process was asked to end, as by ``kill`` or ``timeout``."""


@contextmanager
def raising_terminated() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` where it would end the process at once; a second one does end it.

    Training, which saves its state first, handles the signal itself meanwhile.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may handle signals
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
