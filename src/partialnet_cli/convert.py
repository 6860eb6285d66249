"""``partialnet convert``."""

from __future__ import annotations

from pathlib import Path

import click

from partialnet.checkpoint import load
from partialnet.errors import UserError
from partialnet.surgery.converted import convert_checkpoint

from .next_command import next_command, same_command
from .options import FloatRange, output_folder
from .results import Results, result_options
from .runs import short_name


@click.command()
@click.argument("source")
@click.option(
    "--select",
    multiple=True,
    help="regular, grouped, depthwise, or a regular expression searched in the layer's name; repeatable.  "
    "[default: every convolution that can be replaced]",
)
@click.option(
    "--split-ratio",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    help="Share of the channels that is convolved.",
)
@click.option(
    "--attention",
    metavar="NAME",
    default="gaussian_se",
    help="What the other channels get: gaussian_se, srm, spatial_gate, self_attention, one of timm's, or none.",
)
@click.option(
    "--attention-scope",
    type=click.Choice(["partial", "full"]),
    default="partial",
    help="Attend over the channels that are not convolved, or over all.",
)
@click.option("--dry-run", is_flag=True, help="Only report what would be replaced.")
@output_folder("Run folder.  [default: runs/SOURCE-pat]")
@result_options(json="the report")
def convert(
    source: str,
    select: tuple[str, ...],
    split_ratio: float,
    attention: str,
    attention_scope: str,
    dry_run: bool,
    output: Path | None,
    results: Results,
) -> None:
    """Replace convolutions of SOURCE with PATConv.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, or a model
    name (timm's, torchvision:NAME); for a network of your own see `partialnet --import` and examples/own_network.py.

    Prints, layer by layer, what was replaced, what not and why, and writes a run folder that train, predict, eval,
    export and bench take. Leading blocks of regular kernels are carried over; the network must be trained again.

    \b
    Examples: partialnet convert resnet50 --select regular --dry-run
              partialnet convert torchvision:regnet_y_400mf --select grouped
              partialnet convert runs/photos --select 'layer[34]' -o runs/photos-pat
    """
    if output is None:
        path = Path(source)
        name = path.resolve().name if path.is_dir() else path.stem if path.is_file() else short_name(source)
        output = Path("runs") / f"{name}-pat"
    if not dry_run and output.exists():
        raise UserError(f"{str(output)!r} exists; choose another folder with --output.")
    converted, surgery = convert_checkpoint(
        load(source),
        dry_run,
        select=list(select) or None,
        split_ratio=split_ratio,
        attention=attention,
        attention_scope=attention_scope,
    )
    if not dry_run:
        converted.save(output)
        results.written.append(output)
    converted_to = None if dry_run else str(output)
    results.write_json({**surgery.as_dict(), "recipe": surgery.recipe, "written": converted_to})
    results.say(surgery.table())
    if not surgery.replaced:
        results.say("\nNothing would be replaced; choose other layers with --select or another --split-ratio.")
        results.finish()
    elif dry_run:
        results.say("\nNothing was converted yet.")
        results.finish(same_command(without="--dry-run"))
    else:
        results.finish(next_command("train", "DATA", "--model", output))
