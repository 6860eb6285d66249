"""Run exported files: onnxruntime, OpenVINO and LiteRT behind the interface of a torch module."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partialnet.checkpoint import Checkpoint
from partialnet.checkpoint.classifier import check_configuration
from partialnet.checkpoint.stored_network import using_configuration
from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.messages import first_line

from .litert import open_litert, read_entry
from .openvino_pair import check_pair

#: Key of the configuration in an exported file's metadata.
CONFIG_KEY = "partialnet"
EXPORTED_SUFFIXES = (".onnx", ".xml", ".tflite")
#: What an exported file can be for, with a sentence for whoever takes one for another.
_TASKS = {
    "classification": "is an exported classifier; `partialnet predict` and `partialnet eval` take it",
    "detection": "is an exported detector; `partialnet detect predict` and `partialnet detect eval` take it",
}
_STRANGER = "{!r} was not written by `partialnet export`: it does not name its classes."


class ExportedModel(nn.Module):
    """A network in another runtime, called like the original: (B, C, H, W) → (B, classes), float32 on the CPU.

    Args:
        run: Maps a contiguous float32 array of images to an array of logits.
        batch_size: Number of images that every call must have; None if any. Other batches are cut up and padded.
        config: The checkpoint's configuration.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], batch_size: int | None, config: dict[str, Any]) -> None:
        super().__init__()
        self.run = run
        self.batch_size = batch_size
        self.num_classes = int(config["num_classes"])

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, classes), of preprocessed images, (B, C, H, W)."""
        array = np.ascontiguousarray(images.detach().float().cpu().numpy())
        if self.batch_size is None:
            return torch.from_numpy(self.run(array).astype(np.float32))
        outputs = []
        for start in range(0, len(array), self.batch_size):
            part = array[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(part))] + [(0, 0)] * (part.ndim - 1)
            outputs.append(self.run(np.pad(part, padding))[: len(part)].astype(np.float32))
        return torch.from_numpy(np.concatenate(outputs))


def load_exported(path: str | Path) -> Checkpoint:
    """Open an exported ``.onnx``, OpenVINO ``.xml`` or ``.tflite`` file for ``partialnet.prediction``.

    Raises:
        UserError: The file is damaged, was not exported by ``partialnet export``, or its runtime is not installed.
    """
    exported = open_exported(path, "classification")
    config = exported.config
    with using_configuration(path):
        model = ExportedModel(lambda images: exported.run(images)[0], exported.input_shape[0], config)
        pretrained = config["pretrained_cfg"]
        checkpoint = Checkpoint(
            model.eval(),
            config["architecture"],
            config["model_args"],
            tuple(config.get("label_names", ())),
            {key: value for key, value in pretrained.items() if key not in ("num_classes", "first_conv", "classifier")},
        )
        check_configuration(checkpoint)
        size, taken = checkpoint.input_config["input_size"], exported.input_shape[1:]
        if any(side not in (None, given) for side, given in zip(taken, size, strict=True)):
            raise ValueError(f"it says input_size={size!r}, but the graph takes {list(taken)}")
    return checkpoint


@dataclass(frozen=True)
class ExportedFile:
    """An exported file, ready to run.

    Attributes:
        run: Maps contiguous arrays, float32 images and further inputs that a graph has, to those of all outputs.
        input_shape: (B, C, H, W) of the images that every call must have, each None if any.
        config: The configuration in the file.
    """

    run: Callable[..., list[np.ndarray]]
    input_shape: tuple[int | None, ...]
    config: dict[str, Any]


def open_exported(path: str | Path, task: str) -> ExportedFile:
    """Open an exported ``.onnx``, ``.xml`` or ``.tflite`` file of a task.

    Args:
        path: The file.
        task: "classification" or "detection".

    Raises:
        UserError: The file is missing or damaged, is not ours or of another task, lies beside another's weights, or its
            runtime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}.")
    open_file = {".onnx": _open_onnx, ".xml": _open_openvino, ".tflite": _open_litert}[path.suffix]
    run, input_shape, text = open_file(path)
    config = _parse_config(text, path)
    found = config.get("task", "classification")
    if found != task:
        raise UserError(f"{str(path)!r} {_TASKS.get(str(found), 'is of another task')}.")
    return ExportedFile(run, input_shape, config)


_Opened = tuple[Callable[..., list[np.ndarray]], tuple[int | None, ...], Any]


def _open_onnx(path: Path) -> _Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(f"{str(path)!r} is damaged or not an ONNX file: {first_line(error)}") from error
    entries = session.get_inputs()

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        names = [entry.name for entry in entries]
        outputs: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs

    text = session.get_modelmeta().custom_metadata_map.get(CONFIG_KEY)
    return run, tuple(side if isinstance(side, int) else None for side in entries[0].shape), text


def _open_openvino(path: Path) -> _Opened:
    core = openvino_core()
    check_pair(path)
    try:
        model = core.read_model(path)
        text = model.get_rt_info([CONFIG_KEY]).value if model.has_rt_info([CONFIG_KEY]) else None
        properties = {"INFERENCE_PRECISION_HINT": _parse_config(text, path).get("inference_precision", "f32")}
        request = core.compile_model(model, "CPU", properties).create_infer_request()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]  # places in OpenVINO's source come first
        raise UserError(f"{str(path)!r} is damaged or not an OpenVINO file: {reason}") from error
    shape = tuple(side.get_length() if side.is_static else None for side in model.input(0).partial_shape)

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        # both ends are copied: neither the caller's array nor the request's next result is ever shared
        results = request.infer(dict(enumerate(inputs)), share_inputs=False, share_outputs=False)
        return [results[index] for index in range(len(model.outputs))]

    return run, shape, text


def _open_litert(path: Path) -> _Opened:
    content = path.read_bytes()
    try:
        run, input_shape = open_litert(content)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{str(path)!r} is damaged or not a LiteRT file: {first_line(error)}") from error
    return run, input_shape, read_entry(content, CONFIG_KEY)


@functools.cache
def openvino_core() -> Any:
    """The process's one OpenVINO core, which is never given back.

    The first network that a core compiles gives the thread a stack for signal handlers, and the core's end restores
    the stack of before, even if that was another core's and is freed by then (OpenVINO 2026.4). Two cores that end in
    the order of their making leave a dangling stack, and the next signal with a Python handler, such as that of a data
    loader's process that ends, crashes the process.

    Raises:
        UserError: OpenVINO is not installed.
    """
    core = require("openvino", "openvino").Core()
    # read the weights rather than map the file, which may be replaced or deleted while the network is in use
    core.set_property({"ENABLE_MMAP": False})
    return core


def _parse_config(text: Any, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("no settings by name")
    except (TypeError, ValueError) as error:
        raise UserError(_STRANGER.format(str(path))) from error
    return config
