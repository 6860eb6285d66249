"""``partialnet detect export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from partialnet.errors import UserError
from partialnet.images import find_images

from ..failures import tell_left_out
from ..next_command import next_command
from ..options import IntRange, output_file, precision_option
from ..results import Results, result_options

if TYPE_CHECKING:
    from partialnet.detection.annotations import DetectionImages
    from partialnet.detection.checkpoint import DetectorCheckpoint
    from partialnet.detection.export import DetectorExport
    from partialnet.detection.verify import ComparedAP, Parity


@click.command()
@click.argument("source")
@click.option("-f", "--format", type=click.Choice(["onnx", "openvino"]), default="onnx", help="Runtime.")
@precision_option("OpenVINO")
@click.option(
    "--canvas",
    nargs=2,
    type=IntRange(min=32),
    metavar="HEIGHT WIDTH",
    help="Size that images are laid on, in multiples of 32.  [default: the detector's sides, for landscape images]",
)
@click.option(
    "--any-size",
    is_flag=True,
    help="Take canvases of any size in multiples of 32, so that images keep the sizes that PyTorch gives them.",
)
@click.option(
    "--calibration",
    "--images",
    metavar="DATA",
    help="Folder of photographs like those that it will see: int8 is calibrated on at most 100, and every export "
    "compared on at most 16. On data with objects, as `detect eval` takes it, AP is compared, too.  [default: crops of "
    "two from scikit-learn]",
)
@output_file("File to write.  [default: SOURCE_PRECISION.onnx or .xml]")
@result_options(json="the report")
def export(
    source: str,
    format: str,
    precision: str,
    canvas: tuple[int, int] | None,
    any_size: bool,
    calibration: str | None,
    output: Path | None,
    results: Results,
) -> None:
    """Export SOURCE, a detector, for other runtimes, folded, with box selection (NMS) inside.

    SOURCE is a detector's run folder or its model.safetensors. The file takes one image at a time, on a canvas of a
    fixed size or of any, and carries categories and preprocessing. Whatever the precision, boxes are computed in
    float32. Before the file is put in place it is compared with PyTorch; the comparison is printed and stored beside it
    as JSON.

    \b
    Example: partialnet detect export runs/boxes --format openvino --calibration photos/
    """
    from partialnet.deploy.export import check_export
    from partialnet.deploy.exported_files import check_files, default_output, name_files
    from partialnet.detection.checkpoint import load_detector
    from partialnet.detection.export import export_detector
    from partialnet.sources import is_exported

    if is_exported(source):
        raise UserError(f"{source!r} is an exported file already; give the run it came from.")
    checkpoint = load_detector(source)
    output = output or default_output(source, format, precision)
    check_export(output, format, precision, bool(calibration))
    check_files(output, source, results.files["json"])
    labelled = _labelled(calibration, checkpoint) if calibration else None
    images = find_images([calibration]) if calibration and labelled is None else []
    click.echo(f"Exporting {source} ({checkpoint.kind}) to {format} in {precision} …", err=True)
    result = export_detector(
        checkpoint, output, format, precision, canvas, images, progress=True, any_size=any_size, labelled=labelled
    )
    results.written += [name for path in (result.path, result.kept) if path for name in name_files(path)]
    results.write_json(result.as_dict())
    tell_left_out(result.unreadable)
    if not result.held_out:
        results.say("  The photographs below are those that it was calibrated with: too few to hold some out.")
    if result.canvas:
        canvas_size = f"{result.canvas[0]}×{result.canvas[1]}"
        results.say(f"  Against PyTorch on the same canvas, {canvas_size}: {_parity_text(result.same_canvas)}")
    results.say(f"  Against PyTorch with sizes of its own choice: {_parity_text(result.own_sizes)}")
    if labelled is not None:
        results.say(_accuracy_text(result))
    if (remark := _remark(result)) is not None:
        click.echo(remark, err=True)
    if result.accuracy is not None:
        results.finish(next_command("detect", "eval", result.path, calibration))
    else:
        results.finish(next_command("detect", "predict", result.path, "IMAGES"))


def _labelled(data: str, detector: DetectorCheckpoint) -> DetectionImages | None:
    """The images of detection data with their objects; None for photographs alone, or objects of other categories."""
    from partialnet.detection.data_sources import holds_annotations, open_evaluation
    from partialnet.detection.outlines import mask_functions

    if not holds_annotations(data):
        return None
    try:
        mask_functions()  # a missing evaluator is reported now
        images, which = open_evaluation(data, tuple(detector.categories.values()), training=detector.training)
    except UserError as error:
        if not Path(data).is_dir():
            raise
        click.echo(f"AP is not compared: {error}", err=True)
        return None
    click.echo(which, err=True)
    for remark in images.remarks():
        click.echo(remark, err=True)
    return images


def _remark(result: DetectorExport) -> str | None:
    """What may be wrong with the export, by its comparison."""
    from partialnet.deploy.export import LEAST_AGREEMENT
    from partialnet.detection.verify import LEAST_MATCHED, SURE_SCORE

    same_canvas = result.same_canvas
    if not same_canvas.original + same_canvas.exported:
        return (
            "Warning: neither found anything on the photographs, so the comparison says little; give others with "
            "--calibration."
        )
    if result.kept is not None:
        of_scores = f" that score {SURE_SCORE} or more" if same_canvas.sure else ""
        return (
            f"Warning: {result.precision} agrees with PyTorch on {same_canvas.sure_share:.1%} of the detections"
            f"{of_scores}, less than {LEAST_AGREEMENT:.0%}; {result.kept} was written too."
        )
    if result.precision == "fp32" and same_canvas.share < LEAST_MATCHED:
        return f"Warning: less than {LEAST_MATCHED:.0%} of the detections are found again."
    if same_canvas.share >= LEAST_MATCHED > result.own_sizes.share:
        return "The canvas costs some of PyTorch's detections; --any-size keeps them, and --canvas takes another."
    return None


def _accuracy_text(result: DetectorExport) -> str:
    accuracy = result.accuracy
    if accuracy is None:
        return "  AP is not compared, as the images that are left for it have no object."
    which = ""
    if result.precision == "int8":
        which = " not used for calibration" if accuracy.held_out else " that it was calibrated with"
    kinds: dict[str, ComparedAP | None] = {"boxes": accuracy.boxes, "masks": accuracy.masks}
    compared = "; ".join(
        f"AP of {kind} {ap.exported:.2%}, {ap.difference * 100:+.2f} points against PyTorch's {ap.original:.2%}"
        for kind, ap in kinds.items()
        if ap is not None
    )
    return f"  {accuracy.num_objects} objects in {accuracy.num_images} labelled images{which}: {compared}"


def _parity_text(parity: Parity) -> str:
    from partialnet.detection.verify import SURE_SCORE

    text = f"{parity.matched} of {parity.original} detections in {parity.num_images} images found again"
    if extra := parity.exported - parity.matched:
        text += f", {extra} others"
    if parity.sure:
        text += f"; of those that score {SURE_SCORE} or more {parity.sure_share:.1%}"
    if parity.max_box_error is not None:
        text += (
            f"; largest difference of a box {parity.max_box_error:.2g} pixels, of a score {parity.max_score_error:.2g}"
        )
    if parity.min_mask_iou is not None:
        text += f", smallest IoU of masks {parity.min_mask_iou:.3f}"
    if parity.max_unmatched_score is not None:
        text += f"; highest score without partner {parity.max_unmatched_score:.2f}"
    return text
