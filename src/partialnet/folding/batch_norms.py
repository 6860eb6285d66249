"""Take every BatchNorm out of a network: into the layer before it, into the one behind it, or as scale and shift."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from timm.layers import BatchNormAct2d, DropBlock2d, DropPath, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from partialnet.layers.affine import (
    ChannelAffine,
    FeatureAffine,
    absorbs_input_affine,
    batch_norm_affine,
    fold_input_affine,
    fold_output_affine,
    is_linear_layer,
)
from partialnet.replacement import replace_modules

from .hooks import has_hooks
from .module_flow import ModuleFlow, module_flow

_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
_KINDS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d),
    *_WITH_ACTIVATION,
)
#: What does nothing at inference
_PASSES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, DropPath, DropBlock2d, StochasticDepth)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a BatchNorm with statistics of its own, frozen and with activation included.

    Subclasses with another forward, and norms that use each batch's statistics, are none.
    """
    kind = next((kind for kind in reversed(_KINDS) if isinstance(module, kind)), None)
    if kind is None or type(module).forward is not kind.forward or "forward" in vars(module):
        return False
    return isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Replace, in ``model`` itself, every BatchNorm by what has the same outputs at inference.

    It goes into the convolution or Linear before it; else into the one behind it, if that has neither padding nor
    groups; else it becomes a scale and a shift. The first two are done where symbolic tracing shows that the value
    between the two is used by nothing else. BatchNorms with hooks stay.

    A BatchNorm1d behind or before a Linear of as many features is taken to normalise features, (B, C).

    Raises:
        ValueError: A BatchNorm is in training mode.
    """
    norms = [module for module in model.modules() if is_batch_norm(module)]
    if not norms:
        return model
    affines = {norm: batch_norm_affine(norm, torch.empty(0)) for norm in norms}
    # a ChannelAffine that one of our own layers ends in can be absorbed, too
    ends = [module for module in model.modules() if isinstance(module, ChannelAffine)]
    flow = module_flow(
        model, lambda module: is_linear_layer(module) or isinstance(module, (*_KINDS, ChannelAffine)), {*norms, *ends}
    )
    fixed = flow.read | set(_held_elsewhere(model)) | {module for module in model.modules() if has_hooks(module)}
    classifier = set(_classifier(model))
    new: dict[nn.Module, nn.Module] = {}
    affines |= {module: batch_norm_affine(module, torch.empty(0)) for module in ends}
    in_order = [module for module in flow.calls if module in affines]
    for norm in in_order + [norm for norm in norms if norm not in flow.calls]:
        if norm in fixed:
            continue
        scale, shift = affines[norm]
        before = _partner(flow, norm, "before")
        if before is not None and before not in fixed and _fits(flow, norm, before, len(scale), output=True):
            new[before] = fold_output_affine(new.get(before, before), scale, shift)
            _take_out(flow, norm, new)
            continue
        behind = None if isinstance(norm, _WITH_ACTIVATION) else _partner(flow, norm, "behind")
        if (
            behind is not None
            and behind not in fixed | classifier
            and absorbs_input_affine(behind)
            and _fits(flow, norm, behind, len(scale), output=False)
        ):
            new[behind] = fold_input_affine(new.get(behind, behind), scale, shift)
            _take_out(flow, norm, new)
        elif not isinstance(norm, ChannelAffine):
            new[norm] = _with_activation(norm, _affine(norm, scale, shift))
    return replace_modules(model, lambda module: new.get(module, module))


def _passes(module: nn.Module) -> bool:
    return isinstance(module, _PASSES) and not has_hooks(module)


def _partner(flow: ModuleFlow, norm: nn.Module, side: str) -> nn.Module | None:
    """The layer before or behind ``norm``, if at every call the one feeds the other and nothing else."""
    calls = flow.calls.get(norm, [])
    if not calls or any(call.kwargs or len(call.args) != 1 for call in calls):
        return None
    there, back = (flow.producer, flow.consumer) if side == "before" else (flow.consumer, flow.producer)
    met = [there(call, _passes) for call in calls]
    if any(node is None for node in met):
        return None
    layers = {flow.layers[node] for node in met if node is not None}
    layer = layers.pop()
    if layers or not is_linear_layer(layer) or set(flow.calls[layer]) != set(met):
        return None
    # nothing else may use the value between the two, whichever side we came from
    pairs = [(node, call) if side == "before" else (call, node) for node, call in zip(met, calls, strict=True)]
    if any(node is None or flow.consumer(node, _passes) is not call for node, call in pairs):
        return None
    return layer if {back(node, _passes) for node in met if node is not None} == set(calls) else None


def _fits(flow: ModuleFlow, norm: nn.Module, layer: nn.Module, channels: int, output: bool) -> bool:
    """Whether ``norm`` and ``layer`` have their channels in the same dimension."""
    if not isinstance(layer, nn.Linear):
        return channels == (layer.out_channels if output else layer.in_channels)
    # a Linear counts its last dimension, a norm of images the second of four
    if not isinstance(norm, (nn.BatchNorm1d, nn.SyncBatchNorm)):
        return False
    return channels == (layer.out_features if output else layer.in_features) and not _is_a_map(flow, norm)


def _is_a_map(flow: ModuleFlow, norm: nn.Module) -> bool:
    """Whether a convolution made what ``norm`` normalises, so that positions follow its channels."""

    def passes(module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) or not (is_linear_layer(module) or isinstance(module, nn.Flatten))

    sources = [flow.producer(node, passes) for node in flow.calls[norm]]
    return any(source is not None and not isinstance(flow.layers[source], nn.Flatten) for source in sources)


def _take_out(flow: ModuleFlow, norm: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    new[norm] = _with_activation(norm, nn.Identity())
    if not isinstance(norm, _WITH_ACTIVATION):
        flow.remove(norm)


def _affine(norm: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    if isinstance(norm, (nn.BatchNorm1d, nn.SyncBatchNorm)):
        return FeatureAffine(scale, shift)
    return ChannelAffine(scale, shift, spatial_dims=3 if isinstance(norm, nn.BatchNorm3d) else 2)


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) and not has_hooks(module)


def _with_activation(norm: nn.Module, affine: nn.Module) -> nn.Module:
    """``affine`` and what the norm does besides, under the names that timm has for it."""
    rest = [(name, getattr(norm, name, None)) for name in ("drop", "act")] if isinstance(norm, _WITH_ACTIVATION) else []
    parts = [(name, part) for name, part in rest if part is not None and not _does_nothing(part)]
    whole = nn.Sequential(OrderedDict([("affine", affine), *parts])) if parts else affine
    # networks ask their norms for it
    whole.num_features = len(norm.running_mean) if hasattr(norm, "running_mean") else None  # type: ignore
    return whole.eval()


def _held_elsewhere(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that some module also keeps in a plain attribute, list or dict, where they cannot be replaced."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            if isinstance(value, dict):
                value = list(value.values())
            values = value if isinstance(value, (list, tuple)) else [value]
            yield from (item for item in values if isinstance(item, nn.Module))


def _classifier(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that users exchange for another task, so they must not absorb a norm of the features."""
    for module in model.modules():
        get_classifier = getattr(module, "get_classifier", None)
        if callable(get_classifier):
            heads = get_classifier()
            for head in heads if isinstance(heads, (list, tuple)) else [heads]:
                if isinstance(head, nn.Module):
                    yield from head.modules()
