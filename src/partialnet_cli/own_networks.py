"""``partialnet --import``: a user's own module, which registers networks with timm."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from partialnet.errors import UserError


def import_own(name: str) -> None:
    """Import a module, or a file of one, from the folder the user is in or from the environment.

    Raises:
        UserError: It is not there, its name is taken, or it fails.
    """
    if name.endswith(".py"):
        _import_file(Path(name))
        return
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        importlib.import_module(name)
    except Exception as error:
        raise UserError(f"--import {name} failed: {_reason(error)}") from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--import {path}: there is no such file.")
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path.resolve()):
            return
        raise UserError(
            f"--import {path}: Python already has another module {path.stem!r}; give the file another name."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # timm registers a network under the module that defines it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise UserError(f"--import {path} failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
