"""``partialnet detect eval``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ..failures import tell_left_out
from ..next_command import next_command
from ..options import IntRange, device_option, output_folder
from ..results import Results, make_folder, result_options


@click.command("eval")
@click.argument("source")
@click.argument("data")
@click.option(
    "--split",
    metavar="NAME",
    help="Part of DATA, such as test; all for data without parts.  [default: val or test, else what the run held out]",
)
@click.option("-b", "--batch-size", type=IntRange(min=1), default=1, help="Images at a time.")
@click.option("-w", "--workers", type=IntRange(min=0), default=2, help="Data-loading workers.")
@device_option
@click.option("--fold/--no-fold", default=True, help="Fold the network first; same detections.")
@output_folder("Folder for the results.  [default: SOURCE/evaluation, or evaluation where SOURCE is a file]")
@result_options(json="the figures of evaluation.json")
def evaluate(
    source: str,
    data: str,
    split: str | None,
    batch_size: int,
    workers: int,
    device: str | None,
    fold: bool,
    output: Path | None,
    results: Results,
) -> None:
    """Measure SOURCE on the objects of DATA: the twelve COCO numbers for boxes and for masks, and each category.

    SOURCE is a detector's run folder, its model.safetensors, or an exported .onnx or .xml file. DATA is a folder in the
    COCO, YOLO or Pascal VOC format, whose validation part is evaluated, or IMAGES,JSON; its categories are matched by
    name. If SOURCE was trained on data without parts, the images that it did not learn from are evaluated.

    The folder gets the figures and the detections as JSON (the latter as COCO's own evaluators read them), precision
    over recall, and ground truth beside detections. Images that cannot be read are reported and do not count.

    Example: partialnet detect eval runs/boxes coco/
    """
    from partialnet.bench.environment import environment
    from partialnet.detection.coco import annotation_files
    from partialnet.detection.data_sources import open_evaluation
    from partialnet.detection.evaluator import table, write_detections
    from partialnet.detection.faults import faults_as_json
    from partialnet.detection.inference import evaluate_detector
    from partialnet.detection.pictures import COMPARISON_NAME, PRECISION_RECALL_NAME, draw_results
    from partialnet.detection.sources import open_detector
    from partialnet.files import check_destinations, write_json
    from partialnet.sources import device_for

    annotations = annotation_files(Path(data)) if Path(data).is_dir() else [data, data.rpartition(",")[2]]
    results.spare(source, *annotations)
    found = device_for(source, device)
    detector = open_detector(source)
    images, which = open_evaluation(data, tuple(detector.categories.values()), split, detector.training)
    click.echo(which, err=True)
    for remark in images.remarks():
        click.echo(remark, err=True)
    if not (detector.has_masks and images.has_outlines):
        lacks_masks = "data has" if detector.has_masks else "detector gives"
        click.echo(f"Only boxes are evaluated, as the {lacks_masks} no masks.", err=True)
    if fold and not detector.folded:
        detector = detector.fold()
    folder = output or (Path(source) / "evaluation" if Path(source).is_dir() else Path("evaluation"))
    make_folder(folder)
    files = [folder / name for name in ("evaluation.json", "detections.json", PRECISION_RECALL_NAME, COMPARISON_NAME)]
    check_destinations(*files)
    result = evaluate_detector(detector, images, found, batch_size, workers, sys.stderr.isatty())
    tell_left_out(result.unreadable)
    content = {
        "network": source,
        "data": data,
        **result.evaluation.as_json(),
        "faults": faults_as_json(images.faults),
        "unreadable": [asdict(one) for one in result.unreadable],
        "environment": environment(),
    }
    write_json(files[0], content)
    write_detections(files[1], result.detections)
    draw_results(folder, images, result.evaluation, result.detections)
    results.written += files
    results.write_json(content)
    results.say(table(result.evaluation))
    results.finish(next_command("detect", "predict", source, "IMAGES"))
