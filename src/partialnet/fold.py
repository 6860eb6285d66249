"""Exact folding of a network for inference."""

from __future__ import annotations

import copy

from torch import nn


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference in which every layer that can is folded; the outputs stay the same.

    BatchNorm goes into the convolutions, PAT_sp into the MLP before it, LayerNorm's affine and the scale of the
    attention logits into qkv. The original is untouched; folding twice is harmless.

    Args:
        model: A network in evaluation mode: a classifier, a ``features_only`` backbone, or any network that contains
            our layers.

    Raises:
        ValueError: ``model`` is in training mode.

    Example:
        >>> folded = fold(timm.create_model("partialnet_t0").eval())
    """
    if model.training:
        raise ValueError(
            "A network in training mode cannot be folded, its statistics still change. Call .eval() first."
        )
    return _fold(copy.deepcopy(model))


def _fold(module: nn.Module) -> nn.Module:
    fuse = getattr(module, "fuse", None)
    if callable(fuse):
        return fuse()
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    return module
