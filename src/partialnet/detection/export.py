"""Export a detector to ONNX or OpenVINO: folded, for one size of canvas or any, with box selection (NMS) inside.

torch's exporter by tracing (``dynamo=False``) writes the graph: torchvision's detection models are made for it, while
the newer one fails at sizes that depend on what is detected (pytorch/vision issues 9306 and 9321).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor
from tqdm import tqdm

from partialnet.deploy.export import WrittenExport, agrees_enough, check_export, write_with_float
from partialnet.deploy.exported_files import FORMS, save_onnx, save_openvino, size_mb, workspace_for
from partialnet.deploy.library_messages import quiet, refusing
from partialnet.deploy.photos import Photos, collect_photos
from partialnet.deploy.precision import INFERENCE_PRECISIONS, compute_in_float32, convert_onnx, halve_weights
from partialnet.deploy.quantize import Inputs, quantize_openvino
from partialnet.errors import UserError
from partialnet.extras import require

from .annotations import DetectionImages, DetectionSubset
from .checkpoint import DetectorCheckpoint
from .exported import INPUTS, Canvas, CanvasGraph, load_exported_detector
from .inference import EvaluatedDetector, evaluate_detector
from .resizing import padded_size
from .verify import Accuracy, Parity, compare_accuracy, compare_detections

FORMATS = ("onnx", "openvino")
#: Images to compare on at most, and how many cut-outs of sample photographs stand in where none are given.
MAX_IMAGES, SAMPLE_IMAGES = 16, 4
#: Images that int8 is calibrated with at most: each has thousands of places and a thousand regions to show.
CALIBRATION_IMAGES = 100
#: Labelled images that AP is measured on at most, by each of the two detectors.
TEST_IMAGES = 100
_OPSET = 18
_DIVISIBLE = 32
#: Where the network's layers are in a graph, by how the operators' names begin. The others choose boxes and compute
#: with them: in half precision boxes would be off by whole pixels.
_NETWORK = (
    "/backbone/",
    "/rpn/head/",
    *(f"/roi_heads/{part}/" for part in ("box_head", "box_predictor", "mask_head", "mask_predictor")),
)
#: Layers that int8 leaves in float: what they answer are the boxes, scores and masks.
_LAST_LAYERS = (
    "/rpn/head/cls_logits",
    "/rpn/head/bbox_pred",
    "/roi_heads/box_predictor/",
    "/roi_heads/mask_predictor/",
)


@dataclass(frozen=True, kw_only=True)
class DetectorExport(WrittenExport):
    """A detector that was written, and how it compares with the one in PyTorch.

    Attributes:
        canvas: Height and width that it takes, in pixels; None for any, in multiples of 32.
        params_m: Parameters of the folded detector in millions.
        same_canvas: Comparison with the unfolded detector in PyTorch on the same canvas.
        own_sizes: Comparison with the detector in PyTorch as it is used otherwise, which fills images up to multiples
            of 32 only: what the fixed size costs.
        accuracy: AP beside that of PyTorch with sizes of its own choice; None without labelled images.
    """

    canvas: tuple[int, int] | None
    params_m: float
    same_canvas: Parity
    own_sizes: Parity
    accuracy: Accuracy | None = None

    @property
    def reliable(self) -> bool:
        """Whether enough of the detections that score well are found again for another precision than fp32."""
        return agrees_enough(self.same_canvas.sure_share)


def default_canvas(img_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width for landscape images of a detector's sides, (shorter, longer), in multiples of 32."""
    return padded_size(img_size, _DIVISIBLE)


