"""Classifiers of torchvision in timm's registry, so that they convert, train, save, load and export like timm's own."""

from __future__ import annotations

from typing import Any

import torchvision
from timm.models import register_model
from torch import nn

from .errors import UserError
from .messages import similar_names
from .timm_configuration import finish_network, take_configuration

__all__ = ["ARCHITECTURE", "PREFIX"]

#: What a user writes before torchvision's name of a network
PREFIX = "torchvision:"
ARCHITECTURE = "torchvision_classifier"
#: Networks that answer with a tuple in training unless they are told not to
_WITH_FURTHER_OUTPUTS = ("googlenet", "inception_v3")


@register_model
def torchvision_classifier(
    pretrained: bool = False, network: str = "resnet18", num_classes: int = 1000, in_chans: int = 3, **kwargs: Any
) -> nn.Module:
    """A classifier of torchvision with random weights.

    Args:
        pretrained: Load weights that timm's configuration names, as of a run folder; torchvision's own are not fetched.
        network: Its name in torchvision.
        num_classes: Number of classes.
        in_chans: 3, for which torchvision builds its networks.
        kwargs: Arguments of torchvision's builder, and what timm hands to entry points.

    Raises:
        UserError: torchvision has no classifier of this name.
        ValueError: ``in_chans`` is not 3.
    """
    known = torchvision.models.list_models(torchvision.models)
    if network not in known:
        raise UserError(f"torchvision has no classifier {network!r}.{similar_names(str(network), known)}")
    if in_chans != 3:
        raise ValueError(f"torchvision builds its networks for 3 channels, not {in_chans}")
    told = take_configuration(kwargs)
    for timms in ("cache_dir", "pretrained_model_args"):  # for timm's own builder
        kwargs.pop(timms, None)
    if network in _WITH_FURTHER_OUTPUTS:
        kwargs = {"aux_logits": False, "init_weights": True, **kwargs}
    model: nn.Module = torchvision.models.get_model(network, num_classes=num_classes, **kwargs)
    model.num_classes = num_classes  # type: ignore[assignment]
    config = {**_configuration(model, network, num_classes), **told, "architecture": ARCHITECTURE}
    return finish_network(model, config, pretrained, num_classes)


def _configuration(model: nn.Module, name: str, num_classes: int) -> dict[str, Any]:
    """What timm keeps with a network: how it wants its images, and which layer answers."""
    # of several weights those for the smallest images, which the builder's defaults fit
    presets = [weights.transforms() for weights in torchvision.models.get_model_weights(name)]
    preset = min(presets, key=lambda preset: preset.crop_size[0])
    side = preset.crop_size[0]
    outputs = [path for path, layer in model.named_modules() if _outputs(layer) == num_classes]
    return {
        "num_classes": num_classes,
        "input_size": (3, side, side),
        "crop_pct": side / preset.resize_size[0],
        "interpolation": preset.interpolation.value,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "classifier": outputs[-1] if outputs else None,
    }


def _outputs(layer: nn.Module) -> int | None:
    """Number of outputs of a layer that may be a classifier's last."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None
