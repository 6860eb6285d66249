"""Typed settings: what a configuration class is made of, and how its values are read, checked and written.

A configuration is a frozen dataclass that derives from ``Settings`` and declares its fields with ``setting``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, TypeVar

import yaml

from partialnet.errors import UserError
from partialnet.messages import yaml_problem


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    most: float = math.inf,
    aliases: tuple[str, ...] = (),
    may_change: bool = False,
    follows_epochs: bool = False,
) -> Any:
    """A field of a configuration.

    Args:
        default: Its value where none is given.
        help: One line, lower case.
        group: Heading under which it is shown.
        choices: The texts that are allowed; any, if empty.
        least: Smallest number allowed.
        most: Largest number allowed.
        aliases: Other names of its option on the command line.
        may_change: Whether a run may continue with another value, as it sets how fast or how often, but not what comes
            out.
        follows_epochs: Whether it follows from the number of epochs where a recipe gives it.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": choices,
        "least": least,
        "most": most,
        "aliases": aliases,
        "may_change": may_change,
        "follows_epochs": follows_epochs,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """A configuration: fields made by ``setting``, and ``check`` for what concerns several of them together."""

    def check(self) -> None:
        """Refuse values that do not fit together, or that a library does not know.

        Raises:
            UserError: They do not.
        """


SettingsT = TypeVar("SettingsT", bound=Settings)


def settings_of(kind: type[Settings]) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a configuration class by name, group by group, both in the order of their declaration."""
    groups: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    for setting in fields(kind):
        groups.setdefault(setting.metadata["group"], {})[setting.name] = setting
    return {name: setting for group in groups.values() for name, setting in group.items()}


def create_settings(kind: type[SettingsT], values: Mapping[str, Any], where: str = "the configuration") -> SettingsT:
    """A configuration from names and values, those not given at their defaults.

    Each value is checked by itself. Whether they fit together, ``check`` of the finished configuration tells: what is
    missing here may come from elsewhere.

    Args:
        kind: Class of the configuration.
        values: As YAML or an option gives them: lists for tuples, whole numbers for floats.
        where: What to call their source in an error.

    Raises:
        UserError: A name is unknown, or a value is of the wrong type, out of range or not among the choices.
    """
    checked = {}
    for name, value in values.items():
        if name not in settings_of(kind):
            known = _spellings(kind)
            near = get_close_matches(str(name).replace("-", "_"), known, n=1)
            hint = f" Did you mean {known[near[0]]}?" if near else ""
            raise UserError(f"There is no setting {str(name)!r} in {where}.{hint}")
        checked[name] = _checked(kind, name, value)
    return kind(**checked)


def _spellings(kind: type[Settings]) -> dict[str, str]:
    """Names of all settings by what else each may be called, too."""
    settings = settings_of(kind)
    others = {alias.replace("-", "_"): name for name in settings for alias in settings[name].metadata["aliases"]}
    return {**others, **{name: name for name in settings}}


def parse_setting(kind: type[Settings], name: str, text: str) -> Any:
    """The value of a setting from an option's text: ``none``, lists with commas, numbers, words.

    Raises:
        UserError: It is not of the setting's type.
    """
    optional, inner = setting_type(kind, name)
    if optional and text.lower() == "none":
        return None
    if typing.get_origin(inner) is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip() and text.lower() != "none"]
        return _checked(kind, name, parts)
    return _checked(kind, name, text)


def setting_type(kind: type[Settings], name: str) -> tuple[bool, Any]:
    """Whether a setting may be none, and its type otherwise."""
    hint = _type_hints(kind)[name]  # type: ignore[arg-type] # a class is hashable, whatever its instances are
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return True, next(part for part in typing.get_args(hint) if part is not type(None))
    return False, hint


@functools.cache
def _type_hints(kind: type[Settings]) -> dict[str, Any]:
    """Types of all settings; each call of typing's reads every annotation of the class anew."""
    return typing.get_type_hints(kind)


