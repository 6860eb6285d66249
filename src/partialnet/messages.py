"""Phrases that several messages share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def similar_names(name: str, known: Iterable[str]) -> str:
    """A sentence, after a space, with the names that are most like an unknown one; empty where none is."""
    near = get_close_matches(name, list(known), n=3)
    return f" Similar names: {', '.join(near)}." if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence, after a space, with the name that an unknown one stands for, or else all names."""
    choices = list(known)
    near = get_close_matches(name, choices, n=1)
    return f" Did you mean {near[0]}?" if near else f" Choose one of {', '.join(choices)}."


def yaml_problem(error: Exception) -> str:
    """What PyYAML found wrong with a text, and in which line."""
    if getattr(error, "encoding", "unicode") != "unicode":  # of PyYAML's and Python's own errors of decoding
        return "it is not written in UTF-8"
    place = getattr(error, "problem_mark", None)
    line = f" in line {place.line + 1}" if place is not None else ""
    return f"{getattr(error, 'problem', None) or 'it cannot be read'}{line}"


def reason_of(error: Exception) -> str:
    """What the system says about a failure, as of a write, without the file's name; else what the error says."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def first_line(error: BaseException) -> str:
    """The first line of what an error says that is not blank, or its kind where it says nothing."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
