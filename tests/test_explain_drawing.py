"""How maps are drawn over images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from partialnet.explain.drawing import overlay


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_brighter_is_more_on_any_image(grey: int) -> None:
    """Hues alone would not tell the peak from the surroundings to colour-blind readers, nor in a grey print."""
    values = np.tile(np.linspace(0, 1, 33), (4, 1))
    (row,) = overlay(Image.new("RGB", (33, 4), (grey,) * 3), values)[:1]
    lightness = (row**2.2) @ (0.2126, 0.7152, 0.0722)
    # what matters least has the least colour, so that on white the lower half may become darker first
    assert (np.diff(lightness)[16:] > 0).all()
