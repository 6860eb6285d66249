"""Tiny training runs: their photos and settings, and what tests look at in their folders."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from PIL import Image
from torch import Tensor

from partialnet.training.config import TrainConfig
from partialnet.training.run import TrainResult
from partialnet.training.states import StateFiles

TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1]}
#: Of every run, whatever is trained and on whichever machine
ON_ONE_CORE: dict[str, Any] = {"workers": 0, "device": "cpu", "precision": "fp32", "threads": 1}
CONFIG = TrainConfig(
    model_args=TINY,
    img_size=32,
    epochs=1,
    batch_size=8,
    warmup_epochs=0,
    lr=3e-3,
    lr_scaling="none",
    seed=3,
    **ON_ONE_CORE,
)
#: Of the run that tests share
FINISHED = replace(CONFIG, epochs=4, warmup_epochs=1, ema=0.5, drop_path_rate=0.1)
#: What draws the pictures of run folders, in its modules
DRAWING = {
    "partialnet.training.pictures": ("draw_first_batch", "draw_results"),
    "partialnet.detection.pictures": ("draw_first_batch", "draw_curves", "draw_results"),
    "partialnet.search.pictures": ("draw_ratios", "draw_plan"),
    "partialnet.search.run": ("learning_curves",),
}
#: A program that keeps its process from drawing
DRAW_NOTHING = f"""
import importlib
for module, names in {DRAWING}.items():
    for name in names:
        setattr(importlib.import_module(module), name, lambda *arguments: None)
"""
Train = Callable[..., TrainResult]


def write_photos(root: Path, count: int) -> Path:
    """Noisy blue, green and red images, 40×48, ``count`` of each."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 120, (40, 48, 3))
            pixels[..., 2 - channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root


def tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def newest_state(folder: Path) -> dict[str, Any]:
    state = StateFiles(folder / "state", print).newest()
    assert state is not None
    return state.content


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