def as_yaml(config: Settings, title: str = "") -> str:
    """The whole configuration as YAML, each setting with its help as a comment; ``create_settings`` reads it back."""
    # names of files may hold line breaks, and bytes that are no UTF-8
    lines = [f"# {''.join(character if character.isprintable() else '?' for character in title)}"] if title else []
    settings = settings_of(type(config))
    width = max(map(len, settings)) + 24
    group = ""
    for name, setting in settings.items():
        if setting.metadata["group"] != group:
            group = setting.metadata["group"]
            lines += ["", f"# {group}"] if lines else [f"# {group}"]
        value = getattr(config, name)
        text = yaml.safe_dump(plain(value), default_flow_style=True, width=10_000)
        text = text.removesuffix("...\n").strip()
        lines.append(f"{f'{name}: {text}':{width}}  # {help_text(setting)}")
    return "\n".join(lines) + "\n"


def read_settings(path: str) -> dict[str, Any]:
    """Names and values of a YAML file; not yet checked.

    Raises:
        UserError: The file is missing, no YAML, no mapping of names to values, or has a name twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _UniqueNames)
    except FileNotFoundError:
        raise UserError(f"There is no configuration file {path!r}.") from None
    except OSError as error:
        raise UserError(f"{path!r} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path!r} is not UTF-8 text: {error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path!r} is not a YAML file: {yaml_problem(error)}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path!r} should hold lines of the form 'name: value'.")
    return content


class _UniqueNames(yaml.SafeLoader):  # type: ignore[misc,unused-ignore] # without PyYAML's stubs it is Any
    """Refuses a name that a mapping has twice; YAML would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a repeated name is an error with its line."""
        names = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in names:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep)


def help_text(setting: dataclasses.Field[Any]) -> str:
    """A setting's help with its choices."""
    choices = setting.metadata["choices"]
    return setting.metadata["help"] + (f": {', '.join(choices)}" if choices else "")


def plain(value: Any) -> Any:
    """Tuples as lists, at any depth, as YAML and JSON give them back."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _checked(kind: type[Settings], name: str, value: Any) -> Any:
    """The value in the setting's type and within its range."""
    optional, expected = setting_type(kind, name)
    if value is None:
        if optional:
            return None
        raise UserError(f"{name} cannot be none.")
    metadata = settings_of(kind)[name].metadata
    if typing.get_origin(expected) is tuple:
        inner = typing.get_args(expected)[0]
        if not isinstance(value, (list, tuple)):
            value = [value]
        converted: Any = tuple(_converted(name, item, inner) for item in value)
        items = converted
    else:
        converted = _converted(name, value, expected)
        items = (converted,)
    for item in items:
        if metadata["choices"] and item not in metadata["choices"]:
            near = get_close_matches(str(item), metadata["choices"], n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"{name} is {item!r} but must be one of {', '.join(metadata['choices'])}{hint}")
        if isinstance(item, (int, float)) and not metadata["least"] <= item <= metadata["most"]:
            most = "" if math.isinf(metadata["most"]) else f" and at most {metadata['most']:g}"
            raise UserError(f"{name} is {item:g} but must be at least {metadata['least']:g}{most}.")
    return converted


def _converted(name: str, value: Any, kind: Any) -> Any:
    """``value`` as int, float, bool, str or dict; YAML reads 1e-3 as text, options give text only."""
    wrong = UserError(f"{name} is {value!r} but must be {_KINDS[typing.get_origin(kind) or kind]}.")
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        if not value:  # as of a variable that is not set; it would pass for none
            raise UserError(f"{name} is empty; leave it out, or give a text.")
        return value
    if kind in (int, float):
        if isinstance(value, bool):
            raise wrong
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise wrong from None
        if not math.isfinite(number) or (kind is int and number != int(number)):
            raise wrong
        return int(number) if kind is int else number
    if not isinstance(value, Mapping):
        raise wrong
    return dict(value)


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping of names to values",
}
