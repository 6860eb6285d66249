"""``--output``: the same option in every command that writes files of its own choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def output_folder(help: str, default: str | None = None) -> Decorator:
    """A folder to write into, which reaches the command as ``output``; a file in its place is refused.

    Args:
        help: What it is for.
        default: The folder where none is given; None leaves that to the command.
    """
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("-o", "--output", metavar="FOLDER", type=kind, default=default, help=help)


def output_file(help: str) -> Decorator:
    """A file to write, which reaches the command as ``output``, or None.

    Args:
        help: What it is for.
    """
    return click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help=help)


def make_folder(folder: Path) -> None:
    """Make the folder of the current command's results before its work; if it is still empty in the end, remove it."""
    click.get_current_context().with_resource(_removed_if_empty(folder))


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            if any(path.iterdir()):
                break
            path.rmdir()
