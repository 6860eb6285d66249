"""Types of options that take a number within bounds."""

from __future__ import annotations

import click


class IntRange(click.IntRange):
    """An integer, which help calls so; click's "integer range" reads as if one had to give two."""

    name = "integer"


class FloatRange(click.FloatRange):
    """A number, which help calls so."""

    name = "number"
