"""``--runtime``: the same option in every command that times networks."""

from __future__ import annotations

import click

from partialnet.errors import UserError

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
