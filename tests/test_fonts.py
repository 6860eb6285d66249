"""Names in pictures in alphabets that matplotlib's own font does not have."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from PIL import Image

from partialnet import plots
from partialnet.fonts import OWN_BOLD_FONT, OWN_FONT, font_file, fonts_for

#: In a font that comes with matplotlib, but not in its usual one; and in no font at all.
ELSEWHERE, NOWHERE = "\u1d81", "\u0378"


def test_matplotlibs_usual_font_is_the_one_that_is_asked() -> None:
    assert Path(findfont(FontProperties())).name == Path(OWN_FONT).name


def test_fonts_that_have_what_the_usual_one_lacks() -> None:
    assert fonts_for("Übergröße, кот\n") == []
    assert fonts_for(NOWHERE) == []
    first, *_ = fonts_for(f"a{ELSEWHERE}{NOWHERE}")
    assert FT2Font(first.fname).get_char_index(ord(ELSEWHERE))


def test_the_font_of_a_whole_text() -> None:
    assert font_file("cat 87%") == OWN_BOLD_FONT
    assert font_file(f"{ELSEWHERE} 87%") == fonts_for(ELSEWHERE)[0].fname
    assert font_file(f"{ELSEWHERE}{NOWHERE}") == OWN_BOLD_FONT


def drawn(folder: Path, name: str) -> np.ndarray:
    plots.confusion_matrix(folder / "c.png", [0, 1], [1, 1], ["cat", name], "")
    return np.asarray(Image.open(folder / "c.png").convert("L"))


def test_names_in_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warning for each character, in the other font where there is one, as a box where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_font = drawn(tmp_path, ELSEWHERE)
        drawn(tmp_path, NOWHERE)
        monkeypatch.setattr("partialnet.plots.fonts_for", lambda text: [])
        as_box = drawn(tmp_path, ELSEWHERE)
    assert with_font.shape != as_box.shape or (with_font != as_box).any()


def test_captions_in_plots(tmp_path: Path) -> None:
    """Above images, which are measured before they are drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.image_grid(tmp_path / "g.png", [np.zeros((8, 8, 3))] * 2, [NOWHERE, "\x1b.jpg"], NOWHERE)
