"""The commands that a command suggests as useful next steps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

_GIVEN = "partialnet_cli.given"


def next_command(*words: object) -> str:
    """A ``partialnet`` command to copy into a shell, with the ``--import`` options that the running one was given.

    Args:
        *words: Subcommand, arguments and options.
    """
    context = click.get_current_context(silent=True)
    own_modules = context.find_root().params.get("own_modules", ()) if context is not None else ()
    imports = [word for module in own_modules for word in ("--import", module)]
    return shlex.join(["partialnet", *imports, *map(str, words)])


def remember_command(context: click.Context, words: Sequence[str]) -> None:
    """Keep the running command, its name and all that it was given, for ``same_command``."""
    context.meta.setdefault(_GIVEN, tuple(words))


def same_command(*words: object, without: str | None = None) -> str:
    """The running command as it was given, to copy into a shell, with more options.

    Args:
        *words: The options to add.
        without: An option that it was given and that is left out.
    """
    given = [word for word in click.get_current_context().meta[_GIVEN] if word != without]
    place = given.index("--") if "--" in given else len(given)
    return next_command(*given[:place], *words, *given[place:])
