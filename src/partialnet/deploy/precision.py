"""A float ONNX file in the precision that is asked for, for exporting and for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partialnet.extras import require

from .quantize import quantize_onnx, quantize_openvino
from .runtimes import openvino_core

#: What PyTorch computes in, or stores, for a precision.
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def convert_onnx(path: Path, precision: str, calibration: Sequence[np.ndarray] = ()) -> Any:
    """The network of a float ONNX file as an ``onnx.ModelProto`` with float32 input and output.

    Args:
        path: The file.
        precision: "fp32", "fp16" for the whole graph, or "int8" for convolutions and dense layers.
        calibration: Preprocessed images for int8, each array as the network takes it.

    Raises:
        ValueError: It is another precision, which onnxruntime does not run on the CPU.
    """
    import onnx

    if precision not in ("fp32", "fp16", "int8"):
        raise ValueError(f"onnxruntime runs no {precision} on the CPU.")
    if precision == "int8":
        return quantize_onnx(path, calibration)
    model = onnx.load(path)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    return model


def convert_openvino(path: Path, precision: str, calibration: Sequence[np.ndarray] = ()) -> Any:
    """The network of a float ONNX file as an ``openvino.Model`` that needs the file no longer.

    Args:
        path: The file.
        precision: "int8" quantises convolutions; the others leave the network as it is, for their precision is chosen
            when weights are stored and when the model is compiled.
        calibration: Preprocessed images for int8, each array as the network takes it.

    Raises:
        UserError: OpenVINO, or NNCF for int8, is not installed.
    """
    require("openvino", "openvino")
    # OpenVINO maps files into memory, and would read from one that was deleted or overwritten
    model = openvino_core().read_model(path.read_bytes())
    return quantize_openvino(model, calibration) if precision == "int8" else model
