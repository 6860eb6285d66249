"""``partialnet detect train``."""

from __future__ import annotations

from typing import Any

import click

from partialnet.detection.config import DetectionConfig

from ..next_command import next_command
from ..results import tell_written
from ..runs import RunOptions, run_options
from ..settings import GroupedCommand, given_settings, setting_options


@click.command(cls=GroupedCommand)
@run_options(DetectionConfig, "a folder in the COCO, YOLO or Pascal VOC format, or IMAGES,JSON", "-detector")
@setting_options(DetectionConfig)
@click.pass_context
def train(
    ctx: click.Context,
    /,
    run_options: RunOptions[DetectionConfig],
    **options: Any,
) -> None:
    """Train Mask R-CNN on DATA, or Faster R-CNN where it has boxes only, with any timm network as its backbone.

    DATA is a folder in the COCO format: images, and JSON files of their objects (annotations/instances_train*.json and
    instances_val*.json, or train/_annotations.coco.json and valid/…); or IMAGES,JSON, a folder and a file. It may also
    be a YOLO folder or its data.yaml, or a folder of Pascal VOC's or LabelImg's XML files.

    A recipe gives the settings, a file overrides some of them, and options override both. The recipe coco_1x is the
    paper's.

    The run folder gets the weights, the settings, the metrics as CSV and for TensorBoard, and pictures: curves,
    precision over recall, ground truth beside detections, the first batch as the network sees it.

    \b
    Examples: partialnet detect train coco/ --recipe coco_1x --model partialnet_s --weights runs/net
              partialnet detect train photos/,boxes.json -o runs/boxes
    """
    run = run_options.prepare(given_settings(ctx, options))

    from partialnet.detection.evaluator import table
    from partialnet.detection.run import train_detector

    result = train_detector(run.config, run.data, run.folder, run.resume)
    click.echo(f"\n{table(result.evaluation)}")
    tell_written(
        result.files,
        next_command("detect", "predict", run.folder, "IMAGES"),
        next_command("detect", "eval", run.folder, run.config.validation or run.data),
        next_command("detect", "export", run.folder),
    )
