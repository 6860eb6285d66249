"""Recipes: named settings that fit a kind of task, as YAML files beside this one.

A file holds what all networks share, and under ``models`` what differs for some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import Any, TypeVar

import yaml

from partialnet.errors import UserError
from partialnet.messages import did_you_mean

from ..config import RunConfig, TrainConfig
from ..settings import create_settings

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def recipe_names(kind: type[RunConfig] = TrainConfig) -> tuple[str, ...]:
    """All recipes for a kind of run, sorted."""
    files = resources.files(kind.recipes).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def recipe_values(name: str, model: str | None = None, kind: type[RunConfig] = TrainConfig) -> dict[str, Any]:
    """A recipe's settings for a network.

    Args:
        name: One of ``recipe_names()``.
        model: timm name of the network; None takes the recipe's own.
        kind: Class of the configuration.

    Raises:
        UserError: There is no such recipe.
    """
    names = recipe_names(kind)
    if name not in names:
        raise UserError(f"There is no recipe {name!r}.{did_you_mean(name, names)}")
    content: dict[str, Any] = yaml.safe_load(
        (resources.files(kind.recipes) / f"{name}.yaml").read_text(encoding="utf-8")
    )
    models: dict[str, dict[str, Any]] = content.pop("models", {})
    if model is not None:
        content["model"] = model
    return {**content, **models.get(content.get("model", kind().model), {})}


def load_recipe(name: str, **settings: Any) -> TrainConfig:
    """A recipe's configuration for training a classifier, with some settings replaced; see ``apply_recipe``.

    Example:
        >>> load_recipe("digits", epochs=1).epochs
        1
    """
    return apply_recipe(TrainConfig, name, settings)


def apply_recipe(kind: type[ConfigT], name: str, replaced: Mapping[str, Any]) -> ConfigT:
    """A configuration with a recipe's settings, some of them replaced.

    A shorter training, without a warm-up of its own, warms up for the same share of its epochs as the recipe; one of
    another length steps down at the same shares of its epochs.

    Args:
        kind: Class of the configuration.
        name: Name of the recipe.
        replaced: Settings by name that take the place of the recipe's.

    Raises:
        UserError: There is no such recipe or setting, or a value is not allowed or does not fit to the others.
    """
    base = recipe_values(name, replaced.get("model"), kind)
    config = create_settings(kind, {**base, **replaced})
    recipe = create_settings(kind, base)
    share = config.epochs / recipe.epochs
    if share < 1 and "warmup_epochs" not in replaced:
        config = replace(config, warmup_epochs=round(recipe.warmup_epochs * share, 3))
    if config.schedule == recipe.schedule == "multistep" and "decay_epochs" not in replaced:
        config = replace(config, decay_epochs=tuple(round(epoch * share, 3) for epoch in recipe.decay_epochs))
    config.check()
    return config