def export_detector(
    checkpoint: DetectorCheckpoint,
    output: Path,
    format: str = "onnx",
    precision: str = "fp32",
    canvas: tuple[int, int] | None = None,
    images: Sequence[Path] = (),
    progress: bool = False,
    any_size: bool = False,
    labelled: DetectionImages | None = None,
) -> DetectorExport:
    """Fold a detector, write it for another runtime, and compare what was written with the original.

    The graph takes one normalised image on a canvas, ``images``, (1, 3, H, W), and the ``image_size`` of the part of it
    that the image takes, (2,), int64. It gives ``boxes``, (N, 4), xyxy pixels of the canvas, ``labels``, (N,), from 1
    on, ``scores``, (N,), and, if the detector has masks, ``masks``, (N, 28, 28), within the boxes.
    ``load_exported_detector`` does what is around it. The comparison is stored beside the file, as ``<file>.json``.
    Files appear whole or not at all.

    Args:
        checkpoint: The detector, on any device; it stays as it is.
        output: File to write: ``.onnx``, or ``.xml`` with a ``.bin`` beside it.
        format: "onnx" or "openvino".
        precision: "fp32", "fp16", "bf16" (OpenVINO) or "int8", which needs images. Boxes are computed in float32.
        canvas: Height and width in pixels, multiples of 32; None takes the detector's sides, for landscape images.
        images: Image files to compare on, and to calibrate int8 with; at most 16, spread over all, are compared on.
            Without any, cut-outs of two photographs serve. From 100 images on, int8 is compared on others than it is
            calibrated with.
        progress: Show a bar while comparing.
        any_size: Take canvases of any size, in multiples of 32, as PyTorch does, instead of one.
        labelled: Images in place of ``images`` with their objects, by the detector's categories; AP is compared too, on
            at most 100. From 100 images on, that of int8 is of others than it is calibrated with.

    Raises:
        UserError: The combination is not offered, a package is missing, none of the images can be read, or the runtime
            cannot hold the network.
    """
    if format not in FORMATS:
        raise UserError(f"Detectors are exported to {' and '.join(FORMATS)}, not to {format}.")
    if any_size and canvas:
        raise UserError(f"The canvas is to be {canvas[0]}×{canvas[1]} and of any size; choose one of both.")
    traced = canvas or default_canvas(checkpoint.img_size)
    if any(side < _DIVISIBLE or side % _DIVISIBLE for side in traced):
        raise UserError(f"The canvas {traced[0]}×{traced[1]} must have sides that are multiples of {_DIVISIBLE}.")
    canvas = None if any_size else traced
    if checkpoint.folded:
        raise UserError("The detector is folded already; give the run it came from.")
    check_export(output, format, precision, bool(images) or labelled is not None)
    photos = collect_photos(
        images,
        labelled,
        calibrated=precision == "int8",
        most_to_calibrate=CALIBRATION_IMAGES,
        most_to_compare=MAX_IMAGES,
        most_to_test=TEST_IMAGES,
        num_samples=SAMPLE_IMAGES,
    )
    test = None if labelled is None else DetectionSubset(labelled, photos.test)
    if test is not None and not test.num_instances.any():
        test = None  # there is no AP without objects
    # tracing and the comparison give it images on the CPU
    checkpoint = replace(checkpoint, model=copy.deepcopy(checkpoint.model).to("cpu").eval())
    with workspace_for(output) as workspace:
        with refusing(f"The detector with {checkpoint.backbone} cannot be folded"):
            folded = checkpoint.fold_for(canvas, FORMS[format])
        draft = _Draft(Path(workspace), checkpoint, folded, format, canvas, traced, photos, test, progress)
        return write_with_float(draft.write, draft.workspace, output, precision)


@dataclass
class _Draft:
    """A folded detector on its way to its files."""

    workspace: Path
    checkpoint: DetectorCheckpoint
    folded: nn.Module
    format: str
    canvas: tuple[int, int] | None
    traced: tuple[int, int]
    photos: Photos
    test: DetectionImages | None
    progress: bool

    def write(self, output: Path, precision: str) -> DetectorExport:
        """Convert, store the configuration, compare and describe."""
        finished = self.workspace / output.name
        graph = self.graph
        with refusing(f"{self._named} cannot be exported to {self.format} in {precision}"):
            self._finish(graph, finished, precision)
            exported = load_exported_detector(finished)
            network = cast(Canvas, exported.model)
            # the runtime may have loaded what it cannot run
            network.run(torch.zeros(1, 3, *self.traced), torch.tensor(self.traced))
        same_canvas, own_sizes = self._verify(network)
        accuracy, unreadable = None, self.photos.all_unreadable()
        if self.test is not None:
            found = self._evaluate(exported, self.test)
            accuracy = compare_accuracy(self.original_evaluation.evaluation, found.evaluation, self.photos.held_out)
            unreadable = self.photos.all_unreadable(found.unreadable)
        return DetectorExport(
            path=output,
            format=self.format,
            precision=precision,
            size_mb=size_mb(finished),
            held_out=self.photos.held_out,
            unreadable=unreadable,
            canvas=self.canvas,
            params_m=sum(parameter.numel() for parameter in self.folded.parameters()) / 1e6,
            same_canvas=same_canvas,
            own_sizes=own_sizes,
            accuracy=accuracy,
        )

    @cached_property
    def original_evaluation(self) -> EvaluatedDetector:
        """What the detector in PyTorch finds on the labelled images, which are there, with sizes of its own choice."""
        assert self.test is not None
        return self._evaluate(self.checkpoint, self.test)

    def _evaluate(self, detector: DetectorCheckpoint, test: DetectionImages) -> EvaluatedDetector:
        return evaluate_detector(detector, test, workers=0, progress=self.progress)

    @property
    def _named(self) -> str:
        return f"The detector with {self.checkpoint.backbone}"

    @cached_property
    def graph(self) -> Path:
        """The detector as a float ONNX file."""
        path = Path(mkdtemp(dir=self.workspace)) / "float.onnx"  # the export may be called so, too
        with refusing(f"{self._named} cannot be exported to {self.format}"):
            write_detector_onnx(CanvasGraph(self.folded), self.traced, self.canvas is None, path)
        return path

    @cached_property
    def on_canvas(self) -> Canvas:
        """The unfolded detector in PyTorch on the same canvas."""
        transform: Any = self.checkpoint.model.transform
        return Canvas(CanvasGraph(self.checkpoint.model), self.canvas, transform)

    def _finish(self, graph: Path, path: Path, precision: str) -> None:
        heads, transform = cast(Any, self.folded).roi_heads, cast(Any, self.checkpoint.model).transform
        config = {
            **self.checkpoint.config(),
            "canvas": None if self.canvas is None else list(self.canvas),
            "size_divisible": transform.size_divisible,
            "inference_precision": INFERENCE_PRECISIONS[precision],
        }
        config["settings"] = {**config["settings"], "score_thresh": heads.score_thresh}
        calibration = _Canvases(self.photos, self.on_canvas, self.progress)
        with quiet():
            if self.format == "onnx":
                model = convert_onnx(graph, "fp32" if precision == "fp16" else precision, calibration, _left_by_int8)
                if precision == "fp16":
                    halve_weights(model, _is_layer)
                save_onnx(model, path, config)
                return
            # the converter tidies the branches of conditions, which NNCF needs
            model = require("openvino", "openvino").convert_model(graph)
            _keep_empty(model)
            if precision == "int8":
                model = quantize_openvino(model, calibration, _left_by_int8)
            compute_in_float32(model, lambda name: not _is_layer(name))
            save_openvino(model, path, config, half=precision in ("fp16", "bf16"))

    def _verify(self, exported: Canvas) -> tuple[Parity, Parity]:
        # masks stay in their boxes: in full, those of sixteen photographs of a camera take hundreds of gigabytes
        answers: tuple[list[dict[str, Tensor]], ...] = ([], [], [])
        sizes: list[tuple[int, int]] = []
        numbers, hidden = self.photos.comparison, None if self.progress else True
        images = map(to_tensor, self.photos.images(numbers))
        for photo in tqdm(images, desc="comparing", total=len(numbers), unit="image", delay=2, disable=hidden):
            sizes.append((int(photo.shape[-2]), int(photo.shape[-1])))
            with torch.inference_mode():
                for given, model in zip(answers, (exported, self.on_canvas, self.checkpoint.model), strict=True):
                    given += model.find([photo])
        for found in answers[0]:
            if not all(bool(values.isfinite().all()) for values in found.values()):
                raise UserError("The exported detector answers NaN or infinity; nothing was written.")
        return compare_detections(answers[1], answers[0], sizes), compare_detections(answers[2], answers[0], sizes)


