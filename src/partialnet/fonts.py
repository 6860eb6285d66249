"""Fonts of this machine for characters that matplotlib's own font lacks, such as Chinese, Japanese and Korean ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font

#: matplotlib's own fonts, which are everywhere and know more alphabets than PIL's.
OWN_FONT, OWN_BOLD_FONT = (
    str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
)
#: Has a box with the name of its alphabet for every character there is.
_PLACEHOLDERS = "Last Resort"


def fonts_for(text: str) -> list[FontEntry]:
    """Fonts for the characters of a text that ``OWN_FONT`` lacks, as far as any font has them, the most useful first.

    Empty where nothing is lacking, which costs next to nothing; otherwise every font of the machine is asked, once.
    """
    lacking = _lacking(OWN_FONT, frozenset(text))
    return list(_fonts_with(lacking)) if lacking else []


def font_file(text: str) -> str:
    """The file of a font that has the whole text, else of ``OWN_BOLD_FONT``."""
    return next((font.fname for font in fonts_for(text) if not _lacking(font.fname, frozenset(text))), OWN_BOLD_FONT)


@cache
def _fonts_with(characters: frozenset[str]) -> tuple[FontEntry, ...]:
    fonts = {
        font.fname: font
        for font in fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal") and not font.name.startswith(_PLACEHOLDERS)
    }
    having = {name: characters - _lacking(name, characters) for name in sorted(fonts)}
    chosen = []
    while having:
        best = max(having, key=lambda name: len(having[name]))
        found = having.pop(best)
        if not found:
            break
        chosen.append(fonts[best])
        having = {name: rest - found for name, rest in having.items()}
    return tuple(chosen)


@cache
def _lacking(file: str, characters: frozenset[str]) -> frozenset[str]:
    """What a font has no picture of; everything, if it cannot be read. Spaces and line breaks need none."""
    characters = frozenset(character for character in characters if not character.isspace())
    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return characters
    return frozenset(character for character in characters if not font.get_char_index(ord(character)))
