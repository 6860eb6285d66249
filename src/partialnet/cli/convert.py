"""``partialnet convert``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click


@click.command()
@click.argument("model")
@click.option(
    "--select",
    multiple=True,
    help="regular, grouped, depthwise, or a regular expression searched in the layer's name; repeatable.  "
    "[default: every convolution that can be replaced]",
)
@click.option(
    "--split-ratio",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Share of the channels that is convolved.",
)
@click.option(
    "--attention",
    default="gaussian_se",
    show_default=True,
    help="What the other channels get: gaussian_se, srm, spatial_gate, self_attention, one of timm's, or none.",
)
@click.option(
    "--attention-scope",
    type=click.Choice(["partial", "full"]),
    default="partial",
    show_default=True,
    help="Attend over the channels that are not convolved, or over all.",
)
@click.option("--dry-run", is_flag=True, help="Only report what would be replaced.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run folder to write.  [default: runs/MODEL-pat]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def convert(
    model: str,
    select: tuple[str, ...],
    split_ratio: float,
    attention: str,
    attention_scope: str,
    dry_run: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Put PATConv in the place of MODEL's convolutions.

    MODEL is a model name of timm's, torchvision:NAME, a run folder or a checkpoint; for a network of your own see
    partialnet --import and examples/own_network.py. Prints, layer by layer, what was replaced, what not
    and why, and writes a run folder that train, predict, eval, export and bench take. Leading blocks of regular kernels
    are carried over; the network must be trained again.

    \b
    Examples: partialnet convert resnet50 --select regular --dry-run
              partialnet convert torchvision:regnet_y_400mf --select grouped
              partialnet convert runs/photos --select 'layer[34]' -o runs/photos-pat
    """
    from partialnet.checkpoint import load
    from partialnet.converted import convert_checkpoint
    from partialnet.errors import UserError

    if output is None:
        path = Path(model)
        name = path.resolve().name if path.is_dir() else path.stem if path.is_file() else model
        output = Path("runs") / f"{name}-pat"
    if not dry_run and output.exists():
        raise UserError(f"{str(output)!r} exists; choose another folder with --output.")
    converted, surgery = convert_checkpoint(
        load(model),
        dry_run,
        select=list(select) or None,
        split_ratio=split_ratio,
        attention=attention,
        attention_scope=attention_scope,
    )
    if not dry_run:
        converted.save(output)
    if as_json:
        written = None if dry_run else str(output)
        click.echo(json.dumps({**surgery.as_dict(), "recipe": surgery.recipe, "written": written}, indent=1))
        return
    click.echo(surgery.table())
    if not surgery.replaced:
        click.echo("\nNothing would be replaced; choose other layers with --select or another --split-ratio.")
    elif dry_run:
        options = [f"--select={pattern}" for pattern in select]
        options += [f"--split-ratio={split_ratio:g}"] if split_ratio != 1 / 4 else []
        options += [f"--attention={attention}"] if attention != "gaussian_se" else []
        options += [f"--attention-scope={attention_scope}"] if attention_scope != "partial" else []
        command = ["partialnet", "convert", model, *options, "-o", str(output)]
        click.echo(f"\nNothing was written. Next: {shlex.join(command)}")
    else:
        click.echo(f"\nWritten: {output}/")
        click.echo(f"\nNext: partialnet train DATA --model {shlex.quote(str(output))}")
