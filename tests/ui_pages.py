"""A page over two small networks, and a photograph for it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
from conftest import TINY, save_run
from PIL import Image

from partialnet.ui import PageServer, Viewer, open_networks

CLASSES = ("tench", "church", "<b>golf ball</b>")


def photo_bytes(seed: int = 0, size: tuple[int, int] = (120, 80)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def save_networks(folder: Path) -> tuple[Path, Path]:
    """A network of ours, and one that has no gates."""
    return save_run(folder / "tiny", classes=CLASSES, **TINY), save_run(folder / "peer", "resnet10t", CLASSES)


@contextlib.contextmanager
def serving(runs: tuple[Path, Path]) -> Iterator[PageServer]:
    viewer = Viewer(open_networks([str(run) for run in runs]))
    server = PageServer(viewer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        viewer.close()
        thread.join(5)
