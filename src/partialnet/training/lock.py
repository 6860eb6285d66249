"""One process at a time trains into a run folder."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from partialnet.errors import UserError

LOCK_NAME = ".lock"
#: The workers of a training that was killed hold its lock for a moment longer.
SECONDS_TO_WAIT = 3.0


class RunLock:
    """Keeps other processes out of a run folder, from ``acquire`` to the end of the ``with`` statement.

    The system releases it when the process ends, in whatever way.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK_NAME)

    def acquire(self) -> None:
        """Take the folder, which must exist, unless it is taken already.

        Raises:
            UserError: Another process trains into it.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=SECONDS_TO_WAIT)
        except Timeout:
            raise UserError(
                f"The run in {str(self.folder)!r} is being trained by another process; wait for it, or choose another "
                "folder."
            ) from None
        except (OSError, NotImplementedError):
            pass  # a disk without locks; or nothing can be written there, which the run is about to tell

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.is_locked:
            (self.folder / LOCK_NAME).unlink(missing_ok=True)
            self._lock.release()
