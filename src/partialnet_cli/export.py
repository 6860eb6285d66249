"""``partialnet export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from partialnet.checkpoint import Checkpoint, load
from partialnet.data import FolderImages, LabelledImages
from partialnet.data.folders import class_folders
from partialnet.errors import UserError
from partialnet.images import find_images

from .failures import tell_left_out
from .next_command import next_command
from .options import IntRange, output_file, precision_option
from .results import Results, result_options

if TYPE_CHECKING:
    from partialnet.deploy.export import Export


@click.command()
@click.argument("source")
@click.option(
    "-f",
    "--format",
    type=click.Choice(["onnx", "openvino", "litert", "torch"]),
    default="onnx",
    help="Runtime; litert is for phones and small devices, torch a checkpoint for PyTorch.",
)
@precision_option("OpenVINO and torch")
@click.option("--img-size", type=IntRange(min=32), help="Height and width of the images.  [default: the network's own]")
@click.option("--dynamic-batch", is_flag=True, help="Accept any number of images at a time.  [default: one]")
@click.option(
    "--calibration",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of images like those to come; int8 is calibrated and every export compared on them. Folders of "
    "classes inside are labels. Images that cannot be read are left out and reported.",
)
@output_file("File to write.  [default: SOURCE_PRECISION.onnx, .xml, .tflite or .safetensors]")
@result_options(json="the report")
def export(
    source: str,
    format: str,
    precision: str,
    img_size: int | None,
    dynamic_batch: bool,
    calibration: str | None,
    output: Path | None,
    results: Results,
) -> None:
    """Export SOURCE for other runtimes, folded.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, or a model
    name (timm's, torchvision:NAME; then with random weights). The file carries class names and preprocessing, so that
    `partialnet predict` and `partialnet eval` take it like a checkpoint; with --format torch it is a checkpoint. Before
    it is put in place it is compared with PyTorch, also in accuracy if --calibration has labelled images; the
    comparison is printed and stored beside it as JSON.

    Example: partialnet export runs/demo --format openvino -o digits.xml
    """
    from partialnet.deploy.export import LEAST_AGREEMENT, MOST_ERROR_FP32, check_export
    from partialnet.deploy.export import export as run_export
    from partialnet.deploy.exported_files import check_files, default_output, name_files

    output = output or default_output(source, format, precision)
    images = find_images([calibration]) if calibration else []
    checkpoint = load(source)
    check_export(output, format, precision, bool(images), dynamic_batch)
    check_files(output, source, results.files["json"])
    labelled = _labelled(calibration, checkpoint) if calibration and Path(source).exists() else None
    click.echo(f"Exporting {source} to {format} in {precision} …", err=True)
    result = run_export(checkpoint, output, format, precision, img_size, dynamic_batch, images, labelled, progress=True)
    results.written += [name for path in (result.path, result.kept) if path for name in name_files(path)]
    results.write_json(result.as_dict())
    results.say(_as_text(result))
    tell_left_out(result.unreadable)
    for kind, agreement in result.agreement.items():
        if agreement.num_not_finite:
            click.echo(
                f"Warning: PyTorch itself answers NaN or infinity to {agreement.num_not_finite} of "
                f"{agreement.num_images} images ({kind}).",
                err=True,
            )
    instead = "do not rely on it" if result.kept is None else f"{result.kept} was written too"
    if result.same_class < LEAST_AGREEMENT:
        click.echo(
            f"Warning: {precision} agrees with PyTorch's class on {result.same_class:.1%} of the images, less than "
            f"{LEAST_AGREEMENT:.0%}; {instead}.",
            err=True,
        )
    elif result.kept is not None:
        click.echo(
            f"Warning: logits in {precision} are off by {result.error_to_spread:.0%} of what they differ by between "
            f"photographs; {instead}.",
            err=True,
        )
    elif precision == "fp32" and result.relative_error > MOST_ERROR_FP32:
        click.echo(
            f"Warning: logits are off by up to {result.relative_error:.1%} of the largest, so the file computes "
            "something other than PyTorch; do not rely on it.",
            err=True,
        )
    if not Path(source).exists():
        results.say("Its weights are random: it can be timed, but its predictions mean nothing.")
        results.finish()
    elif result.accuracy is not None:
        results.finish(next_command("eval", result.path, calibration))
    else:
        results.finish(next_command("predict", result.path, "IMAGES"))


def _as_text(result: Export) -> str:
    lines = []
    if not result.held_out:
        lines.append("  The photographs below are those that it was calibrated with: too few to hold some out.")
    for kind, agreement in result.agreement.items():
        lines.append(
            f"  {agreement.num_images:4} {kind:12} same class {agreement.top1:.1%}, largest error of a logit "
            f"{agreement.max_error:.2g} (logits up to {agreement.max_logit:.3g})"
        )
    if result.accuracy is not None:
        accuracy = result.accuracy
        which = ""
        if result.precision == "int8":
            which = " not used for calibration" if accuracy.held_out else " that it was calibrated with"
        lines.append(
            f"  {accuracy.num_images:4} labelled images{which}: {accuracy.exported:.2%} right, "
            f"{accuracy.difference * 100:+.2f} points against PyTorch's {accuracy.original:.2%}; same class "
            f"{accuracy.agreement:.1%}"
        )
    return "\n".join(lines)


def _labelled(folder: str, checkpoint: Checkpoint) -> LabelledImages | None:
    """The images of a folder of class folders; None where the folders are no classes of the network."""
    from partialnet.data.evaluation_parts import evaluation_folder
    from partialnet.evaluation import match_classes
    from partialnet.prediction import Classifier

    if not class_folders(Path(folder)):
        return None
    try:
        images = FolderImages(evaluation_folder(folder))
        match_classes(images, Classifier(checkpoint))
    except UserError as error:
        click.echo(f"The accuracy is not compared: {error}", err=True)
        return None
    return images
