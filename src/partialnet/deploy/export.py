"""Export a network for other runtimes: folded, verified, with its classes and preprocessing inside."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import torch
from torch import nn

from partialnet.checkpoint import Checkpoint, load
from partialnet.data import LabelledImages, Subset
from partialnet.errors import UserError
from partialnet.evaluation import Evaluation, evaluate
from partialnet.extras import require
from partialnet.images import UnreadableImage
from partialnet.prediction import Classifier

from .exported_files import (
    FORMS,
    files_of,
    prepare_output,
    put_in_place,
    save_onnx,
    save_openvino,
    size_mb,
    workspace_for,
    write_report,
)
from .library_messages import quiet, refusing
from .litert import convert_litert, with_entry, with_half_weights
from .photos import Photos, collect_photos
from .precision import INFERENCE_PRECISIONS, TORCH_DTYPES, convert_onnx, convert_openvino
from .runtimes import CONFIG_KEY, load_exported
from .verify import Accuracy, Agreement, compare_accuracy, compare_logits, image_batches, random_batches

PRECISIONS: dict[str, tuple[str, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "litert": ("fp32", "fp16"),
    "torch": ("fp32", "fp16", "bf16"),
}
#: Share of images on which an export must name PyTorch's class, or one in fp32 is written too.
LEAST_AGREEMENT = 0.98
#: Error of logits, as a share of how these differ from photograph to photograph, from which on one in fp32 is written,
#: too. The class alone would not tell: a single one is always right, and so is one that nearly all images get. int8 of
#: networks that have learnt stays below 0.4, even of hardly trained ones; the same logits for every image are 1 off.
MOST_ERROR = 0.75
#: Error of a logit, as a share of the largest, that an export in fp32 shows only if it computes something else. The
#: class alone would not tell: an untrained network gives most images the same, and one class is always right.
MOST_ERROR_FP32 = 0.01
#: The first opset with an operator for GELU, which onnxruntime runs twice as fast as its five parts.
_OPSET = 20


@dataclass(frozen=True, kw_only=True)
class WrittenExport(ABC):
    """What was written of a network of any task, in one precision.

    Attributes:
        path: The exported file.
        format: Its runtime.
        precision: Its number format.
        size_mb: Size of all its files in megabytes (10⁶ bytes).
        held_out: Whether no photograph of the comparison was used for calibration.
        unreadable: Images that calibration and comparisons had to do without.
        kept: An export in fp32 that was written too, because this one is not reliable.
    """

    path: Path
    format: str
    precision: str
    size_mb: float
    held_out: bool
    unreadable: tuple[UnreadableImage, ...]
    kept: Path | None = None

    @property
    @abstractmethod
    def reliable(self) -> bool:
        """Whether it answers enough like PyTorch for another precision than fp32."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without folders."""
        return {**asdict(self), "path": self.path.name, "kept": self.kept.name if self.kept else None}


@dataclass(frozen=True, kw_only=True)
class Export(WrittenExport):
    """A classifier that was written, and how it compares with the network in PyTorch.

    Attributes:
        input_size: (C, H, W).
        folded_params_m: Parameters of the folded network in millions.
        agreement: Comparison with PyTorch, by kind of image.
        accuracy: Comparison on labelled images; None where there are none.
        operators: Number of operators of each kind in the float ONNX graph; none for formats made without it.
    """

    input_size: tuple[int, int, int]
    folded_params_m: float
    agreement: dict[str, Agreement]
    accuracy: Accuracy | None = None
    operators: dict[str, int] = field(default_factory=dict)

    @property
    def same_class(self) -> float:
        """Share of photographs, in [0, 1], with the class that PyTorch gives: of the labelled ones if there are any."""
        return self.accuracy.agreement if self.accuracy is not None else self.agreement["photographs"].top1

    @property
    def reliable(self) -> bool:
        """Whether classes and logits are close enough to PyTorch's for another precision than fp32."""
        return agrees_enough(self.same_class) and self.error_to_spread < MOST_ERROR

    @property
    def error_to_spread(self) -> float:
        """Errors of the logits as a share of how these differ from photograph to photograph; 0 where they do not."""
        return self.agreement["photographs"].error_to_spread or 0.0

    @property
    def relative_error(self) -> float:
        """Largest error of a logit as a share of PyTorch's largest logit, of all kinds of images."""
        return max(found.max_error / max(found.max_logit, 1e-9) for found in self.agreement.values())


