"""The command line: one command, ``partialnet``, with subcommands."""

from .main import main

__all__ = ["main"]
