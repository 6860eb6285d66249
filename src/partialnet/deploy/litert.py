"""Networks as LiteRT (TensorFlow Lite) files, for phones and small devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partialnet.extras import require

from .library_messages import quiet, quiet_native

#: Names of the input and the output, the same as in every other format.
_INPUT, _OUTPUT = "images", "logits"
#: What holds nearly all weights.
_LARGE_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class _Named(nn.Module):
    """A classifier whose argument and result have the names that the file is to have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {_OUTPUT: self.model(images)}


def convert_litert(model: nn.Module, shape: Sequence[int]) -> bytes:
    """The content of a float file whose input is called ``images`` and whose output ``logits``.

    Args:
        model: Network in evaluation mode, folded.
        shape: Shape of its input, (B, C, H, W).

    Raises:
        UserError: litert-torch is not installed.
    """
    litert_torch = require("litert_torch", "litert")
    images = torch.zeros(*shape, dtype=next(model.parameters()).dtype)
    with torch.no_grad(), quiet(), quiet_native():
        return bytes(litert_torch.convert(_Named(model).eval(), sample_kwargs={_INPUT: images}).model_content())


def with_half_weights(content: bytes) -> bytes:
    """The content of a float file with the weights of convolutions and dense layers in float16, all else in float32.

    Raises:
        UserError: litert-torch is not installed.
    """
    types = require("ai_edge_quantizer.qtyping", "litert")
    quantizer = require("ai_edge_quantizer.quantizer", "litert").Quantizer(content)
    half = types.OpQuantizationConfig(
        weight_tensor_config=types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT),
        compute_precision=types.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    for kind in _LARGE_OPERATORS:
        quantizer.update_quantization_recipe(".*", types.TFLOperationName(kind), half, algorithm_key="float_casting")
    with quiet(), quiet_native():
        return bytes(quantizer.quantize().quantized_model)


def with_entry(content: bytes, name: str, entry: Mapping[str, Any]) -> bytes:
    """The content of a file, with a named entry of settings, as JSON, in its metadata."""
    tools = require("ai_edge_litert.tools.flatbuffer_utils", "litert")
    schema = require("ai_edge_litert.schema_py_generated", "litert")
    model = tools.read_model_from_bytearray(content)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(json.dumps(entry).encode(), np.uint8)
    model.buffers.append(buffer)
    metadata = schema.MetadataT(name=name.encode(), buffer=len(model.buffers) - 1)
    model.metadata = [*(model.metadata or ()), metadata]
    return bytes(tools.convert_object_to_bytearray(model))


def read_entry(content: bytes, name: str) -> str | None:
    """What ``with_entry`` put into a file; None if there is no such entry."""
    model = require("ai_edge_litert.schema_py_generated", "litert").Model.GetRootAs(content, 0)
    for index in range(model.MetadataLength()):
        metadata = model.Metadata(index)
        if metadata.Name() == name.encode():
            return bytes(model.Buffers(metadata.Buffer()).DataAsNumpy()).decode()
    return None


def open_litert(content: bytes) -> tuple[Callable[..., list[np.ndarray]], tuple[int, ...]]:
    """What runs a file's content, mapping arrays of all inputs to those of all outputs, and the first input's shape.

    Raises:
        ValueError: It is no LiteRT file, or a damaged one.
        UserError: LiteRT's runtime is not installed.
    """
    runtime = require("ai_edge_litert.interpreter", "litert")
    with quiet_native():
        interpreter = runtime.Interpreter(model_content=content, num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        for entry, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(entry["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(entry["index"]) for entry in outputs]  # copies

    return run, tuple(int(side) for side in inputs[0]["shape"])