def _keep_empty(model: Any) -> None:
    """Let an OpenVINO model find nothing where no box is left to choose from.

    For that case the graph has a branch with an empty constant. The converter makes a single number of it, so that the
    model would give one box of whatever the memory holds.
    """
    constant = require("openvino.op", "openvino").Constant
    for condition in (operator for operator in model.get_ops() if operator.get_type_name() == "If"):
        without_boxes = condition.get_function(0)
        (result,) = without_boxes.get_results()
        result.input(0).replace_source_output(constant(np.zeros(0, np.int64)).output(0))
        without_boxes.validate_nodes_and_infer_types()
    model.validate_nodes_and_infer_types()


def _is_layer(name: str) -> bool:
    """Whether an operator of this name belongs to the network's layers."""
    return name.startswith(_NETWORK)


def _left_by_int8(name: str) -> bool:
    return not _is_layer(name) or name.startswith(_LAST_LAYERS)


@dataclass
class _Canvases:
    """Photographs to calibrate with as the graph takes them, read each time that they are needed."""

    photos: Photos
    canvas: Canvas
    progress: bool

    def __len__(self) -> int:
        return len(self.photos.calibration)

    def __iter__(self) -> Iterator[Inputs]:
        hidden = None if self.progress else True
        images = self.photos.images(self.photos.calibration)
        for photo in tqdm(images, desc="calibrating", total=len(self), unit="image", delay=2, disable=hidden):
            canvas, image_size = self.canvas.place(to_tensor(photo))
            yield dict(zip(INPUTS, (canvas.numpy(), np.array(image_size)), strict=True))


def write_detector_onnx(graph: CanvasGraph, canvas: tuple[int, int], any_size: bool, path: Path) -> None:
    """Write a detector's graph as ONNX: inputs as in ``INPUTS``, ``graph.outputs``, a row for each object."""
    open_axes = {name: {0: "detections"} for name in graph.outputs}
    if any_size:
        open_axes["images"] = {2: "height", 3: "width"}
    with torch.no_grad(), quiet():
        torch.onnx.export(
            graph,
            # noise leads tracing through every branch: a plain image might have no proposals
            (torch.randn(1, 3, *canvas, generator=torch.Generator().manual_seed(0)), torch.tensor(canvas)),
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            input_names=list(INPUTS),
            output_names=list(graph.outputs),
            dynamic_axes=open_axes,
        )
