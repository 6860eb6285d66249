"""Replacing the convolutions of any network, timm's, torchvision's or your own, with PATConv."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import nn

from partialnet.arguments import check_count, check_network
from partialnet.complexity import Count, ModuleCounts
from partialnet.errors import UserError
from partialnet.layers import PATConv
from partialnet.layers.attention import AttentionLike
from partialnet.layers.pat_conv import AttentionScope, split_channels
from partialnet.replacement import replace_modules
from partialnet.timm_configuration import configuration_of

#: What a convolution is, by its groups.
KINDS = ("regular", "grouped", "depthwise")
#: A kind, a regular expression searched in the layer's name, several of them, or a function of (name, layer).
Select: TypeAlias = str | Iterable[str] | Callable[[str, nn.Conv2d], bool] | None

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: Layers with at most this many input channels read the image, which has no part to pass on.
_IMAGE_CHANNELS = 4


@dataclass(frozen=True)
class LayerReport:
    """What became of one convolution.

    Attributes:
        name: Its path in the network.
        kind: "regular", "grouped" or "depthwise"; "transposed" or the class name for others.
        shape: Kernel, channels, stride, dilation and groups, for people.
        replaced: Whether a PATConv took its place.
        note: Why not, or which weights were carried over.
        before: Parameters and multiply–adds of the convolution.
        after: The same of what stands in its place.
    """

    name: str
    kind: str
    shape: str
    replaced: bool
    note: str
    before: Count
    after: Count


@dataclass(frozen=True)
class Surgery:
    """A converted network and the report on it.

    Attributes:
        model: The converted copy; the original itself after a dry run.
        layers: One entry for each convolution, in the order of the network.
        input_size: (C, H, W) of the image that multiply–adds are counted for.
        before: Parameters and multiply–adds of the original, not folded.
        after: The same of the converted network.
        options: What ``replace_convs`` was called with, enough to do it again.
    """

    model: nn.Module
    layers: tuple[LayerReport, ...]
    input_size: tuple[int, int, int]
    before: Count
    after: Count
    options: dict[str, Any]

    @property
    def replaced(self) -> tuple[LayerReport, ...]:
        """The layers that a PATConv took the place of."""
        return tuple(layer for layer in self.layers if layer.replaced)

    @property
    def recipe(self) -> dict[str, Any]:
        """Plain data: ``replace_convs(network, **recipe)`` builds the same layers into the same network again.

        Raises:
            UserError: The attention is a function, which has no plain form.
        """
        if callable(self.options["attention"]):
            raise UserError("An attention given as a function cannot be stored with the network; give its name.")
        if callable(self.options["select"]):
            return {**self.options, "select": [f"^{re.escape(layer.name)}$" for layer in self.replaced]}
        return dict(self.options)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "input_size": list(self.input_size),
            "num_replaced": len(self.replaced),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def table(self) -> str:
        """The report as text: each convolution, then the whole network."""
        width = max([len(layer.name) for layer in self.layers] + [20])
        shapes = max([len(layer.shape) for layer in self.layers] + [12])
        lines = [f"{'layer':{width}}  {'kind':10} {'shape':{shapes}}  {'params M':>18}  {'MACs G':>18}  "]
        for layer in self.layers:
            figures = f"{layer.before.params_m:>18.4f}  {layer.before.macs_g:>18.4f}"
            if layer.replaced:
                params = f"{layer.before.params_m:.4f} → {layer.after.params_m:.4f}"
                figures = f"{params:>18}  {f'{layer.before.macs_g:.4f} → {layer.after.macs_g:.4f}':>18}"
            what = "replaced: " if layer.replaced else "kept: "
            lines.append(f"{layer.name:{width}}  {layer.kind:10} {layer.shape:{shapes}}  {figures}  {what}{layer.note}")
        params = f"{self.before.params_m:.3f} → {self.after.params_m:.3f}"
        macs = f"{self.before.macs_g:.3f} → {self.after.macs_g:.3f}"
        count = f"{len(self.replaced)} of {len(self.layers)} replaced"
        lines.append(f"{'network':{width}}  {'':10} {'':{shapes}}  {params:>18}  {macs:>18}  {count}")
        channels, height, width = self.input_size
        lines.append(f"MACs: multiply–adds for one image of {channels}×{height}×{width}; nothing folded.")
        return "\n".join(lines)


def replace_convs(
    model: nn.Module,
    select: Select = None,
    split_ratio: float = 1 / 4,
    attention: AttentionLike = "gaussian_se",
    attention_scope: AttentionScope = "partial",
    dry_run: bool = False,
    input_size: tuple[int, int, int] | None = None,
) -> Surgery:
    """Replace convolutions of a network with PATConv, in a copy.

    Each selected convolution becomes a dense convolution of the leading ``split_ratio`` of the channels with the same
    kernel, stride and dilation; the attended part is average-pooled by the stride and, if its channel count changes,
    projected by a 1×1 convolution, before the attention.

    - Regular: the leading block of the old kernel, [out · r, in · r], is carried over.
    - Grouped and depthwise: the groups go; the partial convolution is dense and fresh.
    - A bias stays with the convolved part, whose values are carried over; the attended part has none.
    - Kept, with the reason in the report: 1×1, even or oblong kernels, paddings that do not keep the resolution (times
      1/stride), transposed convolutions, other dimensions than two, subclasses with a forward of their own, weights
      that are shared or computed by hooks, layers that read the image (up to 4 input channels), and too few channels
      for the ratio.

    A forward pass without data checks that every layer's output has the shape it had.

    Args:
        model: Any network that takes one batch of images. The original is untouched.
        select: "regular", "grouped" or "depthwise", a regular expression searched in the layer's name, a list of
            these, a function of (name, layer), or None for every convolution that can be replaced.
        split_ratio: Share of the channels that is convolved, in (0, 1), rounded down to whole channels.
        attention: See ``partialnet.layers.create_attention``; None or "none" passes the other channels through.
        attention_scope: "partial" attends over the channels that are not convolved, "full" over all.
        dry_run: Only report.
        input_size: (C, H, W) of the image for the check and the multiply–adds; None takes the network's own, or 224²
            pixels where it has none.

    Raises:
        UserError: An option does not fit, or the network does not run on ``input_size``, before or after.

    Source: paper, Table 5, which prints results but no description; the semantics are ours.

    Example:
        >>> import timm, partialnet
        >>> surgery = partialnet.replace_convs(timm.create_model("resnet18"), select="regular", split_ratio=1 / 4)
        >>> len(surgery.replaced), surgery.before.params_m > surgery.after.params_m
        (16, True)
        >>> converted = surgery.model
    """
    check_network(model)
    attention = for_every_layer(attention)
    if isinstance(select, Iterable) and not isinstance(select, str) and not callable(select):
        select = list(select)
    options: dict[str, Any] = {
        "select": select,
        "split_ratio": split_ratio,
        "attention": attention,
        "attention_scope": attention_scope,
    }
    size = input_size or _input_size(model)
    if not isinstance(size, (tuple, list)) or len(size) != 3:
        raise UserError(f"input_size={size!r} must be channels, height and width.")
    for side in size:
        check_count("input_size", side)
    counts_before = _run(model, size, "The network")
    converted, decisions = _converted(model, **options)
    counts_after = _run(converted, size, "The converted network")
    for name, shape in counts_before.shapes.items():
        if name in counts_after.shapes and counts_after.shapes[name] != shape:
            raise UserError(
                f"The output of {name or 'the network'} would be {tuple(counts_after.shapes[name])} instead of "
                f"{tuple(shape)}; leave the layers before it out with select."
            )
    layers = tuple(
        LayerReport(
            decision.name,
            _kind(decision.layer),
            _shape(decision.layer),
            decision.replace,
            decision.note,
            counts_before.count((decision.name,)),
            counts_after.count((decision.name,)),
        )
        for decision in decisions
    )
    return Surgery(
        model if dry_run else converted,
        layers,
        size,
        counts_before.count(("",)),
        counts_after.count(("",)),
        options,
    )


def convert(
    model: nn.Module,
    select: Select = None,
    split_ratio: float = 1 / 4,
    attention: AttentionLike = "gaussian_se",
    attention_scope: AttentionScope = "partial",
) -> nn.Module:
    """The converted copy alone, without checks and counts; for arguments and errors see ``replace_convs``."""
    check_network(model)
    return _converted(model, select, split_ratio, for_every_layer(attention), attention_scope)[0]


def for_every_layer(attention: AttentionLike) -> AttentionLike:
    """An attention that many layers are given: "none" is None.

    Raises:
        UserError: It is a module, which all of them would share.
    """
    if isinstance(attention, nn.Module):
        raise UserError("A module would be shared by all layers; give an attention's name or a function that makes it.")
    return None if attention == "none" else attention


def pat_conv_like(conv: nn.Conv2d, in_channels: int, out_channels: int, **options: Any) -> PATConv:
    """A fresh ``PATConv`` with the kernel, stride and dilation of a convolution, on its device and in its data type."""
    geometry = (conv.kernel_size[0], conv.stride[0], conv.dilation[0])
    return PATConv(in_channels, out_channels, *geometry, **options, device=conv.weight.device, dtype=conv.weight.dtype)


@dataclass(frozen=True)
class _Decision:
    """Whether a convolution is replaced, and why not or which weights are carried over."""

    name: str
    layer: Any
    replace: bool
    note: str


def _converted(
    model: nn.Module, select: Select, split_ratio: float, attention: AttentionLike, attention_scope: AttentionScope
) -> tuple[nn.Module, list[_Decision]]:
    """The converted copy, and what was decided on each convolution."""
    if not isinstance(split_ratio, (int, float)) or not 0 < split_ratio < 1:
        raise UserError(f"split_ratio={split_ratio!r} must lie between 0 and 1.")
    if attention_scope not in ("partial", "full"):
        raise UserError(f"attention_scope={attention_scope!r} must be 'partial' or 'full'.")
    converted = copy.deepcopy(model)
    decisions = list(_decide(converted, _selector(select), split_ratio))
    options = {"split_ratio": split_ratio, "attention": attention, "attention_scope": attention_scope}
    new: dict[nn.Module, nn.Module] = {
        decision.layer: _pat_conv(decision.layer, **options) for decision in decisions if decision.replace
    }
    return replace_modules(converted, lambda module: new.get(module, module)), decisions


def _decide(model: nn.Module, selected: Callable[[str, Any], bool], split_ratio: float) -> Iterator[_Decision]:
    """What to do with each convolution of ``model``, in order."""
    shared = _shared_parameters(model)
    own = [name for name, module in model.named_modules() if type(module).__module__.startswith("partialnet.layers")]
    for name, layer in model.named_modules():
        if not isinstance(layer, _CONVS):
            continue
        around = next((prefix for prefix in own if name.startswith(f"{prefix}.")), None)
        if around is not None:
            reason: str | None = f"part of a {type(model.get_submodule(around)).__name__}"
        else:
            reason = _obstacle(layer, shared, split_ratio)
        if reason is None and not selected(name, layer):
            reason = "not selected"
        yield _Decision(name, layer, reason is None, reason or _carried(layer, split_ratio))


def _selector(select: Select) -> Callable[[str, Any], bool]:
    if select is None:
        return lambda name, layer: True
    if callable(select):
        return select
    wanted = list(select) if isinstance(select, Iterable) and not isinstance(select, str) else [select]
    patterns = []
    for text in wanted:
        if text in KINDS:
            continue
        try:
            patterns.append(re.compile(text))
        except (re.error, TypeError) as error:
            raise UserError(f"select={text!r} is not a regular expression: {error}.") from error
    return lambda name, layer: _kind(layer) in wanted or any(pattern.search(name) for pattern in patterns)


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "transposed"
    if not isinstance(layer, nn.Conv2d):
        return type(layer).__name__
    if layer.groups == 1:
        return "regular"
    return "depthwise" if layer.groups == layer.in_channels else "grouped"


def _shape(layer: Any) -> str:
    parts = ["×".join(map(str, layer.kernel_size)), f"{layer.in_channels}→{layer.out_channels}"]
    parts += [f"stride {layer.stride[0]}"] if max(layer.stride) > 1 else []
    parts += [f"dilation {layer.dilation[0]}"] if max(layer.dilation) > 1 else []
    return " ".join(parts)


def _obstacle(layer: Any, shared: set[nn.Module], split_ratio: float) -> str | None:
    """Why a convolution cannot become a PATConv; None if it can."""
    if _kind(layer) == "transposed":
        return "transposed"
    if not isinstance(layer, nn.Conv2d):
        return "not two-dimensional"
    if max(layer.kernel_size) == 1:
        return "1×1: it only mixes channels"
    if type(layer) is not nn.Conv2d:
        return f"a {type(layer).__name__} computes something other than Conv2d"
    if layer._forward_pre_hooks or layer._forward_hooks:
        return "hooks look at it or compute its weight"
    if layer in shared:
        return "its weight is used elsewhere, too"
    for what in ("kernel_size", "stride", "dilation"):
        values = getattr(layer, what)
        if values[0] != values[1]:
            return f"{what.removesuffix('_size')} {values[0]}×{values[1]} is not square"
    kernel, dilation, stride = layer.kernel_size[0], layer.dilation[0], layer.stride[0]
    if kernel % 2 == 0:
        return f"the kernel {kernel}×{kernel} is even"
    same = dilation * (kernel // 2)
    padding = (same, same) if layer.padding == "same" and stride == 1 else layer.padding
    if padding != (same, same):
        return f"padding {layer.padding!r} instead of {same} changes the resolution"
    if layer.padding_mode != "zeros":
        return f"padding_mode={layer.padding_mode!r}; PATConv pads with zeros"
    if layer.in_channels <= _IMAGE_CHANNELS:
        return f"{layer.in_channels} input channels: it reads the image"
    try:
        split_channels(layer.in_channels, split_ratio)
        split_channels(layer.out_channels, split_ratio)
    except ValueError:
        return f"{layer.in_channels}→{layer.out_channels} channels are too few for split_ratio={split_ratio:.4g}"
    return None


def _shared_parameters(model: nn.Module) -> set[nn.Module]:
    """Modules with a parameter that another module has, too."""
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(parameter, []).append(module)
    return {module for modules in users.values() if len(modules) > 1 for module in modules}


def _carried(layer: Any, split_ratio: float) -> str:
    ins, outs = split_channels(layer.in_channels, split_ratio), split_channels(layer.out_channels, split_ratio)
    bias = ", bias of the convolved part kept" if layer.bias is not None else ""
    kernel = f"kernel[:{outs}, :{ins}] kept" if layer.groups == 1 else f"dense {ins}→{outs}, fresh weights"
    return kernel + bias


def _pat_conv(layer: nn.Conv2d, **options: Any) -> PATConv:
    """What takes the place of a convolution, with the weights that carry over."""
    try:
        new = pat_conv_like(layer, layer.in_channels, layer.out_channels, bias=layer.bias is not None, **options)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"A {_shape(layer)} convolution cannot become a PATConv: {error}") from error
    with torch.no_grad():
        outs, ins = new.conv.weight.shape[:2]
        if layer.groups == 1:
            new.conv.weight.copy_(layer.weight[:outs, :ins])
        if layer.bias is not None and new.conv.bias is not None:
            new.conv.bias.copy_(layer.bias[:outs])
    return new.train(layer.training)


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """The network's own input size, or 224² pixels of the first convolution's channels."""
    config = configuration_of(model)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    _, height, width = config.get("input_size") or (3, 224, 224)
    return channels, height, width


def _run(model: nn.Module, input_size: tuple[int, int, int], what: str) -> ModuleCounts:
    try:
        return ModuleCounts(model, input_size)
    except Exception as error:  # whatever a network's own code raises
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"{what} does not run on one image of {'×'.join(map(str, input_size))}: {lines[0]} "
            "Give another input_size, or convert the part that takes images."
        ) from error


def check_options(options: dict[str, Any]) -> None:
    """Refuse options that ``convert`` does not have.

    Raises:
        UserError: Names the unknown option and the nearest known one.
    """
    known = [name for name in signature(convert).parameters if name != "model"]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise UserError(f"Surgery has no option {name!r}; it has {', '.join(near or known)}.")
