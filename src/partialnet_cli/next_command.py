"""The commands that a command suggests as useful next steps."""

from __future__ import annotations

import shlex

import click


def next_command(*words: object) -> str:
    """A ``partialnet`` command to copy into a shell, with the ``--import`` options that the running one was given.

    Args:
        *words: Subcommand, arguments and options.
    """
    context = click.get_current_context(silent=True)
    own_modules = context.find_root().params.get("own_modules", ()) if context is not None else ()
    imports = [word for module in own_modules for word in ("--import", module)]
    return shlex.join(["partialnet", *imports, *map(str, words)])
