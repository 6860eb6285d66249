"""Everything that a command can take as its network: a run folder, a checkpoint, an exported file or a model name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from .checkpoint import Checkpoint, load
from .checkpoint.stored_network import WEIGHTS_NAME
from .deploy.runtimes import EXPORTED_SUFFIXES, load_exported
from .devices import find_device
from .errors import UserError


def open_source(source: str | Path, trained: bool = False) -> Checkpoint:
    """Open a network by what names it; see ``partialnet.checkpoint.load`` and ``load_exported``.

    Args:
        source: Run folder, checkpoint, exported file or model name.
        trained: Refuse a model name, behind which is a network with random weights.

    Raises:
        UserError: Nothing usable is there.
    """
    if is_exported(source):
        return load_exported(source)
    checkpoint = load(source)
    if trained and not Path(source).exists():
        raise UserError(
            f"{str(source)!r} is the name of an untrained network, whose answers are random. Give a checkpoint or run "
            "folder; `partialnet demo` makes one."
        )
    return checkpoint


def is_exported(source: str | Path) -> bool:
    """Whether ``source`` names a file for another runtime than PyTorch."""
    return Path(source).suffix in EXPORTED_SUFFIXES


def short_names(sources: Iterable[str]) -> dict[str, str]:
    """What to call each network: the last part of its path, of its run folder for a checkpoint there, or its own name.

    One whose name is taken is called by its whole source. Sources that are given twice count once.
    """
    names: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        path, name = Path(source), source
        if path.exists():
            name = path.resolve().parent.name if path.name == WEIGHTS_NAME else path.resolve().name
        if name in names.values():
            name = source if source not in names.values() else f"{name} ({len(names) + 1})"
        names[source] = name
    return names


def device_for(source: str | Path, name: str | None = None) -> torch.device:
    """Where the network behind ``source`` is to run: exported files on the CPU, others as ``find_device`` says.

    Raises:
        UserError: There is no such device, or it cannot run the network.
    """
    if is_exported(source) and name not in (None, "cpu"):
        raise UserError(f"Exported files run on the CPU; {str(source)!r} cannot run on {name!r}.")
    return find_device("cpu" if is_exported(source) else name)
