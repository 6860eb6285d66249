"""Packages that are installed only with an extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import UserError


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        UserError: The package is not installed; the message gives the command that installs the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        # pip finds the extra in what is installed, whether from a wheel or from a clone, and asks no index for it
        raise UserError(f'This needs {package}; install it with: pip install "partialnet[{extra}]"') from None
