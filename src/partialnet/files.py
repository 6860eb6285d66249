"""Write files whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

#: What the system says when there is no room for a file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either the old or the whole new content is there.

    What is no file, such as a pipe or ``/dev/stdout``, gets the content and stays what it is.

    Raises:
        UserError: There cannot be a file of this name, or it is read-only.
        OSError: It cannot be written whole; one of ``NO_ROOM`` says that the disk is full.
    """
    if _is_stream(path):
        try:
            _write_to_stream(path, content)
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
        return
    refuse_read_only(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        if error.errno in NO_ROOM:
            error.filename = str(path)
            raise
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # which a failing write does not say
        raise


def _is_stream(path: Path) -> bool:
    """Whether a path leads to a pipe, a terminal or another device; ``/dev/stdout`` may also lead to a file."""
    if path.absolute().parent in (Path("/dev"), Path("/dev/fd")):
        return True
    return path.exists() and not (path.is_file() or path.is_dir())


def _write_to_stream(path: Path, content: bytes) -> None:
    """Write to what is no file of its own; what goes on there meanwhile, as on ``/dev/stdout``, stays in its order."""
    absolute = path.absolute()
    number = {"/dev/stdout": "1", "/dev/stderr": "2"}.get(str(absolute))
    if absolute.parent == Path("/dev/fd") and absolute.name.isdecimal():
        number = absolute.name
    if number is None:
        path.write_bytes(content)
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # opened by its name, a file behind it would be emptied, and what is printed later would be written over the content
    with open(os.dup(int(number)), "wb") as file:
        file.write(content)


def refuse_read_only(*paths: Path) -> None:
    """Refuse files that are marked read-only: putting another file in their place needs no right to write them.

    Raises:
        UserError: One of the files is.
    """
    for path in paths:
        if path.is_symlink() or not path.is_file():
            continue  # of a link only the link is replaced
        # the mark counts for root, too, who may write everything
        if not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
            raise UserError(f"{str(path)!r} cannot be written: it is read-only.")


def check_destinations(*paths: Path | None) -> None:
    """Refuse files that could not be written, before the work begins whose results they will hold.

    Args:
        paths: The files; None is left out.

    Raises:
        UserError: A file's folder is missing or takes no files, the file is a folder or read-only, or it is to hold
            two results.
    """
    named = [path for path in paths if path is not None]
    for number, path in enumerate(named):
        if not path.parent.is_dir():
            raise UserError(f"There is no folder {str(path.parent)!r} to write {path.name} into.")
        if path.is_dir():
            raise UserError(f"{str(path)!r} is a folder; name a file in it.")
        if not (_is_stream(path) or os.access(path.parent, os.W_OK)):
            raise UserError(f"{str(path)!r} cannot be written: {os.strerror(errno.EACCES)}.")
        refuse_read_only(path)
        if path.resolve() in [other.resolve() for other in named[:number]]:
            raise UserError(f"{str(path)!r} is named for two results; the second would replace the first.")


def distinct_files(folder: Path, names: Iterable[str], suffix: str) -> list[Path]:
    """A file for each name, numbered where another of them has it, also on disks that take "A" and "a" for one name.

    Args:
        folder: Folder of the files.
        names: Their names, of which some may be equal.
        suffix: How all of them end, such as ".png".
    """
    taken: set[str] = set()
    paths = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        free = next(candidate for candidate in candidates if candidate.casefold() not in taken)
        taken.add(free.casefold())
        paths.append(folder / f"{free}{suffix}")
    return paths


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table with a header line atomically; a column that a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, as_bytes(text.getvalue()))


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON for people, atomically."""
    write_atomically(path, f"{json.dumps(content, indent=1)}\n".encode())


def as_bytes(text: str) -> bytes:
    """UTF-8, but names of files that are not UTF-8 as the disk has them."""
    return text.encode("utf-8", "surrogateescape")
