"""Exact folding of a network for inference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .layers.inference import RUNTIMES, Runtime
from .layers.self_attention import FixedPositionBias, RelativePositionBias


def fold(model: nn.Module, img_size: int | tuple[int, int] | None = None, runtime: Runtime | None = None) -> nn.Module:
    """A copy of ``model`` for inference in which every layer that can is folded; the outputs stay the same.

    BatchNorm goes into the convolutions, PAT_sp into the MLP before it, LayerNorm's affine and the scale of the
    attention logits into qkv. The original is untouched; folding twice is harmless.

    Args:
        model: A network in evaluation mode: a classifier, a ``features_only`` backbone, or any network that contains
            our layers.
        img_size: Height and width, in pixels, of all images to come, or one number for both: the relative position
            bias then becomes a constant. None keeps the network open to any size.
        runtime: Write the layers as "torch" (eager, in the channels_last layout), "onnxruntime" or "openvino" runs
            them fastest; parameters are then named and shaped for it. None keeps one plain form for all.

    Raises:
        ValueError: ``model`` is in training mode, or the runtime is unknown.

    Example:
        >>> folded = fold(timm.create_model("partialnet_t0").eval(), img_size=224)
    """
    if model.training:
        raise ValueError(
            "A network in training mode cannot be folded, its statistics still change. Call .eval() first."
        )
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"Unknown runtime {runtime!r}. Choose {', '.join(RUNTIMES)} or None.")
    folded = _fold(copy.deepcopy(model))
    if img_size is not None:
        _fix_size(folded, (img_size, img_size) if isinstance(img_size, int) else img_size)
    return folded if runtime is None else _suit(folded, runtime)


def _fold(module: nn.Module) -> nn.Module:
    fuse = getattr(module, "fuse", None)
    if callable(fuse):
        fused = fuse()
        # other people's layers may fuse in place and return nothing
        return fused if isinstance(fused, nn.Module) else module
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    return module


def _suit(module: nn.Module, runtime: Runtime) -> nn.Module:
    """Replace the layers that have a form of their own for ``runtime``."""
    for_runtime = getattr(module, "for_runtime", None)
    if callable(for_runtime):
        module = for_runtime(runtime)
    for name, child in module.named_children():
        setattr(module, name, _suit(child, runtime))
    return module


def _fix_size(model: nn.Module, img_size: tuple[int, int]) -> None:
    """Replace every relative position bias by the constant that it gives for images of ``img_size``."""
    sizes: dict[nn.Module, tuple[int, int]] = {}
    biases = [module for module in model.modules() if isinstance(module, RelativePositionBias)]
    hooks = [bias.register_forward_pre_hook(lambda bias, size: sizes.update({bias: size})) for bias in biases]
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        model(torch.zeros(1, first.in_channels, *img_size, device=first.weight.device, dtype=first.weight.dtype))
    for hook in hooks:
        hook.remove()
    for module in list(model.modules()):
        for name, bias in module.named_children():
            if isinstance(bias, RelativePositionBias) and bias in sizes:
                setattr(module, name, FixedPositionBias(bias(*sizes[bias]), sizes[bias]))
