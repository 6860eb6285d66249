"""``partialnet detect export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from partialnet.errors import UserError
from partialnet.images import find_images

from ..next_command import next_command
from ..results import Results, result_options

if TYPE_CHECKING:
    from partialnet.detection.export import Parity


@click.command()
@click.argument("source")
@click.option("-f", "--format", type=click.Choice(["onnx", "openvino"]), default="onnx", help="Runtime.")
@click.option(
    "--canvas",
    nargs=2,
    type=click.IntRange(min=32),
    metavar="HEIGHT WIDTH",
    help="Size that images are laid on, in multiples of 32.  [default: the detector's sides, for landscape images]",
)
@click.option(
    "--any-size",
    is_flag=True,
    help="Take canvases of any size in multiples of 32, so that images keep the sizes that PyTorch gives them.",
)
@click.option(
    "--images",
    type=click.Path(exists=True),
    help="Photographs to compare with PyTorch on; at most 16 are used.  [default: crops of two from scikit-learn]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: SOURCE.onnx or SOURCE.xml here]"
)
@result_options(json="the report")
def export(
    source: str,
    format: str,
    canvas: tuple[int, int] | None,
    any_size: bool,
    images: str | None,
    output: Path | None,
    results: Results,
) -> None:
    """Export SOURCE, a detector, for other runtimes, folded, with box selection (NMS) inside.

    SOURCE is a detector's run folder or its model.safetensors. The file takes one image at a time, on a canvas of a
    fixed size or of any, and carries categories and preprocessing. Before it is put in place it is compared with
    PyTorch; the comparison is printed and stored beside it as JSON.

    Example: partialnet detect export runs/coco --format openvino --images photos/ -o detector.xml
    """
    from partialnet.deploy.exported_files import SUFFIXES, check_files
    from partialnet.detection.checkpoint import load_detector
    from partialnet.detection.export import LEAST_MATCHED, export_detector
    from partialnet.sources import is_exported

    if is_exported(source):
        raise UserError(f"{source!r} is an exported file already; give the run it came from.")
    checkpoint = load_detector(source)
    if output is None:
        name = Path(source).resolve().name if Path(source).is_dir() else Path(source).stem
        output = Path(f"{name}{SUFFIXES[format]}")
    check_files(output, source, results.files["json"])
    photos = find_images([images]) if images else []
    click.echo(f"Exporting {checkpoint.kind} with {checkpoint.backbone} to {format} …", err=True)
    result = export_detector(checkpoint, output, format, canvas, photos, progress=True, any_size=any_size)
    results.written += [f"{result.path} ({result.size_mb:.1f} MB)", f"{result.path}.json"]
    results.write_json(result.as_dict())
    if result.canvas:
        canvas_size = f"{result.canvas[0]}×{result.canvas[1]}"
        results.say(f"  Against PyTorch on the same canvas, {canvas_size}: {_told(result.same_canvas)}")
    results.say(f"  Against PyTorch with sizes of its own choice: {_told(result.own_sizes)}")
    if not result.same_canvas.original + result.same_canvas.exported:
        click.echo(
            "Warning: neither found anything, so the comparison says little; give --images with objects.", err=True
        )
    elif result.same_canvas.share < LEAST_MATCHED:
        click.echo(f"Warning: less than {LEAST_MATCHED:.0%} of the detections are found again.", err=True)
    elif result.own_sizes.share < LEAST_MATCHED:
        click.echo(
            "The canvas costs some of PyTorch's detections; --any-size keeps them, and --canvas takes another.",
            err=True,
        )
    results.finish(next_command("detect", "predict", result.path, "IMAGES"))


def _told(parity: Parity) -> str:
    text = f"{parity.matched} of {parity.original} detections in {parity.num_images} images found again"
    if extra := parity.exported - parity.matched:
        text += f", {extra} others"
    if parity.max_box_error is not None:
        text += (
            f"; largest difference of a box {parity.max_box_error:.2g} pixels, of a score {parity.max_score_error:.2g}"
        )
    if parity.min_mask_iou is not None:
        text += f", smallest IoU of masks {parity.min_mask_iou:.3f}"
    if parity.max_unmatched_score is not None:
        text += f"; highest score without partner {parity.max_unmatched_score:.2f}"
    return text
