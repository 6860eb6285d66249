"""int8 by the runtimes' own quantisers, calibrated on the user's images.

Weights use seven of the eight bits: x86 processors without VNNI add pairs of products in 16 bits, which overflow with
eight. Such a network would be right where it was made and wrong on another machine.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from partialnet.extras import require

#: What stays in float: statistics, gates, softmax and the sums and products around them. In int8 they cost agreement
#: with the float network, and the conversions between them cost time.
_FLOAT_OPERATORS = (
    *("MVN", "ReduceMean", "Sqrt", "HSigmoid", "HardSigmoid", "Softmax", "SoftMax", "Gelu"),
    *("Add", "Subtract", "Multiply", "Divide", "Concat"),
)

#: Operators that limit a hard sigmoid to 0 … 6, as the exporters of PyTorch's versions write them.
_LIMITS = (["Clamp"], ["Maximum", "Minimum"], ["Relu", "Minimum"])

#: ONNX's operators that take maps apart and put them together.
_PARTS = ("Split", "Concat")

#: ONNX's operators that end a gate, and those that merely shape its weights for the product.
_GATES = ("HardSigmoid", "Sigmoid")
_SHAPES = ("Reshape", "Squeeze", "Unsqueeze")

#: ONNX's operators of which those beside quantised layers are quantised, too.
_BESIDE = (*_PARTS, "Mul", "Add")

#: What a network is given at a time: its inputs by their names.
Inputs = Mapping[str, np.ndarray]


class Batches(Protocol):
    """What to calibrate with; it is iterated over more than once, and may read its images only then."""

    def __iter__(self) -> Iterator[Inputs]: ...

    def __len__(self) -> int: ...


def quantize_openvino(model: Any, batches: Batches, in_float: Callable[[str], bool] = lambda name: False) -> Any:
    """Quantise an OpenVINO model's convolutions and dense layers with NNCF, except gates; the rest stays in float.

    Args:
        model: An ``openvino.Model``.
        batches: What to calibrate with.
        in_float: Whether an operator of this name stays in float, too.
    """
    nncf = require("nncf", "quantize")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    named = [operator.get_friendly_name() for operator in model.get_ops() if in_float(operator.get_friendly_name())]
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        ignored_scope=nncf.IgnoredScope(
            types=list(_FLOAT_OPERATORS), names=_float_products(model) + named, validate=False
        ),
    )


def _float_products(model: Any) -> list[str]:
    """Names of the convolutions and matrix products that stay in float: gates, and products of two activations."""
    operators = model.get_ops()
    products = [
        operator for operator in operators if operator.get_type_name() == "MatMul" and not _has_weight(operator)
    ]
    layers = [operator for operator in operators if operator.get_type_name() in ("Convolution", "MatMul")]
    return [operator.get_friendly_name() for operator in products + [layer for layer in layers if _is_gate(layer)]]


def _has_weight(product: Any) -> bool:
    return any(product.input_value(side).get_node().get_type_name() == "Constant" for side in (0, 1))


def _is_gate(layer: Any) -> bool:
    """Whether it is a convolution to a single channel, or any layer before a hard sigmoid."""
    to_one_channel = layer.get_type_name() == "Convolution" and layer.input(1).get_partial_shape()[0] == 1
    return to_one_channel or _precedes_hard_sigmoid(layer)


def _precedes_hard_sigmoid(operator: Any) -> bool:
    """Whether bias, 3, limits and a division follow."""
    types = _types_behind(operator, 5)
    while types[:1] == ["Add"]:
        types.pop(0)
    return any(types[: len(limits) + 1] == [*limits, "Divide"] for limits in _LIMITS)


def _types_behind(operator: Any, count: int) -> list[str]:
    """Types of the operators that follow one after the other, as long as each is the only one that uses the values."""
    types: list[str] = []
    while len(types) < count:
        consumers = [consumer.get_node() for consumer in operator.output(0).get_target_inputs()]
        # importing a bias asks for the shape of what it is added to
        consumers = [consumer for consumer in consumers if consumer.get_type_name() != "ShapeOf"]
        if len(consumers) != 1:
            break
        operator = consumers[0]
        types.append(operator.get_type_name())
    return types


def quantize_onnx(path: Path, batches: Batches, in_float: Callable[[str], bool] = lambda name: False) -> Any:
    """Quantise convolutions and dense layers of an ONNX file in the QDQ format; statistics and softmax stay in float.

    So that maps need not be converted to float and back between them, what stands beside them is quantised, too: ReLU,
    splits and concatenations of maps, and the products of maps and their gates with what is added to these.

    Args:
        path: Float model.
        batches: What to calibrate with.
        in_float: Whether an operator of this name stays in float, too.

    Returns:
        An ``onnx.ModelProto``.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> Inputs | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared, target = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        beside = _beside_layers(nodes)
        quantization.quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "Relu", "Clip", *_BESIDE],
            nodes_to_exclude=[
                node.name
                for node in nodes
                if in_float(node.name) or (node.op_type in _BESIDE and node.name not in beside)
            ],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            # dense layers give logits, of which other images have larger ones than calibration saw, and gates, in float
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        return onnx.load(target)


def _beside_layers(nodes: Sequence[Any]) -> set[str]:
    """Names of the splits and concatenations of convolutions' maps, of the gates' products, and of sums with these."""
    makers = {name: node for node in nodes for name in node.output}
    maps = {name for node in nodes if node.op_type == "Conv" for name in (node.input[0], node.output[0])}
    parts = [node for node in nodes if node.op_type in _PARTS and not maps.isdisjoint((*node.input, *node.output))]
    products = [node for node in nodes if node.op_type == "Mul" and _gates(node, makers)]
    gated = {product.output[0] for product in products}
    sums = [node for node in nodes if node.op_type == "Add" and not gated.isdisjoint(node.input)]
    return {node.name for node in (*parts, *products, *sums)}


def _gates(product: Any, makers: Mapping[str, Any]) -> bool:
    """Whether a factor is a gate, that is a sigmoid of something else than the other factor, which would be SiLU."""
    for factor, other in zip(product.input, reversed(product.input), strict=True):
        maker = makers.get(factor)
        while maker is not None and maker.op_type in _SHAPES:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type in _GATES and maker.input[0] != other:
            return True
    return False
