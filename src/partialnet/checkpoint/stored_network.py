"""Networks as files: weights in safetensors, with the configuration in the file's own header.

A run folder holds ``model.safetensors`` and ``config.json``, which repeats the header for people and other tools. The
first alone is enough for us. Classifiers and detectors are stored alike; ``task`` in the configuration tells them
apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from partialnet.errors import UserError
from partialnet.files import write_atomically
from partialnet.messages import listed

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
#: What a network can be for, with a sentence for whoever takes one for another.
TASKS = {
    "classification": "is a classifier; `partialnet detect train --weights` takes it as a backbone",
    "detection": "is a detector; the commands of `partialnet detect` take it",
}
_HEADER_KEY = "partialnet"


@dataclass(frozen=True)
class StoredNetwork:
    """A network's file as read, nothing built yet.

    Attributes:
        path: The file.
        config: Its configuration.
        tensors: Its weights.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


@contextmanager
def using_configuration(path: str | Path) -> Iterator[None]:
    """What the configuration in a file lacks, or has in another form, becomes one sentence that names the file.

    Raises:
        UserError: A value was missing or of the wrong kind.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"The configuration in {str(path)!r} cannot be used: {reason}") from error


def save_network(folder: str | Path, model: nn.Module, config: Mapping[str, Any]) -> Path:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``, each in one step; return the former."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_NAME, serialize_network(model, config))
    write_atomically(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())
    return folder / WEIGHTS_NAME


def serialize_network(model: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> bytes:
    """The content of a ``.safetensors`` file; ``dtype`` rounds the weights for storage."""
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in model.state_dict().items():
        stored = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        stored = stored.detach().contiguous().cpu()
        place = stored.untyped_storage().data_ptr()
        # the format refuses weights that share memory, as those of a layer with two names do
        tensors[name] = stored.clone() if place in memory else stored
        memory.add(place)
    return safetensors.torch.save(tensors, {"format": "pt", _HEADER_KEY: json.dumps(config, indent=2)})


def read_network(source: str | Path, task: str) -> StoredNetwork:
    """Read a ``.safetensors`` file, or that of a run folder, with the configuration in it or beside it.

    Args:
        source: The file or folder.
        task: What the network must be for, one of ``TASKS``.

    Raises:
        UserError: Nothing usable is there, or it is of another task; the message says why.
    """
    stored = _read(source)
    found = _task(stored)
    if found != task:
        told = TASKS.get(found) if isinstance(found, str) else None
        raise UserError(f"{str(source)!r} {told or f'is of the unknown task {found!r}'}.")
    return stored


def is_stored_as(source: str | Path, task: str) -> bool:
    """Whether ``source`` is a readable network's file, or its run folder, of this task."""
    path = Path(source) / WEIGHTS_NAME if Path(source).is_dir() else Path(source)
    if path.suffix != ".safetensors":
        return False
    try:
        return _task(_read(source, weights=False)) == task
    except UserError:
        return False


def refuse_openvino_weights(path: Path) -> None:
    """Of a file that could not be read, tell if it is the ``.bin`` that OpenVINO's format keeps beside an ``.xml``.

    Raises:
        UserError: It is one.
    """
    graph = path.with_suffix(".xml")
    if path.suffix == ".bin" and graph.is_file():
        raise UserError(f"{str(path)!r} holds the weights of the exported file {str(graph)!r}; give that one.")


def _read(source: str | Path, weights: bool = True) -> StoredNetwork:
    path = Path(source) / WEIGHTS_NAME if Path(source).is_dir() else Path(source)
    if not path.is_file():
        if Path(source).is_dir():
            raise UserError(f"Folder {str(source)!r} has no {WEIGHTS_NAME}, so it is not a run folder.")
        raise UserError(f"There is no file or folder {str(source)!r}.")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
            names = file.keys() if weights else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        refuse_openvino_weights(path)
        raise UserError(f"{str(path)!r} is damaged or not a safetensors file: {error}") from error
    if header is None and (path.parent / CONFIG_NAME).is_file():
        header = (path.parent / CONFIG_NAME).read_text(errors="replace")
    if header is None:
        raise UserError(f"{str(path)!r} does not say which network it is of, and there is no {CONFIG_NAME} beside it.")
    try:
        config = json.loads(header)
        if not isinstance(config, dict):
            raise ValueError("it must hold settings by name")
    except ValueError as error:
        raise UserError(f"The configuration in {str(path)!r} cannot be used: {error}") from error
    return StoredNetwork(path, config, tensors)


def _task(stored: StoredNetwork) -> Any:
    return stored.config.get("task", "classification")


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load all tensors; a dimension that does not fit is told in one sentence, not in torch's hundred lines.

    Args:
        model: The network that gets them.
        tensors: All that its state dict has, by name.
        path: The file that they are from, for the error.

    Raises:
        UserError: A tensor is missing, unknown or of another shape.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    misfits = [
        f"{name} has shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    problems = [f"{listed(names, 1)} {what}" for names, what in ((missing, "missing"), (unknown, "unknown")) if names]
    if problems or misfits:
        raise UserError(f"The weights in {str(path)!r} do not fit the network: {'; '.join(problems + misfits[:1])}.")
    model.load_state_dict(tensors)
