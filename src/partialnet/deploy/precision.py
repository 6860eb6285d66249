"""A float ONNX file in the precision that is asked for, for exporting and for measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partialnet.extras import require

from .quantize import Batches, quantize_onnx, quantize_openvino
from .runtimes import openvino_core

#: What PyTorch computes in, or stores, for a precision.
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: What OpenVINO shall compute in for a precision of an exported file, in int8 what is left in float. Processors
#: without bf16 take float32 in its place.
INFERENCE_PRECISIONS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "bf16"}


def convert_onnx(
    path: Path,
    precision: str,
    calibration: Batches = (),
    in_float: Callable[[str], bool] = lambda name: False,
) -> Any:
    """The network of a float ONNX file as an ``onnx.ModelProto`` with float32 input and output.

    Args:
        path: The file.
        precision: "fp32", "fp16" for the whole graph, or "int8" for convolutions and dense layers.
        calibration: Preprocessed images for int8.
        in_float: Whether int8 leaves a layer of this name in float.

    Raises:
        ValueError: It is another precision, which onnxruntime does not run on the CPU.
    """
    import onnx

    if precision not in ("fp32", "fp16", "int8"):
        raise ValueError(f"onnxruntime does not run {precision} on the CPU.")
    if precision == "int8":
        return quantize_onnx(path, calibration, in_float)
    model = onnx.load(path)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        model = convert_float_to_float16(model, keep_io_types=True)
        # it leaves the conversion of the input behind the operators that use it, which ONNX does not allow
        OnnxModel.graph_topological_sort(model.graph)
    return model


def halve_weights(model: Any, chosen: Callable[[str], bool]) -> None:
    """Store weights of an ``onnx.ModelProto`` in 16 bits, in place; they become float32 again when it is loaded.

    For graphs with arithmetic that half precision is too coarse for: onnxruntime's converter would round what passes
    between operators that it leaves in float32.

    Args:
        model: The network.
        chosen: Whether the weights of an operator of this name are stored so.
    """
    import onnx

    graph = model.graph
    used = {name for node in graph.node if chosen(node.name) for name in node.input}
    casts = []
    for weight in graph.initializer:
        if weight.name in used and weight.data_type == onnx.TensorProto.FLOAT:
            stored, name = f"{weight.name}_half", weight.name
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), stored))
            casts.append(onnx.helper.make_node("Cast", [stored], [name], f"{name}/Cast", to=onnx.TensorProto.FLOAT))
    operators = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(operators)


def convert_openvino(path: Path, precision: str, calibration: Batches = ()) -> Any:
    """The network of a float ONNX file as an ``openvino.Model`` that needs the file no longer.

    Args:
        path: The file.
        precision: "int8" quantises convolutions and dense layers; the others leave the network as it is, for their
            precision is chosen when weights are stored and when the model is compiled.
        calibration: Preprocessed images for int8.

    Raises:
        UserError: OpenVINO, or NNCF for int8, is not installed.
    """
    require("openvino", "openvino")
    # OpenVINO maps files into memory, and would read from one that was deleted or overwritten
    model = openvino_core().read_model(path.read_bytes())
    return quantize_openvino(model, calibration) if precision == "int8" else model


def compute_in_float32(model: Any, chosen: Callable[[str], bool]) -> None:
    """Have an OpenVINO model, once it is stored, compute some operators in float32 whatever precision it is run in.

    Args:
        model: An ``openvino.Model``; changed in place.
        chosen: Whether an operator of this name is to be computed so.
    """
    for operator in model.get_ops():
        name = operator.get_friendly_name()
        # OpenVINO 2025 takes marked integers for others than the unmarked ones beside them
        in_float = any(port.get_element_type().is_real() for port in (*operator.inputs(), *operator.outputs()))
        # what importing adds is named by its kind
        if in_float and name != operator.get_name() and chosen(name):
            operator.get_rt_info()["precise_0"] = ""
