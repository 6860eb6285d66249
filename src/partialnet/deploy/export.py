"""Export a network for other runtimes: folded, verified, with its classes and preprocessing inside."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from partialnet.checkpoint import Checkpoint
from partialnet.errors import UserError
from partialnet.files import write_atomically
from partialnet.fold import fold
from partialnet.images import read_images
from partialnet.prediction import Classifier

from .quantize import quantize_onnx, quantize_openvino
from .runtimes import CONFIG_KEY, load_exported, require
from .verify import Agreement, compare, image_batches, random_batches, sample_photos

Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: dict[str, tuple[str, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
#: Share of images on which an int8 network must name the float network's class, or the float file is kept too.
LEAST_AGREEMENT = 0.98
CALIBRATION_IMAGES = 300
#: The first opset with an operator for GELU, which onnxruntime runs twice as fast as its five parts.
_OPSET = 20


@dataclass(frozen=True)
class Export:
    """What was written and how it compares with the network in PyTorch.

    Attributes:
        path: The exported file.
        format: Its runtime.
        precision: Its number format.
        input_size: (C, H, W).
        size_mb: Size of all its files in megabytes (10⁶ bytes).
        params_m: Parameters of the folded network in millions.
        agreement: Comparison with PyTorch, by kind of image.
        operators: Number of operators of each kind in the float ONNX graph.
        kept: A float export that was kept because int8 agrees too rarely.
    """

    path: Path
    format: str
    precision: str
    input_size: tuple[int, int, int]
    size_mb: float
    params_m: float
    agreement: dict[str, Agreement]
    operators: dict[str, int] = field(default_factory=dict)
    kept: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without folders."""
        return {**asdict(self), "path": self.path.name, "kept": self.kept.name if self.kept else None}


def export(
    checkpoint: Checkpoint,
    output: Path,
    format: str = "onnx",
    precision: str = "fp32",
    img_size: int | None = None,
    dynamic_batch: bool = False,
    calibration: Sequence[Path] = (),
) -> Export:
    """Fold a classifier, write it for another runtime, and compare what was written with the original.

    The comparison is stored beside the file, as ``<file>.json``. Files appear whole or not at all.

    Args:
        checkpoint: The network, its classes and preprocessing.
        output: File to write: ``.onnx``, or ``.xml`` with a ``.bin`` beside it.
        format: "onnx" or "openvino".
        precision: "fp32", "fp16", "bf16" (OpenVINO) or "int8", which needs ``calibration``.
        img_size: Height and width in pixels; None keeps the network's own.
        dynamic_batch: Accept any number of images at a time; otherwise one.
        calibration: Image files to calibrate int8 with, and to compare on.

    Raises:
        UserError: The combination is not offered, a package is missing, or the network is no classifier.
    """
    if precision not in PRECISIONS[format]:
        raise UserError(f"{format} is exported in {', '.join(PRECISIONS[format])}, not in {precision}.")
    if output.suffix != SUFFIXES[format]:
        raise UserError(f"{str(output)!r} should end in {SUFFIXES[format]} for {format}.")
    if precision == "int8" and not calibration:
        raise UserError("int8 needs images like those to come: give a folder of at least 100 with --calibration.")
    if format == "openvino":
        require("openvino", "openvino")
    checkpoint = _resized(checkpoint, img_size)
    classifier = Classifier(checkpoint)
    photos = _read(calibration) if calibration else sample_photos()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as workspace:
        draft = Path(workspace) / "float.onnx"
        height, width = checkpoint.input_config["input_size"][1:]
        folded = fold(checkpoint.model, (height, width), runtime="openvino" if format == "openvino" else "onnxruntime")
        # a dynamic batch is traced with two images, because PyTorch specialises on a size of one
        shape = (2 if dynamic_batch else 1, *checkpoint.input_config["input_size"])
        write_onnx(folded, shape, draft, dynamic_batch)
        graph = _Graph(draft, checkpoint, classifier, photos, folded)
        result = graph.write(output, format, precision)
        if precision == "int8" and result.agreement["photographs"].top1 < LEAST_AGREEMENT:
            kept = output.with_stem(f"{output.stem}_fp32")
            graph.write(kept, format, "fp32")
            result = replace(result, kept=kept)
    write_atomically(_report_path(output), (json.dumps(result.as_dict(), indent=1) + "\n").encode())
    return result


