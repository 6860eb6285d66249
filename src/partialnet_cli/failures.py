"""What a command reports when it could do only a part of its work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import NoReturn

import click

from partialnet.errors import UserError
from partialnet.images import UnreadableImage

_UNREADABLE_SHOWN = 20


def fail(reasons: Sequence[object]) -> NoReturn:
    """End with a sentence for each reason on stderr, and the exit code of a user's mistake."""
    *others, last = reasons
    for reason in others:
        click.echo(f"partialnet: {reason}", err=True)
    raise UserError(str(last))


def tell_left_out(unreadable: Collection[UnreadableImage]) -> None:
    """Tell on stderr which images could not be read, if any; the command goes on without them."""
    if not unreadable:
        return
    click.echo(f"{len(unreadable)} unreadable image{'s were' if len(unreadable) > 1 else ' was'} left out:", err=True)
    for image in islice(unreadable, _UNREADABLE_SHOWN):
        click.echo(f"  {image.reason}", err=True)
    if len(unreadable) > _UNREADABLE_SHOWN:
        click.echo(f"  and {len(unreadable) - _UNREADABLE_SHOWN} more; --json lists all", err=True)
