"""How a command ends that could do only a part of its work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

from partialnet.errors import UserError


def fail(reasons: Sequence[object]) -> NoReturn:
    """End with a sentence for each reason on stderr, and the exit code of a user's mistake."""
    *others, last = reasons
    for reason in others:
        click.echo(f"partialnet: {reason}", err=True)
    raise UserError(str(last))
