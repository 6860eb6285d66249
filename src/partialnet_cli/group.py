"""The kind of command that has subcommands."""

from __future__ import annotations

import pkgutil
from itertools import pairwise
from typing import Any

import click

from .next_command import next_command, remember_command


class Subcommand(click.Command):
    """Name and summary of a command whose module is imported when the command is called.

    Args:
        place: Where it is, ``package.module:command``. The module has the command's name.
        summary: What the list of commands says of it.
    """

    def __init__(self, place: str, summary: str) -> None:
        super().__init__(place.partition(":")[0].rpartition(".")[2], short_help=summary)
        self.place = place

    def load(self) -> click.Command:
        """The command itself."""
        command: click.Command = pkgutil.resolve_name(self.place)
        return command


class Group(click.Group):
    """A group of ``Subcommand``.

    It suggests the nearest command for a mistyped one, and says how to continue a stopped one.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; what continues a stopped run gets the ``--import`` options of this one."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            from partialnet.errors import RunInterrupted

            if isinstance(error, RunInterrupted) and error.command:
                continued = f"{error.what} Continue with: {next_command(*error.command)}"
                raise RunInterrupted(continued) from error
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The named command; an unknown name is an error with the nearest ones, and so is an empty argument.

        An empty text is what a shell gives for a variable that is not set. As a path it would stand for the current
        folder, and as ``--weights`` for none.
        """
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from partialnet.messages import did_you_mean

            ctx.fail(f"There is no command {args[0]!r}.{did_you_mean(args[0], sorted(self.commands))}")
        for before, argument in pairwise(args):
            if not argument or (argument.startswith("--") and argument.endswith("=")):
                from partialnet.errors import UserError

                place = argument.rstrip("=") or f"after {before}"
                raise UserError(f"An argument is empty ({place}); it may be a variable that is not set.")
        remember_command(ctx, args)
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Subcommand) else command, rest
