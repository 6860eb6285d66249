"""``partialnet demo``."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from partialnet.errors import UserError

from .next_command import next_command
from .options import IntRange
from .results import tell_written


@click.command()
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/demo, or the next free runs/demo-2, …]",
)
@click.option("--seed", type=IntRange(0, 2**32 - 1), default=0, help="Seed of weights, order and augmentation.")
def demo(output: Path | None, seed: int) -> None:
    """Train partialnet_t0 on handwritten digits, from scratch, on the CPU.

    The 1,797 real images come with scikit-learn; nothing is downloaded. The run folder gets the checkpoint, the
    metrics as CSV, some test images and pictures. Ctrl-C saves the run, which `partialnet train` can continue.

    Example: partialnet demo -o runs/digits
    """
    folder = _free_folder() if output is None else output
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file; choose a folder with --output.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{str(folder)!r} exists and is not empty; choose another folder with --output.")
    from partialnet.demo import demo_config, run_demo

    click.echo("Training partialnet_t0 from scratch on 1,437 images of handwritten digits; 360 are held out.", err=True)
    try:
        result = run_demo(folder, demo_config(seed))
    except KeyboardInterrupt:
        # without a state the folder is of no use, and it would take the place of the next run's
        if not any(folder.glob("state/*.pt")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    click.echo(
        f"\nAccuracy {result.accuracy:.1%} on {result.num_val} held-out images, in the epoch that does best on them."
    )
    tell_written(result.files, next_command("predict", result.checkpoint, result.folder / "samples"))


def _free_folder() -> Path:
    """runs/demo, or the first of runs/demo-2, runs/demo-3, … that does not exist."""
    first = Path("runs/demo")
    number = 1
    folder = first
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = first.with_name(f"demo-{number}")
    return folder
