"""``partialnet detect``: object detection and instance segmentation, a file for each subcommand."""

from __future__ import annotations

import click

from ..group import Group, Subcommand


@click.group(cls=Group)
def detect() -> None:
    """Object detection and instance segmentation.

    Mask R-CNN, or Faster R-CNN for boxes only, with a feature pyramid on any backbone: boxes, masks, names and scores
    of the objects in a photograph.
    """


for subcommand in (
    Subcommand("partialnet_cli.detect.bench:bench", "Time detectors in turn, with any backbones."),
    Subcommand("partialnet_cli.detect.eval:evaluate", "Measure a detector: the twelve COCO numbers."),
    Subcommand("partialnet_cli.detect.export:export", "Export a detector, folded, for other runtimes."),
    Subcommand("partialnet_cli.detect.predict:predict", "Find objects in images and draw them."),
    Subcommand("partialnet_cli.detect.train:train", "Train Mask R-CNN or Faster R-CNN on any timm network."),
):
    detect.add_command(subcommand)
