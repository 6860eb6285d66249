"""Checks of arguments; each raises one sentence that says what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn

from .errors import UserError


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise UserError unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, Integral) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise UserError unless ``value`` is a finite number between ``least`` and ``most``."""
    number = float(value) if isinstance(value, Real) else math.nan
    if not math.isfinite(number) or not least <= number <= most:
        bounds = f" of at least {least:g}" if least > -math.inf else ""
        wanted = f"between {least:g} and {most:g}" if most < math.inf else f"a number{bounds}"
        raise UserError(f"{name}={value!r} must be {wanted}.")


def check_network(value: object) -> None:
    """Raise UserError unless ``value`` is a network; the name of one is not."""
    if not isinstance(value, nn.Module):
        raise UserError(f"{value!r:.80} is not a network; build one first, for example with timm.create_model.")


def entries(name: str, values: Any, of_each: str) -> tuple[Any, ...]:
    """Several values as a tuple; raises UserError for a single value, such as a text."""
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
        raise UserError(f"{name}={value!r} must be a whole number, or the same one twice.")
    return int(side)
