"""Names in any alphabet in a terminal: in a line of their own, and how much room they take in tables."""

from __future__ import annotations

import unicodedata

#: Characters that stand on or between others and take no room of their own: accents, joiners.
_WITHOUT_WIDTH = ("Mn", "Me", "Cf")


def in_one_line(name: str) -> str:
    """A name of a file, in which line breaks and commands to the terminal are spelt out: ``\\n``, ``\\x1b``."""
    return "".join(repr(char)[1:-1] if unicodedata.category(char) == "Cc" else char for char in name)


def text_width(text: str) -> int:
    """Columns of a terminal that a text takes: two for each Chinese, Japanese or Korean character and most pictures."""
    return sum(map(_character_width, text))


def left_aligned(text: str, width: int) -> str:
    """The text, filled up with spaces to so many columns of a terminal."""
    return text + " " * (width - text_width(text))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in _WITHOUT_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
