"""Exact folding of a network for inference."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from partialnet.arguments import check_count, check_network
from partialnet.layers import DPConv, PATConv
from partialnet.layers.affine import is_linear_layer
from partialnet.layers.eager import PatchConv, is_patchwise
from partialnet.layers.inference import RUNTIMES, Runtime
from partialnet.layers.self_attention import FixedPositionBias, RelativePositionBias
from partialnet.replacement import replace_modules

from .batch_norms import fold_batch_norms
from .hooks import copy_with_hooks, has_hooks, keeping_hooks
from .module_flow import module_flow

_logger = logging.getLogger(__name__)


def fold(model: nn.Module, img_size: int | tuple[int, int] | None = None, runtime: Runtime | None = None) -> nn.Module:
    """A copy of ``model`` for inference in which every layer that can is folded; the outputs stay the same.

    BatchNorm goes into the convolutions, PAT_sp into the MLP before it, LayerNorm's affine and the scale of the
    attention logits into qkv. Other people's modules that can fold themselves do (RepVGG, MobileOne, RepViT, …); then
    all BatchNorms that are left go into the layers beside them or become a scale and a shift. The original is
    untouched; folding twice is harmless.

    Hooks stay and see the same values: the hooks of a module move to its replacement, and a module with hooks on its
    parts is not replaced, but these parts are. A hook that is bound to something outside the network, such as a list,
    is shared with the original. Folding itself calls hooks only with ``img_size``, on an image of zeros.

    Args:
        model: Any network in evaluation mode: a classifier, a ``features_only`` backbone, a detector, your own.
        img_size: Height and width, in pixels, of all images to come, or one number for both: the relative position
            bias then becomes a constant. None keeps the network open to any size.
        runtime: Write the layers in the form that this runtime runs fastest: "torch" (eager, or compiled on the CPU,
            in the channels_last layout), "onnxruntime", "openvino", or "litert" (with the fewest transposes).
            Parameters then have other names and shapes. "torch" also replaces convolutions that are matrix products,
            in other networks too; without autograd, our blocks then ignore hooks that are registered on their parts
            afterwards. None keeps one plain form for all.

    Raises:
        ValueError: ``model`` is no network or in training mode, the runtime is unknown, ``img_size`` is no size, or
            the network takes no images of it.

    Example:
        >>> import timm, partialnet
        >>> folded = partialnet.fold(timm.create_model("partialnet_t0", num_classes=10).eval(), img_size=96)
        >>> folded(torch.rand(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """
    check_network(model)
    size = None if img_size is None else _height_and_width(img_size)
    if model.training:
        raise ValueError(
            "A network in training mode cannot be folded, because its statistics still change; call .eval() first."
        )
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"Unknown runtime {runtime!r}. Choose {', '.join(RUNTIMES)} or None.")
    with torch.no_grad():
        folded = _copy(model)
        kept = _parts_of_searched_layers(folded)
        folded = replace_modules(folded, keeping_hooks(lambda part: part if part in kept else _fold_itself(part)))
        folded = fold_batch_norms(folded)
    if size is not None:
        folded = _fix_size(folded, size)
    if runtime is None:
        return folded
    folded = replace_modules(folded, keeping_hooks(partial(_for_runtime, runtime=runtime)))
    return _with_patch_convs(folded) if runtime == "torch" else folded


def _height_and_width(img_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    for side in sides:
        check_count("img_size", side)
    if len(sides) != 2:
        raise ValueError(f"img_size={img_size!r} must be height and width, or one number for both.")
    return sides


def _copy(model: nn.Module) -> nn.Module:
    with _WithoutHistories():
        return copy_with_hooks(model)


class _WithoutHistories(TorchFunctionMode):
    """Lets tensors with a gradient history be copied, which PyTorch refuses: weights by hooks, kept features."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _parts_of_searched_layers(model: nn.Module) -> set[nn.Module]:
    """The parts of each DPConv, which must not be folded: it needs its attention over a changing set of channels."""
    layers = [module for module in model.modules() if isinstance(module, DPConv)]
    return {part for layer in layers for part in layer.modules() if part is not layer}


def _fold_itself(module: nn.Module) -> nn.Module:
    """What the module's own method for inference makes of it; the methods are those that timm looks for."""
    methods = ("fuse", "reparameterize", "switch_to_deploy")
    method = next((name for name in methods if _needs_no_arguments(getattr(module, name, None))), None)
    if method is None or _is_outdated(module, method):
        return module
    if type(module).__module__.partition(".")[0] == "partialnet":
        return module.fuse()  # type: ignore[operator]
    changed = copy.deepcopy(module)
    try:
        with _NewTensorsLike(module):
            result = getattr(changed, method)()
    except Exception as error:  # other people's code; its BatchNorms still fold
        _logger.info("%s cannot fold itself: %s", type(module).__name__, error)
        return module
    # some change themselves and return nothing
    return (result if isinstance(result, nn.Module) else changed).eval()


def _is_outdated(module: nn.Module, method: str) -> bool:
    """Whether a subclass has another ``forward`` than the one that the inherited ``method`` replaces."""
    lineage = type(module).__mro__
    forward, folding = (
        next((age for age, kind in enumerate(lineage) if name in vars(kind)), 0) for name in ("forward", method)
    )
    return "forward" in vars(module) or forward < folding


def _needs_no_arguments(method: Any) -> TypeGuard[Callable[[], object]]:
    """Whether it can be a method for inference: one with arguments may, for example, fuse two feature maps."""
    if not callable(method) or isinstance(method, nn.Module):
        return False
    parameters = inspect.signature(method).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


class _NewTensorsLike(TorchFunctionMode):
    """New layers get the data type and device of a module's parameters; timm's ``fuse`` makes them in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        like = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None)
        self._like = {} if like is None else {"dtype": like.dtype, "device": like.device}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.eye):
            kwargs.update((name, value) for name, value in self._like.items() if kwargs.get(name) is None)
        return func(*args, **kwargs)


def _for_runtime(module: nn.Module, runtime: Runtime) -> nn.Module:
    """The module's own form for ``runtime``, if it has one."""
    for_runtime = getattr(module, "for_runtime", None)
    return for_runtime(runtime) if callable(for_runtime) and not _is_outdated(module, "for_runtime") else module


def _with_patch_convs(model: nn.Module) -> nn.Module:
    """Replace the convolutions that are matrix products, in our networks and others', where only they use their weight.

    Convolutions that no trace reaches or that have hooks stay. So do those inside our layers that fold themselves:
    these look for their convolution when the network is folded again.
    """
    ours = (m for m in model.modules() if type(m).__module__.startswith("partialnet.") and hasattr(m, "fuse"))
    kept = {child for module in ours for child in module.children()}
    convs = [m for m in model.modules() if is_patchwise(m) and m not in kept and not has_hooks(m)]
    flow = module_flow(model, is_linear_layer, set(convs))
    new: dict[nn.Module, nn.Module] = {m: PatchConv(m) for m in convs if m in flow.calls and m not in flow.read}
    return replace_modules(model, lambda module: new.get(module, module))


def _fix_size(model: nn.Module, img_size: tuple[int, int]) -> nn.Module:
    """Replace the relative position biases that see one size by the constants that they give for ``img_size``."""
    biases = [module for module in model.modules() if isinstance(module, RelativePositionBias)]
    if not biases:
        return model
    sizes: dict[nn.Module, set[tuple[int, int]]] = {bias: set() for bias in biases}
    hooks = [bias.register_forward_pre_hook(lambda bias, size: sizes[bias].add(size)) for bias in biases]
    like = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, _image_channels(model), *img_size, device=like.device, dtype=like.dtype))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The network takes no images of {img_size[0]}×{img_size[1]} pixels; fold parts of networks, and those "
            f"with other inputs, without img_size. ({error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    fixed: dict[nn.Module, nn.Module] = {}
    for bias, seen in sizes.items():
        if len(seen) == 1:
            (size,) = seen
            # without its hooks, which stay
            fixed[bias] = FixedPositionBias(bias.forward(*size), size)
    return replace_modules(model, keeping_hooks(lambda module: fixed.get(module, module)))


def _image_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes: as it says, or those of its first convolution."""
    known = getattr(model, "in_chans", None)
    kinds = (PATConv, nn.Conv2d, PatchConv)  # a PATConv comes before its convolution, which sees a part of the channels
    first = next((module for module in model.modules() if isinstance(module, kinds)), None)
    return int(known or (3 if first is None else first.in_channels))
