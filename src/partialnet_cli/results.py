"""What a command leaves behind: text or JSON on the standard output, files and folders, and what is useful next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

from partialnet.errors import UserError
from partialnet.files import check_destinations, write_atomically, write_json

_STANDARD_OUTPUT = "-"


class Results:
    """Where the results of a command go, and what it tells of them in the end.

    Args:
        json: What the user gave for ``--json``: a file's name; ``-``, which gives the standard output to JSON in place
            of the text; or None.
        **files: The file for each other option, or None.

    Attributes:
        prints_json: Whether the standard output belongs to JSON.
        files: The file for each option, or None.
        written: What was written, as it is told in the end. Commands add what goes to other places.

    Raises:
        UserError: A file could not be written, or two are the same.
    """

    def __init__(self, json: str | None = None, **files: Path | None) -> None:
        self.prints_json = json == _STANDARD_OUTPUT
        self.files = {"json": None if json is None or self.prints_json else Path(json), **files}
        self.written: list[Path | str] = []
        self._lines: list[str] = []
        check_destinations(*self.files.values())

    @property
    def wanted(self) -> bool:
        """Whether any option was given."""
        return self.prints_json or any(path is not None for path in self.files.values())

    def spare(self, *inputs: str | Path) -> None:
        """Refuse to replace what the command reads.

        Args:
            inputs: Files, and run folders, of which the checkpoint is meant.

        Raises:
            UserError: One of the files to write is among them.
        """
        from partialnet.checkpoint.stored_network import WEIGHTS_NAME  # which loads PyTorch

        # unlike Path.resolve, which refuses links in a circle
        read = {os.path.realpath(path) for given in inputs for path in (given, Path(given) / WEIGHTS_NAME)}
        for path in filter(None, self.files.values()):
            if os.path.realpath(path) in read:
                raise UserError(f"{str(path)!r} is what the command reads, and would be replaced; name another file.")

    def say(self, text: str) -> None:
        """Print text for people, unless JSON takes its place."""
        if not self.prints_json:
            click.echo(text)

    def write(self, option: str, write: Callable[[Path], object]) -> None:
        """Write the file of an option, if it was asked for."""
        path = self.files[option]
        if path is not None:
            write(path)
            self.written.append(path)

    def write_json(self, content: Any) -> None:
        """Write or print one object, if it was asked for."""
        if self.prints_json:
            click.echo(json.dumps(content, indent=1))
        self.write("json", lambda path: write_json(path, content))

    def add_line(self, record: Any) -> None:
        """Print one object on a line of its own, or keep it for the file."""
        line = json.dumps(record)
        if self.prints_json:
            click.echo(line)
        else:
            self._lines.append(line)

    def write_lines(self) -> None:
        """Write the file of one object a line, if it was asked for."""
        self.write("json", lambda path: write_atomically(path, "".join(f"{line}\n" for line in self._lines).encode()))

    def add_pictures(self, number: int, folder: Path) -> None:
        """Note pictures that were written into a folder."""
        if number:
            self.written.append(f"{number} picture{'s' if number > 1 else ''} in {folder}")

    def finish(self, *following: str | None) -> None:
        """Tell what was written; after text also what is useful next. See ``tell_written``."""
        tell_written(self.written, *(() if self.prints_json else following), err=self.prints_json)


def tell_written(written: Iterable[Path | str], *following: str | None, err: bool = False) -> None:
    """Tell what a command has written, and what is useful next: commands to copy, one a line; None is left out."""
    names = [f"{name}/" if isinstance(name, Path) and name.is_dir() else str(name) for name in written]
    if len(names) == 1:
        click.echo(f"\nWritten: {names[0]}", err=err)
    elif names:
        click.echo("\n".join(["\nWritten:", *(f"  {name}" for name in names)]), err=err)
    if commands := [command for command in following if command]:
        click.echo("\nNext: " + "\n      ".join(commands), err=err)


def result_options(json: str, **files: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options for files of results, which reach the command as ``results``, a ``Results``.

    What could not be written is refused before the command starts its work.

    Args:
        json: What ``--json`` writes, for the help, such as "all figures".
        **files: What each other option writes, such as ``csv="one row for each image as CSV"``.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)  # with the options that the command has already
        def run(*args: Any, **options: Any) -> Any:
            targets = {name: options.pop(f"{name}_file") for name in ("json", *files)}
            return command(*args, results=Results(**targets), **options)

        for name, content in reversed(files.items()):
            kind = click.Path(path_type=Path)
            run = click.option(f"--{name}", f"{name}_file", metavar="FILE", type=kind, help=f"Write {content}.")(run)
        text = f"Write {json} as JSON; - prints that instead of the text."
        return click.option("--json", "json_file", metavar="FILE", help=text)(run)

    return decorate


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
        with suppress(OSError):  # from the first folder on that is not empty, or that somebody has removed
            for path in made:
                path.rmdir()
