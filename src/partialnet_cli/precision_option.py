"""``--precision``: the same option in every command that exports."""

from __future__ import annotations

import click

from .output_option import Decorator


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
