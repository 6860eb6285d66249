"""The kind of command that has subcommands."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import click

from partialnet.errors import RunInterrupted, UserError
from partialnet.messages import did_you_mean

from .next_command import next_command


class Group(click.Group):
    """A group that suggests the nearest command for a mistyped one, and says how to continue a stopped one."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; what continues a stopped run gets the ``--import`` options of this one."""
        try:
            return super().invoke(ctx)
        except RunInterrupted as stopped:
            if not stopped.command:
                raise
            raise RunInterrupted(f"{stopped.what} Continue with: {next_command(*stopped.command)}") from stopped

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The named command; an unknown name is an error with the nearest ones, and so is an empty argument.

        An empty text is what a shell gives for a variable that is not set. As a path it would stand for the current
        folder, and as ``--weights`` for none.
        """
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"There is no command {args[0]!r}.{did_you_mean(args[0], sorted(self.commands))}")
        for before, argument in pairwise(args):
            if not argument or (argument.startswith("--") and argument.endswith("=")):
                place = argument.rstrip("=") or f"after {before}"
                raise UserError(f"An argument is empty ({place}); it may be a variable that is not set.")
        return super().resolve_command(ctx, args)
