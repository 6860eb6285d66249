"""Packages that are installed only with an extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import UserError


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        UserError: The package is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(f'This needs {package}; in the checkout run: pip install ".[{extra}]"') from None
