"""Export a detector to ONNX or OpenVINO: folded, for one size of canvas or any, with box selection (NMS) inside.

torch's exporter by tracing (``dynamo=False``) writes the graph: torchvision's detection models are made for it, while
the newer one stops at sizes that depend on what is detected (pytorch/vision issues 9306 and 9321).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_tensor
from tqdm import tqdm

from partialnet.data.labelled_images import spread
from partialnet.deploy.exported_files import (
    FORMS,
    prepare_output,
    put_in_place,
    save_onnx,
    save_openvino,
    size_mb,
    workspace_for,
    write_report,
)
from partialnet.deploy.others_messages import quiet, refusing
from partialnet.deploy.verify import sample_photos
from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.images import read_image

from .checkpoint import DetectorCheckpoint
from .exported import INPUTS, Canvas, CanvasGraph, load_exported_detector
from .masks import paste_windows
from .model import Detector
from .resizing import padded_size

FORMATS = ("onnx", "openvino")
#: Images to compare on at most, and how many cut-outs of sample photographs stand in where none are given.
MAX_IMAGES, SAMPLE_IMAGES = 16, 4
#: Two detections of one category are the same from this IoU of their boxes on.
SAME_IOU = 0.5
#: With a smaller share of detections found again, the command warns.
LEAST_MATCHED = 0.99
_OPSET = 18
_DIVISIBLE = 32


@dataclass(frozen=True)
class Parity:
    """How far two detectors' answers to the same images are apart.

    Attributes:
        num_images: Images compared.
        original: Detections of the first.
        exported: Detections of the second.
        matched: Pairs of one from each with the same category and boxes of an IoU of at least ``SAME_IOU``.
        max_box_error: Largest difference of a box's side in matched pairs, in pixels of the image; None without pairs.
        max_score_error: Largest difference of scores in matched pairs.
        min_mask_iou: Smallest IoU of the masks, cut at 0.5, in matched pairs; of two empty masks 1; None without masks.
        max_unmatched_score: Highest score of a detection without partner; None if all have one.
    """

    num_images: int
    original: int
    exported: int
    matched: int
    max_box_error: float | None
    max_score_error: float | None
    min_mask_iou: float | None
    max_unmatched_score: float | None

    @property
    def share(self) -> float:
        """Share, in [0, 1], of all detections of both that have a partner; 1 where there are none."""
        total = self.original + self.exported
        return 2 * self.matched / total if total else 1.0


@dataclass(frozen=True)
class DetectorExport:
    """What was written and how it compares with the detector in PyTorch.

    Attributes:
        path: The exported file.
        format: "onnx" or "openvino".
        canvas: Height and width that it takes, in pixels; None for any, in multiples of 32.
        size_mb: Size of all its files in megabytes (10⁶ bytes).
        params_m: Parameters of the folded detector in millions.
        same_canvas: Comparison with the unfolded detector in PyTorch on the same canvas.
        own_sizes: Comparison with the detector in PyTorch as it is used otherwise, which fills images up to multiples
            of 32 only: what the fixed size costs.
    """

    path: Path
    format: str
    canvas: tuple[int, int] | None
    size_mb: float
    params_m: float
    same_canvas: Parity
    own_sizes: Parity

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without folders."""
        return {**asdict(self), "path": self.path.name}


