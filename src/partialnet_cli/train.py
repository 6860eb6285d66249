"""``partialnet train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from partialnet.data.sources import KINDS_OF_DATA
from partialnet.errors import UserError
from partialnet.search import load_plan
from partialnet.training.config import TrainConfig

from .next_command import next_command
from .results import tell_written
from .runs import RunOptions, run_options
from .settings import GroupedCommand, given_settings, setting_options


@click.command(cls=GroupedCommand)
@run_options(TrainConfig, KINDS_OF_DATA)
@click.option("--plan", metavar="PLAN", help="Network with the split ratios of a search: its plan.json or run folder.")
@setting_options(TrainConfig)
@click.pass_context
def train(
    ctx: click.Context,
    /,
    run_options: RunOptions[TrainConfig],
    plan: str | None,
    **options: Any,
) -> None:
    """Train any timm network on DATA.

    DATA is a folder of photographs with one folder for each class (optionally inside train and val), a table of files
    and classes as CSV, `digits`, `torchvision:CIFAR10`, `hfds/…` or `wds/…`. A recipe gives the settings, a file
    overrides some of them, and options override both.

    The run folder gets the weights, the settings, the metrics as CSV and for TensorBoard, and pictures: curves,
    confusion matrix, the first batch as the network sees it, the worst mistakes.

    \b
    Examples: partialnet train photos/ -o runs/photos
              partialnet train photos/ --recipe finetune --weights runs/other
              partialnet train photos/ --plan runs/searched/plan.json
    """
    given = given_settings(ctx, options)
    if plan is not None:
        given = _planned(plan, given)
    run = run_options.prepare(given)

    from partialnet.training.run import train as start

    result = start(run.config, run.data, run.folder, run.resume)
    click.echo(f"\nAccuracy {result.accuracy:.1%} on {result.num_val} held-out images.")
    following = [next_command("predict", run.folder, "IMAGES")]
    if _holds_out(run.data):
        following.append(next_command("eval", run.folder, run.data))
    tell_written(result.files, *following, next_command("export", run.folder))


def _planned(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, with the network of a plan."""
    plan = load_plan(source)
    if given.get("model", plan.model) != plan.model:
        raise UserError(f"The plan {source!r} is of {plan.model}; leave --model out.")
    return {**given, "model": plan.model, "model_args": {**plan.model_args, **given.get("model_args", {})}}


def _holds_out(data: str) -> bool:
    """Whether ``partialnet eval`` takes other images of ``data`` than were learnt from."""
    from partialnet.data.evaluation_parts import evaluation_folder
    from partialnet.data.sources import is_folder

    try:
        return not is_folder(data) or evaluation_folder(data) != Path(data)
    except UserError:  # no folder, or one of training images only
        return False