@dataclass
class _Graph:
    """A float ONNX graph on its way to its files."""

    draft: Path
    checkpoint: Checkpoint
    classifier: Classifier
    photos: list[Image.Image]
    folded: nn.Module

    def write(self, output: Path, format: str, precision: str) -> Export:
        """Convert, store the configuration, put the files in place, compare and describe."""
        finished = self.draft.with_name(output.name)
        config = self.checkpoint.config()
        (self._finish_onnx if format == "onnx" else self._finish_openvino)(finished, precision, config)
        files = [file for file in (finished.with_suffix(".bin"), finished) if file.exists()]
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        exported = Classifier(load_exported(finished))
        agreement = {
            "noise": compare(self.classifier, exported, random_batches(self.checkpoint.input_config["input_size"])),
            "photographs": compare(self.classifier, exported, image_batches(self.classifier, self.photos)),
        }
        for file in files:
            file.replace(output.with_suffix(file.suffix))
        import onnx

        return Export(
            output,
            format,
            precision,
            tuple(self.checkpoint.input_config["input_size"]),
            size_mb,
            sum(parameter.numel() for parameter in self.folded.parameters()) / 1e6,
            agreement,
            dict(Counter(node.op_type for node in onnx.load(self.draft).graph.node)),
        )

    def _calibration_batches(self) -> list[np.ndarray]:
        photos = self.photos[:CALIBRATION_IMAGES]
        return [batch.numpy() for batch in image_batches(self.classifier, photos, batch_size=1)]

    def _finish_onnx(self, path: Path, precision: str, config: dict[str, Any]) -> None:
        import onnx

        if precision == "int8":
            with quiet():
                quantize_onnx(self.draft, path, self._calibration_batches())
            model = onnx.load(path)
        elif precision == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = convert_float_to_float16(onnx.load(self.draft), keep_io_types=True)
        else:
            model = onnx.load(self.draft)
        onnx.helper.set_model_props(model, {CONFIG_KEY: json.dumps(config)})
        onnx.save(model, path)

    def _finish_openvino(self, path: Path, precision: str, config: dict[str, Any]) -> None:
        openvino = require("openvino", "openvino")
        model = openvino.convert_model(self.draft)
        if precision == "int8":
            with quiet():
                model = quantize_openvino(model, self._calibration_batches())
        config["inference_precision"] = "bf16" if precision == "bf16" else "f32"
        model.set_rt_info(json.dumps(config), [CONFIG_KEY])
        openvino.save_model(model, path, compress_to_fp16=precision in ("fp16", "bf16"))


def _resized(checkpoint: Checkpoint, img_size: int | None) -> Checkpoint:
    if img_size is None:
        return checkpoint
    channels = checkpoint.input_config["input_size"][0]
    return replace(checkpoint, input_config={**checkpoint.input_config, "input_size": [channels, img_size, img_size]})


def _read(paths: Sequence[Path]) -> list[Image.Image]:
    # spread over the folder, whose files are sorted by class
    step = max(1, len(paths) // CALIBRATION_IMAGES)
    images = [image for _, image in read_images(paths[::step][:CALIBRATION_IMAGES]) if isinstance(image, Image.Image)]
    if not images:
        raise UserError("None of the calibration images can be read.")
    return images


def _report_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def write_onnx(model: nn.Module, shape: Sequence[int], path: Path, dynamic_batch: bool = False) -> None:
    """Write a float graph whose input is called ``images`` and whose output ``logits``.

    Args:
        model: Network in evaluation mode, folded.
        shape: Shape of its input, (B, C, H, W).
        path: File to write.
        dynamic_batch: Leave the number of images open.
    """
    parameter = next(model.parameters())
    example = torch.zeros(*shape, dtype=parameter.dtype)
    shapes = {0: torch.export.Dim("batch", min=1, max=65535)} if dynamic_batch else None
    with torch.no_grad(), quiet():
        torch.onnx.export(
            model.eval(),
            (example,),
            path,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(shapes,) if dynamic_batch else None,
            external_data=False,
            verbose=False,
        )
    _strip(path)


def _strip(path: Path) -> None:
    """Remove the exporter's stack traces and shape notes of every node, a twelfth of the file of a small network."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    del model.functions[:]
    onnx.save(model, path)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' notes for their developers off a user's screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