def default_canvas(img_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width for landscape images of a detector's sides, (shorter, longer), in multiples of 32."""
    return padded_size(img_size, _DIVISIBLE)


def export_detector(
    checkpoint: DetectorCheckpoint,
    output: Path,
    format: str = "onnx",
    canvas: tuple[int, int] | None = None,
    images: Sequence[Path] = (),
    progress: bool = False,
    any_size: bool = False,
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
        canvas: Height and width in pixels, multiples of 32; None takes the detector's sides, for landscape images.
        images: Image files to compare on; at most 16, spread over all, are used. Without any, cut-outs of two
            photographs serve.
        progress: Show a bar while comparing.
        any_size: Take canvases of any size, in multiples of 32, as PyTorch does, instead of one.

    Raises:
        UserError: The combination is not offered, a package is missing, an image cannot be read, or the runtime cannot
            hold the network.
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
    chosen = [images[number] for number in spread(np.arange(len(images)), MAX_IMAGES).tolist()]
    for _ in _photos(chosen):
        pass  # one that cannot be read is told before the work
    prepare_output(output, format)
    # tracing and the comparison give it images on the CPU
    checkpoint = replace(checkpoint, model=copy.deepcopy(checkpoint.model).to("cpu").eval())
    with workspace_for(output) as workspace:
        finished = Path(workspace) / output.name
        named = f"The detector with {checkpoint.backbone}"
        with refusing(f"{named} cannot be folded"):
            folded = checkpoint.fold_for(canvas, FORMS[format])
        heads, transform = cast(Any, folded).roi_heads, cast(Any, checkpoint.model).transform
        config = {
            **checkpoint.config(),
            "canvas": None if canvas is None else list(canvas),
            "size_divisible": transform.size_divisible,
            "inference_precision": "f32",
        }
        config["settings"] = {**config["settings"], "score_thresh": heads.score_thresh}
        with refusing(f"{named} cannot be exported to {format}"):
            _write(CanvasGraph(folded), traced, any_size, finished, format, config)
            exported = cast(Canvas, load_exported_detector(finished).model)
            # the runtime may have loaded what it cannot run
            exported.run(torch.zeros(1, 3, *traced), torch.tensor(traced))
        same_canvas, own_sizes = _verify(checkpoint, exported, canvas, chosen, progress)
        size = size_mb(finished)
        put_in_place(finished, output)
    params_m = sum(parameter.numel() for parameter in folded.parameters()) / 1e6
    result = DetectorExport(output, format, canvas, size, params_m, same_canvas, own_sizes)
    write_report(output, result.as_dict())
    return result


def _photos(paths: Sequence[Path]) -> Iterator[Tensor]:
    """Images, (3, H, W) in [0, 1] each, one after the other."""
    if not paths:
        yield from map(to_tensor, sample_photos(SAMPLE_IMAGES))
    for path in paths:
        yield to_tensor(read_image(path))


def _write(
    graph: CanvasGraph, canvas: tuple[int, int], any_size: bool, path: Path, format: str, config: dict[str, Any]
) -> None:
    import onnx

    onnx_path = path.with_suffix(".onnx")
    write_detector_onnx(graph, canvas, any_size, onnx_path)
    if format == "onnx":
        save_onnx(onnx.load(onnx_path), path, config)
    else:
        save_openvino(require("openvino", "openvino").convert_model(onnx_path), path, config)


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


def _verify(
    checkpoint: DetectorCheckpoint,
    exported: Canvas,
    canvas: tuple[int, int] | None,
    photos: Sequence[Path],
    progress: bool,
) -> tuple[Parity, Parity]:
    transform: Any = checkpoint.model.transform
    on_canvas = Canvas(CanvasGraph(checkpoint.model), canvas, transform)
    # masks stay in their boxes: those of sixteen of a camera's photographs in full would take hundreds of gigabytes
    answers: tuple[list[dict[str, Tensor]], ...] = ([], [], [])
    sizes: list[tuple[int, int]] = []
    total, hidden = len(photos) or SAMPLE_IMAGES, None if progress else True
    for photo in tqdm(_photos(photos), desc="comparing", total=total, unit="image", delay=2, disable=hidden):
        sizes.append((int(photo.shape[-2]), int(photo.shape[-1])))
        with torch.inference_mode():
            for given, model in zip(answers, (exported, on_canvas, checkpoint.model), strict=True):
                given += cast(Detector | Canvas, model).find([photo])
    for found in answers[0]:
        if not all(bool(values.isfinite().all()) for values in found.values()):
            raise UserError("The exported detector answers NaN or infinity; nothing was written.")
    return compare_detections(answers[1], answers[0], sizes), compare_detections(answers[2], answers[0], sizes)


def compare_detections(
    original: Sequence[dict[str, Tensor]], exported: Sequence[dict[str, Tensor]], sizes: Sequence[tuple[int, int]]
) -> Parity:
    """Pair the detections of two detectors, best scores first, and measure how far the pairs are apart.

    Args:
        original: For each image what ``Detector.find`` answers.
        exported: The same of the other detector.
        sizes: Height and width of each image.
    """
    box_errors: list[float] = []
    score_errors: list[float] = []
    mask_ious: list[float] = []
    unmatched: list[float] = []
    for first, second, size in zip(original, exported, sizes, strict=True):
        pairs = _pairs(first, second)
        for i, j in pairs:
            box_errors.append(float((first["boxes"][i] - second["boxes"][j]).abs().max()))
            score_errors.append(abs(float(first["scores"][i] - second["scores"][j])))
            if "box_masks" in first:
                one, other = (
                    next(paste_windows(found["box_masks"][k, None], found["boxes"][k, None], size))
                    for found, k in ((first, i), (second, j))
                )
                mask_ious.append(one.iou(other))
        for found, place in ((first, 0), (second, 1)):
            partners = {pair[place] for pair in pairs}
            unmatched += [float(score) for k, score in enumerate(found["scores"]) if k not in partners]
    return Parity(
        len(original),
        sum(len(found["scores"]) for found in original),
        sum(len(found["scores"]) for found in exported),
        len(box_errors),
        max(box_errors, default=None),
        max(score_errors, default=None),
        min(mask_ious, default=None),
        max(unmatched, default=None),
    )


def _pairs(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[tuple[int, int]]:
    iou = box_iou(first["boxes"], second["boxes"])
    iou[first["labels"][:, None] != second["labels"][None]] = 0
    pairs = []
    for i in first["scores"].argsort(descending=True).tolist():
        if iou.shape[1] and float(iou[i].max()) >= SAME_IOU:
            j = int(iou[i].argmax())
            pairs.append((i, j))
            iou[:, j] = 0
    return pairs
