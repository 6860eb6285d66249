"""int8 by the runtimes' own quantisers, calibrated on the user's images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .runtimes import require


def quantize_openvino(model: Any, batches: Sequence[np.ndarray]) -> Any:
    """Quantise an OpenVINO model by NNCF; softmax, gates and normalisation stay in float.

    Args:
        model: An ``openvino.Model`` with one input.
        batches: Preprocessed calibration images, each (1, C, H, W) float32.
    """
    nncf = require("nncf", "quantize")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(list(batches)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(
            types=["MVN", "HSigmoid", "HardSigmoid", "ReduceMean", "ReduceL2"], validate=False
        ),
    )


def quantize_onnx(source: Path, target: Path, batches: Sequence[np.ndarray]) -> None:
    """Quantise convolutions and dense layers of an ONNX file in the QDQ format; everything else stays in float.

    Args:
        source: Float model.
        target: File to write.
        batches: Preprocessed calibration images, each (1, C, H, W) float32.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
