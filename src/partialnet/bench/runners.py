"""What runs one batch in a runtime. A runner owns all it needs: no file behind it, no array that could go away."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partialnet.deploy.export import write_onnx
from partialnet.deploy.precision import INFERENCE_PRECISIONS, TORCH_DTYPES, convert_onnx, convert_openvino
from partialnet.deploy.quantize import Inputs
from partialnet.deploy.runtimes import openvino_core
from partialnet.errors import UserError
from partialnet.extras import require

#: as in exported files, but fp16 is measured only where the CPU computes in it
_OPENVINO_HINTS = INFERENCE_PRECISIONS | {"fp16": "f16"}
#: batches of noise that int8 is calibrated on: enough for speed, useless for accuracy
_CALIBRATION_BATCHES = 4


class TorchRunner:
    """A module of PyTorch with one batch in its device, dtype and memory layout; called within ``torch_settings``.

    Args:
        model: Network in evaluation mode; moved in place.
        images: (B, C, H, W), float32.
        precision: "fp32", "fp16" or "bf16".
        device: "cpu", "cuda", "cuda:1", …
        layout: Memory format of weights and images.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, precision: str, device: str, layout: torch.memory_format
    ) -> None:
        dtype = TORCH_DTYPES[precision]
        self.layout = layout
        self.model = model.to(device, dtype, memory_format=layout)  # type: ignore[call-overload]
        self.images = images.to(device, dtype).contiguous(memory_format=layout)

    def __call__(self) -> Tensor:
        """Run the batch."""
        with torch.inference_mode():
            output: Tensor = self.model(self.images)
        return output


class OnnxRuntimeRunner:
    """A session of onnxruntime, made from the file's content, with its batch.

    Args:
        path: Float ONNX file of a network for batches of this size; not needed afterwards.
        images: (B, C, H, W), float32.
        precision: "fp32", "fp16" or "int8", which is calibrated on noise.
        threads: CPU threads.
    """

    def __init__(self, path: Path, images: np.ndarray, precision: str, threads: int) -> None:
        import onnxruntime

        content = convert_onnx(path, precision, _noise(images)).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.feed = {self.session.get_inputs()[0].name: np.array(images)}

    def __call__(self) -> np.ndarray:
        """Run the batch."""
        output: np.ndarray = self.session.run(None, self.feed)[0]
        return output


class OpenVINORunner:
    """A compiled model of OpenVINO with its batch, which lies in an array that the runner keeps.

    Args:
        path: Float ONNX file of a network for batches of this size; not needed afterwards.
        images: (B, C, H, W), float32.
        precision: "fp32", "fp16", "bf16" or "int8", which NNCF calibrates on noise.
        threads: CPU threads.

    Raises:
        UserError: This CPU does not compute in that precision.
    """

    def __init__(self, path: Path, images: np.ndarray, precision: str, threads: int) -> None:
        openvino = require("openvino", "openvino")
        self.compiled = _compile_openvino(convert_openvino(path, precision, _noise(images)), precision, threads)
        self.request = self.compiled.create_infer_request()
        self.images = np.array(images)
        self.request.set_input_tensor(openvino.Tensor(self.images, shared_memory=True))

    def __call__(self) -> np.ndarray:
        """Run the batch."""
        output: np.ndarray = self.request.infer()[0]
        return output


def check_openvino(precision: str) -> None:
    """Raise UserError unless OpenVINO is installed and this CPU computes in ``precision``; takes milliseconds."""
    openvino = require("openvino", "openvino")
    value = openvino.opset8.parameter([1], np.float32)
    _compile_openvino(openvino.Model([openvino.opset8.relu(value)], [value]), precision, threads=1)


def _compile_openvino(model: Any, precision: str, threads: int) -> Any:
    hint = _OPENVINO_HINTS[precision]
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": hint,
    }
    compiled = openvino_core().compile_model(model, "CPU", properties)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != hint and precision != "int8":  # whose layers in int8 are the same
        raise UserError(f"OpenVINO computes in {used} on this CPU when asked for {precision}; measure fp32 instead.")
    return compiled


def exported_runner(
    model: nn.Module, images: Tensor, runtime: str, precision: str, threads: int
) -> OnnxRuntimeRunner | OpenVINORunner:
    """A runner of a module in "onnxruntime" or "openvino"; see those for the arguments and errors."""
    kind = OnnxRuntimeRunner if runtime == "onnxruntime" else OpenVINORunner
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(model, images.shape, path)
        return kind(path, images.numpy(), precision, threads)


def _noise(images: np.ndarray) -> list[Inputs]:
    random = np.random.default_rng(0)
    return [{"images": random.standard_normal(images.shape, np.float32)} for _ in range(_CALIBRATION_BATCHES)]
