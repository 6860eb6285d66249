"""What the commands that train have in common: the options of a run, and what is told before it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Generic

import click

from partialnet.training.config import RunConfig
from partialnet.training.recipes import recipe_names
from partialnet.training.settings import as_yaml

from .settings import ConfigT, configure


@dataclass(frozen=True)
class Run(Generic[ConfigT]):
    """A run that is to start or to continue.

    Attributes:
        config: Its settings.
        recipe: Name of the recipe that they start from.
        data: What it learns from, as the user named it.
        folder: The run folder.
        resume: Whether what is there is continued.
    """

    config: ConfigT
    recipe: str
    data: str
    folder: Path
    resume: bool


@dataclass(frozen=True)
class RunOptions(Generic[ConfigT]):
    """What was asked of a run beside its settings; see ``run_options``."""

    kind: type[ConfigT]
    suffix: str
    data_kinds: str
    data: str | None
    recipe: str | None
    config_file: str | None
    output: Path | None
    resume: bool
    print_config: bool

    def prepare(self, given: dict[str, Any]) -> Run[ConfigT]:
        """The run with these settings, announced; if they are only to be printed, the command ends here.

        Args:
            given: The settings from the command line.

        Raises:
            UserError: A setting is unknown, of the wrong type or not allowed.
            click.UsageError: There is no DATA.
        """
        context = click.get_current_context()
        default = default_recipe(self.kind, self.data)
        config, recipe = configure(self.kind, self.recipe, default, self.config_file, given, self.output)
        if self.print_config:
            command = context.command_path.partition(" ")[2]
            use = f"Use it with: partialnet {command} DATA --config FILE"
            click.echo(as_yaml(config, f"Recipe {recipe}, {config.model}. {use}"))
            context.exit()
        if self.data is None:
            raise click.UsageError(f"Missing argument 'DATA': {self.data_kinds}.", context)
        folder = run_folder(self.output, self.data, f"{config.model}{self.suffix}")

        from partialnet.training.launch import is_first_process

        if is_first_process():
            click.echo(f"Recipe {recipe}, {config.model}; run folder {folder}.", err=True)
        return Run(config, recipe, self.data, folder, self.resume)


def run_options(kind: type[RunConfig], data_kinds: str, suffix: str = "") -> Callable[[Callable[..., Any]], Any]:
    """DATA and the options of all commands that train, which reach the command as ``run_options``, a ``RunOptions``.

    Args:
        kind: Class of the configuration.
        data_kinds: What DATA may be, in words.
        suffix: How the name of the run folder ends where none is named.
    """
    names = ("data", "recipe", "config_file", "output", "resume", "print_config")
    default = "digits or small" if "digits" in recipe_names(kind) else "small"
    recipes = f"Settings to start from: {', '.join(recipe_names(kind))}.  [default: {default}]"
    folder = f"Run folder.  [default: runs/DATA-MODEL{suffix}]"
    decorators = (
        click.option("--print-config", is_flag=True, help="Print all settings as YAML and stop."),
        click.option("--resume", is_flag=True, help="Continue the run in the run folder if there is one."),
        click.option("-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), help=folder),
        click.option(
            "--config", "config_file", metavar="FILE", help="YAML file of settings that override the recipe's."
        ),
        click.option("--recipe", metavar="NAME", help=recipes),
        click.argument("data", required=False),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)  # with the options that the command has already
        def run(*args: Any, **options: Any) -> Any:
            asked = RunOptions(kind, suffix, data_kinds, **{name: options.pop(name) for name in names})
            return command(*args, run_options=asked, **options)

        for decorator in decorators:
            run = decorator(run)
        return run

    return decorate


def default_recipe(kind: type[RunConfig], data: str | None) -> str:
    """The recipe where none is named."""
    return "digits" if data == "digits" and "digits" in recipe_names(kind) else "small"


def run_folder(output: Path | None, data: str, name: str) -> Path:
    """The run folder: the one that was asked for, or one named after the data and ``name``."""
    return output or Path("runs") / f"{short_name(data) or 'images'}-{short_name(name)}"


def short_name(source: str) -> str:
    """The last part of a path, without a table's ending, or of a name such as torchvision:CIFAR10, fit for a folder."""
    last = re.sub(r"(?i)\.[ct]sv$", "", re.split(r"[/:\\]", source.rstrip("/\\"))[-1])
    return re.sub(r"[^\w.-]+", "-", last).strip("-.")
