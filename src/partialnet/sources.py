"""Whatever a command takes as its network: a run folder, a checkpoint, an exported file or a model name."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Checkpoint, load
from .deploy.runtimes import EXPORTED_SUFFIXES, load_exported


def open_source(source: str | Path) -> Checkpoint:
    """Open a network by what names it; see ``partialnet.checkpoint.load`` and ``load_exported``.

    Raises:
        UserError: Nothing usable is there.
    """
    return load_exported(source) if Path(source).suffix in EXPORTED_SUFFIXES else load(source)
