"""Everything that a command can take as its detector: a run folder, a checkpoint or an exported file."""

from __future__ import annotations

from pathlib import Path

from partialnet.sources import is_exported

from .checkpoint import DetectorCheckpoint, load_detector
from .exported import load_exported_detector


def open_detector(source: str | Path) -> DetectorCheckpoint:
    """Open a detector by what names it; see ``load_detector`` and ``load_exported_detector``.

    Raises:
        UserError: Nothing usable is there, or it is no detector.
    """
    return load_exported_detector(source) if is_exported(source) else load_detector(source)
