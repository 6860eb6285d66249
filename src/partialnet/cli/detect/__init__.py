"""``partialnet detect``: object detection and instance segmentation, a file for each subcommand."""

from __future__ import annotations

import click

from ..group import Group
from .bench import bench
from .eval import evaluate
from .export import export
from .predict import predict
from .train import train


@click.group(cls=Group)
def detect() -> None:
    """Object detection and instance segmentation.

    Mask R-CNN with a feature pyramid on any backbone: boxes, masks, names and scores of the objects in a photograph.
    """


detect.add_command(bench)
detect.add_command(evaluate)
detect.add_command(export)
detect.add_command(predict)
detect.add_command(train)
