"""The command line: one command, ``partialnet``, with subcommands.

A package of its own, because ``import partialnet`` loads PyTorch, which takes seconds: names, help and version of the
command are there without it.
"""

from .main import main

__all__ = ["main"]
