"""The errors that the command line reports in one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what, and what to do.

    The command line prints it and exits with code 2.
    """


class RunInterrupted(Exception):
    """Training was asked to stop and has saved its state; the message names the command that resumes it.

    The command line prints it and exits with 75, which tells a cluster's scheduler to run the command again.

    Args:
        what: What happened, in sentences.
        command: Subcommand, arguments and options that continue the run; empty if ``what`` tells.
    """

    def __init__(self, what: str, command: Sequence[str] = ()) -> None:
        super().__init__(what, command)
        self.what = what
        self.command = tuple(command)

    def __str__(self) -> str:
        return f"{self.what} Continue with: {shlex.join(['partialnet', *self.command])}" if self.command else self.what
