"""What tests of exports share: a small classifier and images for it, a graph of one operator, converting only once."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import randomize_parameters
from PIL import Image

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.deploy.export import write_onnx
from partialnet.detection.export import write_detector_onnx

CLASSES = ("ant", "bee", "cat", "dog", "elk")
#: How ``means`` takes images
MEANS_INPUT: dict[str, Any] = {
    "input_size": [3, 8, 8],
    "interpolation": "bilinear",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def small_classifier(depths: tuple[int, ...] = (1, 1, 2, 1)) -> Checkpoint:
    """A network for 64×64 images, with weights as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checkpoint = create_checkpoint("partialnet_t0", CLASSES, num_classes=len(CLASSES), depths=depths)
        randomize_parameters(checkpoint.model)
    checkpoint.model.eval()
    checkpoint.input_config["input_size"] = [3, 64, 64]
    return checkpoint


def write_patterns(folder: Path, number: int, random: np.random.Generator, side: int) -> list[Path]:
    """Images of smooth random colours."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:02d}.png" for index in range(number)]
    for path in paths:
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return paths


def means() -> onnx.ModelProto:
    """A graph of one operator, with the inputs and outputs of an export."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["images"], ["logits"], keepdims=0, axes=[2, 3])],
        "means",
        [value("images", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("logits", onnx.TensorProto.FLOAT, [1, 3])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=10)


class Conversions:
    """ONNX files by the networks and settings that they were made from."""

    def __init__(self) -> None:
        self._contents: dict[bytes, bytes] = {}

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let exports take the file from here where there is one."""
        patch.setattr("partialnet.deploy.export.write_onnx", partial(self._write, write_onnx))
        patch.setattr("partialnet.detection.export.write_detector_onnx", partial(self._write, write_detector_onnx))

    def _write(self, convert: Callable[..., None], *arguments: Any) -> None:
        (path,) = (argument for argument in arguments if isinstance(argument, Path))
        buffer = io.BytesIO()
        # of a network, its classes, settings and weights
        torch.save([argument for argument in arguments if argument is not path], buffer)
        key = buffer.getvalue()
        if key not in self._contents:
            convert(*arguments)
            self._contents[key] = path.read_bytes()
        path.write_bytes(self._contents[key])