def export(
    checkpoint: Checkpoint,
    output: Path,
    format: str = "onnx",
    precision: str = "fp32",
    img_size: int | None = None,
    dynamic_batch: bool = False,
    calibration: Sequence[Path] = (),
    labelled: LabelledImages | None = None,
    progress: bool = False,
) -> Export:
    """Fold a classifier, write it for another runtime, and compare what was written with the original.

    The comparison is stored beside the file, as ``<file>.json``. Files appear whole or not at all.

    Args:
        checkpoint: The network, its classes and preprocessing.
        output: File to write: ``.onnx``, ``.xml`` with a ``.bin`` beside it, ``.tflite`` or ``.safetensors``.
        format: "onnx", "openvino", "litert" or "torch", a folded checkpoint.
        precision: "fp32", "fp16", "bf16" (OpenVINO, torch) or "int8" (ONNX, OpenVINO), which needs images.
        img_size: Height and width in pixels; None keeps the network's own.
        dynamic_batch: Accept any number of images at a time; otherwise one. The torch format always accepts any, LiteRT
            one.
        calibration: Image files to calibrate int8 with, and to compare on.
        labelled: Images in place of ``calibration`` whose classes the network has; the accuracy is compared too. From
            100 images on, int8 is compared on others than it is calibrated with.
        progress: Show a bar while the accuracy is measured.

    Raises:
        UserError: The combination is not offered, a package is missing, none of the images can be read, the network is
            no classifier or none that the format can hold, or it or the exported one answers NaN.
    """
    check_export(output, format, precision, bool(calibration) or labelled is not None, dynamic_batch)
    fixed_size = img_size is not None or format != "torch"
    checkpoint = checkpoint.resized(img_size)
    classifier = Classifier(checkpoint)
    photos = collect_photos(calibration, labelled, calibrated=precision == "int8")
    test = None if labelled is None else Subset(labelled, photos.test)
    with workspace_for(output) as workspace:
        height, width = checkpoint.input_config["input_size"][1:]
        with refusing(f"{checkpoint.architecture} cannot be folded"):
            folded = checkpoint.fold((height, width) if fixed_size else None, FORMS.get(format))
        draft = _Draft(Path(workspace), checkpoint, classifier, folded, photos, test, dynamic_batch, progress)
        return write_with_float(
            lambda path, chosen: draft.write(path, format, chosen), draft.workspace, output, precision
        )


_Written = TypeVar("_Written", bound=WrittenExport)


def write_with_float(write: Callable[[Path, str], _Written], workspace: Path, output: Path, precision: str) -> _Written:
    """Write an export and its report, and if it is not reliable, another one in fp32: all or nothing.

    Args:
        write: Writes what is to become a file into the workspace, under its name and in a precision.
        workspace: From where finished files are moved.
        output: File to write.
        precision: Its precision.
    """
    exports = [write(output, precision)]
    if precision != "fp32" and not exports[0].reliable:
        exports.append(write(_free_name(output.with_stem(f"{output.stem}_fp32")), "fp32"))
        exports[0] = replace(exports[0], kept=exports[1].path)
    for one in exports:
        write_report(workspace / one.path.name, one.as_dict())
    for one in exports:
        put_in_place(workspace / one.path.name, one.path)
    return exports[0]


def agrees_enough(share: float) -> bool:
    """Whether a share of answers, in [0, 1], that are PyTorch's is enough for another precision than fp32."""
    return share >= LEAST_AGREEMENT


