"""Converted networks in timm's registry, so that they train, save, load, fold and export like any other.

``converted`` is any network of the registry with its surgery as an argument; ``resnet50_pat``, ``mobilenetv2_100_pat``
and ``convnext_tiny_pat`` are the paper's Table 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.errors import UserError
from partialnet.timm_configuration import build_variant

from .convolutions import Surgery, check_options, convert, replace_convs
from .inverted_bottleneck import mix_before_expansion

__all__ = ["convert_checkpoint"]

_ARCHITECTURE = "converted"
#: Keeps parameters and multiply–adds level where a depthwise convolution becomes a dense partial one
_INSTEAD_OF_DEPTHWISE: dict[str, Any] = {"split_ratio": 1 / 16, "attention": "srm"}


def convert_checkpoint(checkpoint: Checkpoint, dry_run: bool = False, **options: Any) -> tuple[Checkpoint, Surgery]:
    """Convert a checkpoint's network and put the surgery among its arguments, so that it loads again.

    Args:
        checkpoint: The network; the original is untouched.
        dry_run: Only report; the checkpoint comes back as it is.
        options: Those of ``partialnet.surgery.replace_convs``.

    Returns:
        The converted checkpoint, with classes and preprocessing of the old; and the report.

    Raises:
        UserError: It is folded, nothing was replaced, or an option does not fit.
    """
    if checkpoint.folded:
        raise UserError("The network is folded for inference; convert the run it came from.")
    channels, height, width = checkpoint.input_config["input_size"]
    surgery = replace_convs(checkpoint.model, **{"input_size": (channels, height, width), **options}, dry_run=dry_run)
    if dry_run:
        return checkpoint, surgery
    if not surgery.replaced:
        raise UserError("No convolution was replaced; --dry-run shows why for each; --select may be too narrow.")
    recipes = [surgery.recipe]
    arguments = dict(checkpoint.model_args)
    base = checkpoint.architecture
    if base == _ARCHITECTURE:
        base, recipes = arguments.pop("base"), _recipes(arguments.pop("surgery")) + recipes
    arguments |= {"base": base, "surgery": recipes}
    # a network built from the arguments shows that they suffice, and has timm's configuration
    rebuilt = create_checkpoint(_ARCHITECTURE, checkpoint.class_names, **arguments)
    rebuilt.model.load_state_dict(surgery.model.state_dict())
    # new layers are not trained: what was measured of the network before is not true of this one
    changed = replace(checkpoint, model=rebuilt.model, architecture=_ARCHITECTURE, model_args=arguments, training={})
    return changed, surgery


@register_model
def converted(
    pretrained: bool = False,
    base: str = "resnet50",
    surgery: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    **kwargs: Any,
) -> nn.Module:
    """Any network of the registry after ``partialnet.surgery.replace_convs``.

    Args:
        pretrained: Load weights for the converted network, which only a run folder has.
        base: Name of the network that is converted.
        surgery: Options of ``replace_convs``, or several, one surgery after the other.
        kwargs: Arguments for ``base``.

    Raises:
        UserError: The registry has no such network, or an option does not fit.
    """
    if not isinstance(base, str) or ":" in base or base == _ARCHITECTURE or not timm.is_model(base):
        raise UserError(f"There is no model named {base!r} to convert.")
    return build_variant(_ARCHITECTURE, pretrained, base, partial(_convert, recipes=_recipes(surgery)), **kwargs)


@register_model
def resnet50_pat(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with PATConv instead of the 3×3 convolution of each bottleneck (paper, Table 5)."""
    operation = partial(convert, select=r"layer\d[._]\d+\.conv2$")
    return _preset("resnet50_pat", pretrained, "resnet50", operation, **kwargs)


@register_model
def mobilenetv2_100_pat(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 with PATConv before each expansion instead of its depthwise 3×3 convolutions (paper, Table 5)."""
    return _preset("mobilenetv2_100_pat", pretrained, "mobilenetv2_100", mix_before_expansion, **kwargs)


@register_model
def convnext_tiny_pat(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with PATConv instead of its depthwise 7×7 convolutions (paper, Table 5)."""
    options = {**_INSTEAD_OF_DEPTHWISE, **kwargs}
    return _preset("convnext_tiny_pat", pretrained, "convnext_tiny", partial(convert, select=r"conv_dw$"), **options)


def _preset(variant: str, pretrained: bool, base: str, operation: Callable[..., nn.Module], **kwargs: Any) -> nn.Module:
    """``split_ratio``, ``attention`` and ``attention_scope`` may be among ``kwargs``."""
    names = ("split_ratio", "attention", "attention_scope")
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    return build_variant(variant, pretrained, base, partial(operation, **options), **kwargs)


def _convert(model: nn.Module, recipes: Sequence[Mapping[str, Any]]) -> nn.Module:
    """One surgery after the other."""
    for recipe in recipes:
        model = convert(model, **recipe)
    return model


def _recipes(surgery: Any) -> list[dict[str, Any]]:
    recipes = list(surgery) if isinstance(surgery, (list, tuple)) else [surgery]
    if not all(isinstance(recipe, Mapping) for recipe in recipes):
        raise UserError("surgery must be a mapping of replace_convs' options, or a list of such mappings.")
    for recipe in recipes:
        check_options(dict(recipe))
    return [dict(recipe) for recipe in recipes]
