"""The files that annotations name: by their path, or by what remains of a path or address of another machine."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

#: What stands before a path in the addresses that Label Studio gives to files of its own machine.
_LOCAL_FILE = "?d="


class FilesBelow:
    """Files in and below a folder, by the names that annotations have for them. Each folder is listed once.

    A name may be a path or an address of the machine where the images were labelled, so the last parts of it are looked
    for, too, as many as there are. Nothing outside the folder is found.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> str | None:
        """Path below the root, or None."""
        return next(filter(self._has, possible_paths(name)), None)

    def _has(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self._listed:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._listed[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):
                self._listed[folder] = frozenset()
        return name in self._listed[folder]


def shared_paths(names: Iterable[str]) -> set[str]:
    """Paths that may stand for several of the listed names, as of one frame in several videos."""
    different = {listed_path(name): name for name in names}
    counts = Counter(path for name in different.values() for path in possible_paths(name))
    return {path for path, count in counts.items() if count > 1}


def listed_path(name: str) -> str:
    """A name as a path with slashes, whatever system wrote it."""
    return posixpath.normpath(name.replace("\\", "/"))


def possible_paths(name: str) -> dict[str, None]:
    """Where the file may be below a folder, the likeliest first: the whole path, then fewer and fewer folders of it."""
    found: dict[str, None] = {}
    for path in _spellings(name):
        rest, more = path.lstrip("/"), "/"
        while more:
            if not rest.startswith("../"):
                found[rest] = None
            _, more, rest = rest.partition("/")
    return found


def _spellings(name: str) -> Iterator[str]:
    """The name as a path; as an address without escapes and query; with accents as other systems store them."""
    yield listed_path(name)
    _, found, local = name.rpartition(_LOCAL_FILE)
    address = listed_path(unquote(local if found else name.partition("?")[0]))
    yield address
    if not address.isascii():
        yield unicodedata.normalize("NFC", address)
        yield unicodedata.normalize("NFD", address)
