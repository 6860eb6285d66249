"""``partialnet train``."""

from __future__ import annotations

import os
import re
import shlex
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from partialnet.errors import UserError
from partialnet.training.config import FIELDS, as_yaml, create_config, parse_setting, read_config, setting_type
from partialnet.training.recipes import load_recipe, recipe_names


class SettingType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The type of one setting; an option's text is checked as a configuration file's value is."""

    def __init__(self, setting: str) -> None:
        self.setting = setting
        optional, kind = setting_type(setting)
        names = {int: "integer", float: "number", str: "text"}
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        self.name = names[inner] + (",…" if inner is not kind else "") + ("|none" if optional else "")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The setting's value; a wrong one is an error with the setting's name."""
        return parse_setting(self.setting, value) if isinstance(value, str) else value


class GroupedCommand(click.Command):
    """A command whose help shows its options under the headings of the settings' groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the run's own options first, then one section for each group of settings."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                setting = FIELDS.get(parameter.name or "")
                group = setting.metadata["group"] if setting is not None else "Options"
                sections.setdefault(group, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every setting of ``TrainConfig``."""
    for name, setting in reversed(FIELDS.items()):
        choices = setting.metadata["choices"]
        help_text = setting.metadata["help"] + (f": {', '.join(choices)}" if choices else "") + "."
        help_text = help_text[0].upper() + help_text[1:]
        option = f"--{name.replace('_', '-')}"
        if name == "model_args":
            decorator = click.option(option, name, multiple=True, metavar="KEY=VALUE", help=help_text)
        elif setting_type(name)[1] is bool:
            decorator = click.option(f"{option}/--no-{name.replace('_', '-')}", name, default=None, help=help_text)
        else:
            decorator = click.option(option, name, type=SettingType(name), help=help_text)
        command = decorator(command)
    return command


@click.command(cls=GroupedCommand)
@click.argument("data", required=False)
@click.option("--recipe", help=f"Settings to start from: {', '.join(recipe_names())}.  [default: digits or small]")
@click.option("--config", "config_file", help="YAML file of settings, which replace the recipe's.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder.  [default: runs/DATA-MODEL]")
@click.option("--resume", is_flag=True, help="Continue the run in the run folder if there is one.")
@click.option("--print-config", is_flag=True, help="Print all settings as YAML and stop.")
@setting_options
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
    """Train any timm network on DATA.

    DATA is a folder of photographs with one folder for each class (and, if you like, train and val above them),
    `digits`, `torchvision:CIFAR10`, `hfds/…` or `wds/…`. A recipe gives the settings, a file replaces some, options
    replace what they name.

    The run folder gets the weights, the settings, the metrics as CSV and for TensorBoard, and pictures: curves,
    confusion matrix, the first batch as the network sees it, the worst mistakes.

    \b
    Examples: partialnet train photos/ -o runs/photos
              partialnet train photos/ --recipe finetune --weights runs/other
    """
    name, values = recipe_and_values(ctx, recipe, config_file, options, "digits" if data == "digits" else "small")
    if "model" in values and Path(str(values["model"])).is_dir():
        values = _as_in_run(values)
    config = load_recipe(name, values)
    if print_config:
        click.echo(as_yaml(config, f"Recipe {name}, {config.model}. Use it with: partialnet train DATA --config FILE"))
        return
    if data is None:
        raise click.UsageError("Missing argument 'DATA': a folder of class folders, digits, torchvision:NAME, …", ctx)
    folder = output or Path("runs") / f"{short_name(data)}-{config.model}"

    from partialnet.training.run import train as run  # type: ignore[import-not-found,unused-ignore]

    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":  # only one of several processes speaks
        click.echo(f"Recipe {name}, {config.model}; run folder {folder}.", err=True)
    result = run(config, data, folder, resume)
    click.echo(f"\nAccuracy {result.accuracy:.1%} on {result.num_val} held-out images. Written:")
    for file in result.files:
        click.echo(f"  {file}{'/' if file.is_dir() else ''}")
    click.echo(f"\nNext: {shlex.join(['partialnet', 'predict', str(folder)])} IMAGE…")
    if _has_held_out_folder(data):
        click.echo(f"      {shlex.join(['partialnet', 'eval', str(folder), data])}")
    click.echo(f"      {shlex.join(['partialnet', 'export', str(folder)])}")


def recipe_and_values(
    ctx: click.Context, recipe: str | None, config_file: str | None, options: Mapping[str, Any], default: str
) -> tuple[str, dict[str, Any]]:
    """The recipe's name, and the settings that replace its own: those of a file, and those of given options.

    Args:
        ctx: The command's context, which knows what options were given.
        recipe: Value of --recipe.
        config_file: Value of --config.
        options: The options of ``setting_options``.
        default: Recipe where neither option nor file names one.

    Raises:
        UserError: The file cannot be used, or an option does not fit.
    """
    given = {
        name: value for name, value in options.items() if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if "model_args" in given:
        given["model_args"] = _model_args(given["model_args"])
    from_file = read_config(config_file) if config_file else {}
    name = recipe or from_file.pop("recipe", None) or default
    create_config(from_file, repr(config_file))  # its mistakes are to be told with its name
    values = {**from_file, **given}
    if "model_args" in given and isinstance(from_file.get("model_args"), dict):
        values["model_args"] = {**from_file["model_args"], **given["model_args"]}
    return name, values


def _as_in_run(values: dict[str, Any]) -> dict[str, Any]:
    """The settings with the network of a run folder, which ``model`` names, and its weights unless others are given."""
    from partialnet.checkpoint import load

    source = load(values["model"])
    # classes and image size follow from the images and the recipe
    arguments = {name: value for name, value in source.model_args.items() if name not in ("num_classes", "img_size")}
    return {
        "weights": values["model"],
        **values,
        "model": source.architecture,
        "model_args": {**arguments, **values.get("model_args", {})},
    }


def _has_held_out_folder(data: str) -> bool:
    """Whether ``partialnet eval`` would take other images of ``data`` than were learnt from."""
    from partialnet.evaluation import evaluation_folder

    try:
        return evaluation_folder(data) != Path(data)
    except UserError:  # no folder, or one of training images only
        return False


def short_name(data: str) -> str:
    """What to call a run on ``data``: its last part, as a file name."""
    last = re.split(r"[/:\\]", data.rstrip("/\\"))[-1]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "images"


def _model_args(pairs: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs, values read as YAML."""
    arguments = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--model-args {pair!r} should be KEY=VALUE, such as drop_rate=0.1.")
        try:
            arguments[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--model-args {pair!r} has a value that cannot be read.") from None
    return arguments
