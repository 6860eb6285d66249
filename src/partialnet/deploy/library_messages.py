"""Messages of exporters, runtimes and quantisers: errors become one sentence, notes are kept off the screen."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch

from partialnet.errors import UserError
from partialnet.messages import first_line


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn errors of PyTorch, a runtime or a quantiser into one sentence that begins with ``what``.

    Raises:
        UserError: There was such an error.
    """
    try:
        yield
    except (UserError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # they have no common class
        # PyTorch's exporter gives advice to its developers, and its reason as the cause
        raise UserError(f"{what}: {first_line(error.__cause__ or error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' notes to developers off the user's screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def quiet_native() -> Iterator[None]:
    """Keep what libraries in C++ write straight to the process's error output off the user's screen.

    For short calls only: other threads' messages are lost as well.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
