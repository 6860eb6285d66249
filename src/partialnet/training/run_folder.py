"""A run's folder: what it holds, whether a run may be trained into it, and from which state."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from partialnet.checkpoint.stored_network import CONFIG_NAME as CHECKPOINT_CONFIG_NAME
from partialnet.checkpoint.stored_network import WEIGHTS_NAME
from partialnet.errors import UserError
from partialnet.files import refuse_read_only, write_atomically

from .lock import RunLock
from .states import State, StateFiles

CONFIG_NAME = "config.yaml"
LAST_NAME = "last"
METRICS_NAME = "metrics.csv"
STATES_NAME = "state"
UNREADABLE_NAME = "unreadable_images.txt"
#: What a run folder holds for people beside its pictures, the checkpoint first.
FILES = (WEIGHTS_NAME, CHECKPOINT_CONFIG_NAME, LAST_NAME, CONFIG_NAME, METRICS_NAME, "tensorboard", UNREADABLE_NAME)


class RunFolder:
    """The folder of a run that is about to begin or to continue.

    Args:
        path: The folder, which may not exist yet.
        resume: Whether the run in it is to continue, if there is one.
        lock: Keeps other processes out of it.
        writes: Whether this process is the one of the run that writes; the others only read.
        say: Takes a sentence for the user.

    Attributes:
        states: Its states.
        state: The state to continue from, once ``open`` has read it; None where the run begins anew.
    """

    def __init__(self, path: Path, resume: bool, lock: RunLock, writes: bool, say: Callable[[str], None]) -> None:
        self.path = path
        self.resume = resume
        self.writes = writes
        self.states = StateFiles(path / STATES_NAME, say)
        self.state: State | None = None
        self._lock = lock

    def open(self) -> State | None:
        """Look what is there, and refuse what must not be written over; the state to continue from.

        Raises:
            UserError: Another process trains into the folder; it is a file, or holds a run that is not to be continued
                or files that are read-only; or no state is whole.
        """
        if self.writes and self.path.is_dir():
            self._lock.acquire()
        self.state = self.states.newest() if self.resume else None
        if self.writes:
            self._refuse_what_is_there()
        return self.state

    def is_same_run(self, settings: bytes) -> bool:
        """Whether what begins now is the run that the folder holds, also where that has left no state yet.

        Args:
            settings: The content of its ``config.yaml``.
        """
        path = self.path / CONFIG_NAME
        # one that was killed before its first state begins anew, but as the same run unless other settings were given
        return self.state is not None or (self.resume and not (path.is_file() and path.read_bytes() != settings))

    def begin(self, settings: bytes) -> None:
        """Make the folder and write the settings into it.

        Args:
            settings: The content of its ``config.yaml``.

        Raises:
            UserError: Another process has begun a run there since ``open``.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self._refuse_what_is_there()
        self._remove_leftovers()
        write_atomically(self.path / CONFIG_NAME, settings)
        if self.state is None:
            (self.path / UNREADABLE_NAME).unlink(missing_ok=True)  # of a run that stopped for it at its beginning

    def _refuse_what_is_there(self) -> None:
        folder = self.path
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{str(folder)!r} is a file; choose a folder for the run.")
        metrics = folder / METRICS_NAME
        # a run that was killed before its first state has one epoch's metrics at most, and may start anew
        if self.resume and self.state is None and metrics.is_file() and len(metrics.read_text().splitlines()) > 2:
            raise UserError(
                f"{str(folder)!r} holds a run of several epochs but no state to continue from; choose another folder."
            )
        if not self.resume and any((folder / name).exists() for name in (STATES_NAME, WEIGHTS_NAME, METRICS_NAME)):
            raise UserError(f"{str(folder)!r} holds a run already; continue it with --resume or choose another folder.")
        # a run whose checkpoints cannot be replaced would go on for nothing
        refuse_read_only(*(place / name for place in (folder, folder / LAST_NAME) for name in FILES))

    def _remove_leftovers(self) -> None:
        """Remove the parts of files that a killed process was writing."""
        for folder in (self.path, self.path / LAST_NAME, self.states.folder):
            for path in folder.glob(".*.*.*"):  # nothing where there is no such folder
                if re.fullmatch(r"\..+\.(pt|safetensors|json|csv|txt|yaml|png)\.[a-z0-9_]{8}", path.name):
                    path.unlink(missing_ok=True)


def present_files(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """The files of a run folder with these names, in this order, without those that are not there."""
    return tuple(folder / name for name in names if (folder / name).exists())


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run folder's ``metrics.csv``, one for each epoch."""
    with (folder / METRICS_NAME).open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
