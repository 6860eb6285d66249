"""What the commands that train print before a run."""

from __future__ import annotations

from pathlib import Path

import click

from partialnet.training.config import RunConfig
from partialnet.training.settings import as_yaml


def print_settings(config: RunConfig, recipe: str, command: str) -> None:
    """All settings as YAML, under a line that says how to use them with ``command``."""
    click.echo(
        as_yaml(config, f"Recipe {recipe}, {config.model}. Use it with: partialnet {command} DATA --config FILE")
    )


def announce_run(config: RunConfig, recipe: str, folder: Path) -> None:
    """Recipe, network and run folder, once for all processes of the run."""
    from partialnet.training.launch import is_first_process

    if is_first_process():
        click.echo(f"Recipe {recipe}, {config.model}; run folder {folder}.", err=True)