def _free_name(path: Path) -> Path:
    """The path, numbered if something is where its files would be, which the user did not name."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(
        candidate for candidate in itertools.chain([path], numbered) if not any(map(Path.exists, files_of(candidate)))
    )


def check_export(output: Path, format: str, precision: str, calibrated: bool, dynamic_batch: bool = False) -> None:
    """Refuse what cannot become an export, before any work; make the folder of ``output``.

    Args:
        output: File to write.
        format: See ``export``.
        precision: See ``export``.
        calibrated: Whether there are images for int8.
        dynamic_batch: See ``export``.

    Raises:
        UserError: The combination is not offered, a package is missing, or the file cannot be written.
    """
    if precision not in PRECISIONS[format]:
        raise UserError(f"{format} is exported in {', '.join(PRECISIONS[format])}, not in {precision}.")
    if precision == "int8" and not calibrated:
        raise UserError(
            "int8 needs images like those that the network will see: give a folder of at least 100 with --calibration."
        )
    if format == "litert" and dynamic_batch:
        raise UserError("A litert file takes a fixed number of images; export it without a dynamic batch.")
    if format == "openvino" and precision == "int8":
        require("nncf", "quantize")
    prepare_output(output, format)


@dataclass
class _Draft:
    """A folded network on its way to its files."""

    workspace: Path
    checkpoint: Checkpoint
    classifier: Classifier
    folded: Checkpoint
    photos: Photos
    test: LabelledImages | None
    dynamic_batch: bool
    progress: bool

    def write(self, output: Path, format: str, precision: str) -> Export:
        """Convert, store the configuration, compare and describe."""
        finished = self.workspace / output.name
        with refusing(f"{self.checkpoint.architecture} cannot be exported to {format} in {precision}"):
            if format == "torch":
                finished.write_bytes(self.folded.serialize(TORCH_DTYPES[precision]))
                exported = Classifier(load(finished))
            else:
                self._finish(finished, format, precision)
                exported = Classifier(load_exported(finished))
            # the runtime may have loaded what it cannot run
            noise = compare_logits(
                self.classifier, exported, random_batches(self.checkpoint.input_config["input_size"])
            )
        comparison = self.photos.images(self.photos.comparison)
        photographs = compare_logits(self.classifier, exported, image_batches(self.classifier, comparison))
        agreement = {"noise": noise, "photographs": photographs}
        accuracy, unreadable = None, self.photos.all_unreadable()
        if self.test is not None:
            original, evaluation = self.original_evaluation, evaluate(exported, self.test, progress=self.progress)
            accuracy = compare_accuracy(original, evaluation, self.photos.held_out)
            unreadable = self.photos.all_unreadable(evaluation.unreadable.values())
        return Export(
            path=output,
            format=format,
            precision=precision,
            size_mb=size_mb(finished),
            held_out=self.photos.held_out,
            unreadable=unreadable,
            input_size=tuple(self.checkpoint.input_config["input_size"]),
            folded_params_m=sum(parameter.numel() for parameter in self.folded.model.parameters()) / 1e6,
            agreement=agreement,
            accuracy=accuracy,
            operators={} if format in ("torch", "litert") else self._operators(),
        )

    @cached_property
    def original_evaluation(self) -> Evaluation:
        """What the network answers in PyTorch to the labelled images, which are there."""
        assert self.test is not None
        return evaluate(self.classifier, self.test, progress=self.progress)

    @cached_property
    def graph(self) -> Path:
        """The network as a float ONNX file."""
        path = Path(mkdtemp(dir=self.workspace)) / "float.onnx"  # the export may be called so, too
        with refusing(f"{self.checkpoint.architecture} cannot be exported to ONNX"):
            write_onnx(self.folded.model, self._shape, path, self.dynamic_batch)
        return path

    @cached_property
    def litert(self) -> bytes:
        """The network as the content of a float LiteRT file."""
        return convert_litert(self.folded.model, self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        # a dynamic batch is traced with two images, because PyTorch specialises on a size of one
        return (2 if self.dynamic_batch else 1, *self.checkpoint.input_config["input_size"])

    def _operators(self) -> dict[str, int]:
        import onnx

        return dict(Counter(node.op_type for node in onnx.load(self.graph).graph.node))

    def _finish(self, path: Path, format: str, precision: str) -> None:
        config = self.checkpoint.config()
        if format == "litert":
            content = with_half_weights(self.litert) if precision == "fp16" else self.litert
            path.write_bytes(with_entry(content, CONFIG_KEY, config))
            return
        photos = self.photos.images(self.photos.calibration) if precision == "int8" else ()
        batches = [{"images": batch.numpy()} for batch in image_batches(self.classifier, photos, batch_size=1)]
        with quiet():
            model = (convert_onnx if format == "onnx" else convert_openvino)(self.graph, precision, batches)
        if format == "onnx":
            save_onnx(model, path, config)
        else:
            config["inference_precision"] = INFERENCE_PRECISIONS[precision]
            save_openvino(model, path, config, half=precision in ("fp16", "bf16"))


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
