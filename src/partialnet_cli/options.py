"""Options that several commands share, so that they are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from partialnet.errors import UserError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class IntRange(click.IntRange):
    """An integer, which help calls so; click's "integer range" reads as if one had to give two."""

    name = "integer"


class FloatRange(click.FloatRange):
    """A number, which help calls so."""

    name = "number"


#: Reaches the command as ``device``, a name for ``partialnet.devices.find_device``, or None.
device_option = click.option(
    "--device", metavar="NAME", help="cpu, cuda, cuda:1, …  [default: the GPU if there is one]"
)


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


def precision_option(bf16: str) -> Decorator:
    """The number format of the exported file, which reaches the command as ``precision``.

    Args:
        bf16: What takes bf16, in words.
    """
    return click.option(
        "-p",
        "--precision",
        type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
        default="fp32",
        help=f"Number format; bf16 is for {bf16}, int8 needs --calibration.",
    )


#: Reaches the command as ``runtime``, a text for ``parse_runtimes``.
runtime_option = click.option(
    "-r",
    "--runtime",
    metavar="NAME,…",
    default="eager",
    help="What to time in: eager, compile, onnxruntime, openvino, or several with commas.",
)


def parse_runtimes(text: str) -> list[str]:
    """Names of runtimes, separated by commas; an unknown one raises UserError."""
    from partialnet.bench.contestants import RUNTIMES

    runtimes = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in runtimes:
        if name not in RUNTIMES:
            raise UserError(f"There is no runtime {name!r}; choose among {', '.join(RUNTIMES)}.")
    if not runtimes:
        raise UserError(f"Name a runtime; choose among {', '.join(RUNTIMES)}.")
    return runtimes
