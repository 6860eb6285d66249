"""``--json FILE``: the same option in every command that has figures for a program to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from partialnet.files import check_destinations, write_atomically

_STANDARD_OUTPUT = "-"


@dataclass(frozen=True)
class JsonOutput:
    """Where JSON goes: to a file, to the standard output in place of the text, or nowhere.

    Args:
        target: What the user gave: a file's name, ``-``, or None.
    """

    target: str | None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to write."""
        return self.target is not None

    @property
    def prints(self) -> bool:
        """Whether the standard output belongs to JSON, and text must stay away from it."""
        return self.target == _STANDARD_OUTPUT

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return Path(self.target) if self.target is not None and not self.prints else None

    def write(self, content: Any) -> list[str]:
        """Write or print one object; the names of the files that were written, none or one."""
        return self._write(json.dumps(content, indent=1))

    def write_lines(self, records: Iterable[Any]) -> list[str]:
        """Write one object a line to the file. Printed lines come as they arise, by ``print_line``."""
        return self._write("\n".join(map(json.dumps, records))) if self.path is not None else []

    def print_line(self, record: Any) -> None:
        """Print one object on a line of its own, if JSON is printed."""
        if self.prints:
            click.echo(json.dumps(record))

    def _write(self, text: str) -> list[str]:
        if self.prints:
            click.echo(text)
        if self.path is None:
            return []
        write_atomically(self.path, f"{text}\n".encode())
        return [str(self.path)]


def json_option(content: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option ``--json``, which reaches the command as ``json_output``, a ``JsonOutput``.

    A file that could not be written is refused before the command starts its work.

    Args:
        content: What is written, for the help, such as "the figures".
    """
    return click.option(
        "--json",
        "json_output",
        metavar="FILE",
        callback=_open,
        help=f"Write {content} as JSON; - prints that instead of the text.",
    )


def _open(_ctx: click.Context, _option: click.Parameter, target: str | None) -> JsonOutput:
    output = JsonOutput(target)
    check_destinations(output.path)
    return output
