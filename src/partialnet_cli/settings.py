"""Options made of a configuration's settings, for all commands that train."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import timm
import yaml
from click.core import ParameterSource

from partialnet.checkpoint.stored_network import WEIGHTS_NAME
from partialnet.errors import UserError
from partialnet.training.config import RunConfig
from partialnet.training.recipes import apply_recipe
from partialnet.training.settings import (
    Settings,
    create_settings,
    help_text,
    parse_setting,
    read_settings,
    setting_type,
    settings_of,
)

ConfigT = TypeVar("ConfigT", bound=RunConfig)


class SettingType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The type of one setting; an option's text is checked as a configuration file's value is."""

    def __init__(self, kind: type[Settings], setting: str) -> None:
        self.kind = kind
        self.setting = setting
        optional, expected = setting_type(kind, setting)
        names = {int: "integer", float: "number", str: "text"}
        inner = typing.get_args(expected)[0] if typing.get_origin(expected) is tuple else expected
        self.name = names[inner] + (",…" if inner is not expected else "") + ("|none" if optional else "")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The setting's value; a wrong one is an error with the setting's name."""
        return parse_setting(self.kind, self.setting, value) if isinstance(value, str) else value


class SettingOption(click.Option):
    """An option for a setting, shown under the heading of the setting's group."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help shows the settings' options under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the run's own options first, then one section for each group of settings."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):  # the description tells of those
                group = parameter.group if isinstance(parameter, SettingOption) else "Options"
                sections.setdefault(group, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def setting_options(kind: type[Settings], without: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Add an option for every setting of a configuration class.

    Args:
        kind: The class.
        without: Settings that the command sets itself.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, setting in reversed(settings_of(kind).items()):
            if name in without:
                continue
            text = help_text(setting)
            expected = setting_type(kind, name)[1]
            option = name.replace("_", "-")
            names = [f"--{spelling}" for spelling in (option, *setting.metadata["aliases"])]
            arguments: dict[str, Any] = {"group": setting.metadata["group"], "help": f"{text[0].upper()}{text[1:]}."}
            if typing.get_origin(expected) is dict:
                arguments |= {"multiple": True, "metavar": "KEY=VALUE"}
            elif expected is bool:
                names = [f"--{option}/--no-{option}"]
                arguments |= {"default": None}
            else:
                arguments |= {"type": SettingType(kind, name)}
            command = click.option(*names, name, cls=SettingOption, **arguments)(command)
        return command

    return decorate


def given_settings(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given on the command line."""
    given = {name: value for name, value in options.items() if on_command_line(ctx, name)}
    if "model_args" in given:
        given["model_args"] = _model_args(given["model_args"])
    return given


def on_command_line(ctx: click.Context, name: str) -> bool:
    """Whether an option was given, not left at its default."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def configure(
    kind: type[ConfigT],
    recipe: str | None,
    default: str,
    config_file: str | None,
    given: dict[str, Any],
    output: Path | None = None,
) -> tuple[ConfigT, str]:
    """The configuration of a run, and the name of the recipe it starts from.

    A recipe gives the settings, a file replaces some, ``given`` replaces what it names.

    Args:
        kind: Class of the configuration.
        recipe: Name of the recipe; None takes the one that the file names, or ``default``.
        default: Name of the recipe where neither names one.
        config_file: YAML file of settings.
        given: Settings by name; here the model may be a run, in a file it is always a name.
        output: The run folder that was asked for, which is no model of its own run.

    Raises:
        UserError: Something is unknown, of the wrong type or not allowed.
    """
    from_file = read_settings(config_file) if config_file else {}
    named = from_file.pop("recipe", None)
    name = recipe or named or default
    create_settings(kind, from_file, repr(config_file))  # its mistakes are to be told with its name
    values = {**from_file, **given}
    if "model_args" in given and isinstance(from_file.get("model_args"), dict):
        values["model_args"] = {**from_file["model_args"], **given["model_args"]}
    if "model" in given and _is_run(str(given["model"]), output):
        run = str(values.pop("model"))
        found = kind.network_of_run(run)
        arguments = {**found["model_args"], **values.get("model_args", {})}
        values = {"weights": run, **found, **values, "model_args": arguments}
    return apply_recipe(kind, name, values), name


def _is_run(model: str, output: Path | None) -> bool:
    """Whether a model is meant as a run; a folder may also just happen to be named like a model of timm's."""
    folder = Path(model)
    if not folder.exists():
        return False
    if not timm.is_model(model.split(".")[0]):
        return True
    return (folder / WEIGHTS_NAME).is_file() and (output is None or output.resolve() != folder.resolve())


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
