"""States of a run, from which it continues: written whole, checked when read, the newest two kept."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from partialnet.errors import UserError
from partialnet.files import NO_ROOM, write_atomically
from partialnet.messages import first_line, reason_of

_NAME = re.compile(r"(\d+)-.*-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class State:
    """A state as read from its file.

    Attributes:
        path: Its file.
        content: Lightning's checkpoint, with what the run's keeper and its task added.
    """

    path: Path
    content: dict[str, Any] = field(repr=False)

    @property
    def run(self) -> dict[str, Any]:
        """What the run is: its configuration and data."""
        return self.content["run"]

    @property
    def progress(self) -> dict[str, Any]:
        """How far it was; see ``Progress``."""
        return self.content["progress"]


class StateFiles(CheckpointIO):
    """Lightning's checkpoints as files ``NUMBER-epoch-E-batch-B-CHECKSUM.pt`` in one folder.

    A file appears under its name when all of it is on the disk. The checksum, the first 16 digits of the content's
    SHA-256, tells damage that a disk or a copy did later. Files hold tensors and plain values only and are read with
    ``weights_only=True``.

    Args:
        folder: Where the files are.
        say: Takes a sentence for the user.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        #: The state that was loaded or written last.
        self.last_good: Path | None = None

    def files(self) -> list[Path]:
        """The files there are, the newest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=_number, reverse=True)

    def newest(self) -> State | None:
        """The newest state that is whole; None if there is no file.

        Raises:
            UserError: None of the files there are is whole.
        """
        for path in self.files():
            try:
                return State(path, self._read(path))
            except Exception as error:  # torch's reader raises whatever a damaged file leads it to
                self.say(f"The state {str(path)!r} is damaged ({first_line(error)}); trying the one before.")
        if self.files():
            raise UserError(f"None of the states in {str(self.folder)!r} is intact; train anew in another folder.")
        return None

    def next_path(self, epoch: int, batch: int) -> Path:
        """Name of the next state but for the checksum."""
        number = max((_number(path) for path in self.files()), default=0) + 1
        return self.folder / f"{number:06d}-epoch-{epoch}-batch-{batch}.pt"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a state and remove all but it and the one before.

        On a full disk the state before the last one is removed first. Where that does not help, the user is told and
        the last one stays.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        path = Path(path)
        path = path.with_name(f"{path.stem}-{_checksum(content)}.pt")
        try:
            self.write_with_room(lambda: self._write(path, content))
        except (OSError, ValueError) as error:
            kept = f"the last one, {str(self.last_good)!r}, stays" if self.last_good else "there is none before it"
            self.say(f"The state of the run cannot be written ({reason_of(error)}); {kept}, and training goes on.")
            return
        self._remove_all_but(path, self.last_good)
        self.last_good = path

    def write_with_room(self, write: Callable[[], object]) -> None:
        """Write something; if the disk is full, once more without the state before the last one.

        Raises:
            OSError: It still cannot be written.
        """
        try:
            write()
        except OSError as error:
            if error.errno not in NO_ROOM or len(self.files()) < 2:
                raise
            self._remove_all_but(self.last_good)
            write()

    def _read(self, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        if _checksum(content) != path.stem.rpartition("-")[2]:
            raise ValueError("its checksum is wrong")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _write(self, path: Path, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    def _remove_all_but(self, *kept: Path | None) -> None:
        for path in self.files():
            if path not in kept:
                path.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a state, from which the run then continues."""
        content = self._read(Path(path))
        self.last_good = Path(path)
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a state."""
        Path(path).unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
