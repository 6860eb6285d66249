"""What arguments must be; each check says in one sentence what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn

from .errors import UserError


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise UserError for what is no whole number, or a smaller one than ``least``."""
    if not isinstance(value, Integral) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise UserError for what is no finite number between ``least`` and ``most``."""
    number = float(value) if isinstance(value, Real) else math.nan
    if not math.isfinite(number) or not least <= number <= most:
        bounds = f" of at least {least:g}" if least > -math.inf else ""
        wanted = f"between {least:g} and {most:g}" if most < math.inf else f"a number{bounds}"
        raise UserError(f"{name}={value!r} must be {wanted}.")


def check_network(value: object) -> None:
    """Raise UserError for what is no network, such as the name of one."""
    if not isinstance(value, nn.Module):
        raise UserError(f"{value!r:.80} is no network; build one first, as timm.create_model does of a name.")


def entries(name: str, values: Any, of_each: str) -> tuple[Any, ...]:
    """Several values as a tuple; UserError for what has no entries, and for a text, which is one value."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise UserError(f"{name}={values!r} must have an entry for each {of_each}.")
    return tuple(values)


def one_side(name: str, value: int | tuple[int, int]) -> int:
    """The one side of a kernel, stride or dilation, which may be given as two equal ones, as to ``nn.Conv2d``.

    Raises:
        UserError: The two differ, or are no whole numbers.
    """
    sides = set(value) if isinstance(value, (tuple, list)) and len(value) == 2 else {value}
    side = sides.pop()
    if sides or not isinstance(side, Integral):
        raise UserError(f"{name}={value!r} must be a whole number, or twice the same one.")
    return int(side)
