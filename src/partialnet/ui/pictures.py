"""Maps and gates as pictures that a page can show, each a data URL."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

from partialnet.explain import ClassMap
from partialnet.explain.cam import to_image
from partialnet.explain.drawing import MAP_COLORS, overlay
from partialnet.preprocessing import Region


def data_url(picture: np.ndarray) -> str:
    """A picture as a PNG in a URL of its own.

    Args:
        picture: (h, w, 3), in [0, 1].
    """
    file = io.BytesIO()
    Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def class_map_picture(small: Image.Image, found: ClassMap) -> str:
    """A class map over the image as it is shown, ``small``."""
    shown = found.resized(small.size)
    return data_url(overlay(small, shown.values, shown.region))


def attention_picture(small: Image.Image, weights: np.ndarray, region: Region) -> str:
    """Attention (h, w) over the image as it is shown, strongest at its maximum; positions keep their edges."""
    placed = to_image(weights / max(float(weights.max()), 1e-12), region, small.size, smooth=False)
    return data_url(overlay(small, placed, region))


def tile_picture(values: np.ndarray, low: float, high: float) -> str:
    """A map (h, w) with one pixel for each position, coloured from ``low`` to ``high``."""
    share = (values - low) / max(high - low, 1e-3)
    return data_url(matplotlib.colormaps[MAP_COLORS](share.clip(0, 1))[:, :, :3])
