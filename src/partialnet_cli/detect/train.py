"""``partialnet detect train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from partialnet.detection.config import DetectionConfig

from ..next_command import next_command
from ..results import tell_written
from ..run_messages import announce_run, print_settings
from ..settings import GroupedCommand, configure, given_settings, run_folder, run_options, setting_options


@click.command(cls=GroupedCommand)
@click.argument("data", required=False)
@run_options(DetectionConfig, "small", "runs/DATA-MODEL-detector")
@setting_options(DetectionConfig)
@click.pass_context
def train(
    ctx: click.Context,
    /,
    data: str | None,
    recipe: str | None,
    config_file: str | None,
    output: Path | None,
    resume: bool,
    print_config: bool,
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
    config, name = configure(DetectionConfig, recipe, "small", config_file, given_settings(ctx, options), output)
    if print_config:
        print_settings(config, name, "detect train")
        return
    if data is None:
        raise click.UsageError(
            "Missing argument 'DATA': a folder in the COCO, YOLO or Pascal VOC format, or IMAGES,JSON.", ctx
        )
    folder = run_folder(output, data, f"{config.model}-detector")

    from partialnet.detection.evaluator import table
    from partialnet.detection.run import train_detector

    announce_run(config, name, folder)
    result = train_detector(config, data, folder, resume)
    click.echo(f"\n{table(result.evaluation)}")
    tell_written(
        result.files,
        next_command("detect", "predict", folder, "IMAGES"),
        next_command("detect", "eval", folder, config.validation or data),
        next_command("detect", "export", folder),
    )
