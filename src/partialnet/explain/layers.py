"""Which layers' outputs a class activation map is made of: the last layer of each stage, for any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Stages of a network at most; what comes before the last four resolutions is its stem.
MAX_STAGES = 4
_OBSERVED = 2  # images in the run in which layers are watched


@dataclass(frozen=True)
class TargetLayer:
    """The last layer of a stage.

    Attributes:
        stage: Number of the stage, from 1.
        name: The layer's path in the network.
        module: The layer.
        to_map: Brings its output to (B, C, H, W), in memory of its own, which later layers cannot overwrite.
    """

    stage: int
    name: str
    module: nn.Module
    to_map: Callable[[Tensor], Tensor]


def target_layers(model: nn.Module, input_size: tuple[int, int, int]) -> dict[int, TargetLayer]:
    """The last layer of each stage, by the number of the stage; a stage is what has one resolution.

    timm's networks say where their stages end, classifiers as well as ``features_only``, converted and folded ones. Any
    other network is run once and the last layer of each resolution taken, whether its channels come first or last.
    Stages are counted over the last four resolutions, so that stage N of PartialNet, ResNet, ConvNeXt and MobileNet is
    of the same resolution; a transformer of one resolution has one stage.

    Args:
        model: The network.
        input_size: (C, H, W) of its images.

    Raises:
        ValueError: No layer gives a map of more than one position.
    """
    ends = _declared_ends(model) or _observed_ends(model, input_size)
    if not ends:
        raise ValueError(f"{type(model).__name__} has no layer whose output is a map of more than one position.")
    layers = {}
    for stage, end in enumerate(ends[-MAX_STAGES:], 1):
        layers[stage] = TargetLayer(stage, end.name, end.module, _layout(model, end.name, end.channels))
    last = max(layers)
    layers[last] = _before_attention(model, layers[last])
    return layers


def stage_of(name: str, model: nn.Module, layers: Iterable[TargetLayer]) -> int:
    """Number of the stage that holds the layer ``name``: the first that ends with it or later."""
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    number = 0
    for layer in layers:
        number = layer.stage
        end = max(index for path, index in order.items() if path == layer.name or path.startswith(f"{layer.name}."))
        if order[name] <= end:
            break
    return number


class _End(NamedTuple):
    """The last layer of a resolution: its path, the layer, and its channels where they are known."""

    name: str
    module: nn.Module
    channels: int | None


def _declared_ends(model: nn.Module) -> list[_End]:
    """The last layer of each resolution, finest first, as timm's ``feature_info`` has them.

    The layers are also found within networks that return features, where names are flattened or begin with ``model``.
    """
    declared: Any = getattr(model, "feature_info", None) or ()
    modules = dict(model.named_modules())
    ends: dict[int, _End] = {}
    for entry in getattr(declared, "info", declared):
        path = entry.get("module")
        for name in (path, path.replace(".", "_"), f"model.{path}") if path else ():
            if name in modules:
                ends[entry["reduction"]] = _End(name, modules[name], entry.get("num_chs"))
                break
    return [ends[reduction] for reduction in sorted(ends)]


def _observed_ends(model: nn.Module, input_size: tuple[int, int, int]) -> list[_End]:
    """The last layer of each resolution in a run, finest first."""
    ends: dict[tuple[int, int], _End] = {}

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and (found := _map_of(output, input_size)) is not None:
                size, channels = found
                ends[size] = _End(name, module, channels)

        return note

    handles = [module.register_forward_hook(watch(name, module)) for name, module in model.named_modules() if name]
    reference = next(model.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            model(torch.zeros(_OBSERVED, *input_size, device=reference.device, dtype=reference.dtype))
    finally:
        for handle in handles:
            handle.remove()
    smaller_than_input = {size: end for size, end in ends.items() if size != input_size[1:]} or ends
    return [smaller_than_input[size] for size in sorted(smaller_than_input, reverse=True)]


def _map_of(output: Tensor, input_size: tuple[int, int, int]) -> tuple[tuple[int, int], int] | None:
    """Resolution and channels of a layer's output; None if it is no map over each image.

    A map is (B, C, H, W) or (B, H, W, C), whichever is nearer to the shape of the input. Tables have one entry for all
    images, windows and attention have many for one image, or another shape.
    """
    if output.ndim != 4 or output.shape[0] != _OBSERVED:
        return None
    _, first, second, third = output.shape
    _, height, width = input_size
    layouts = [((second, third), first), ((first, second), third)]
    # by how much of a row or column a map of the input's shape would differ
    deviations = [abs(rows * width - columns * height) / max(width, height) for (rows, columns), _ in layouts]
    deviation, nearest = min(zip(deviations, layouts, strict=True), key=lambda pair: pair[0])
    (rows, columns), _ = nearest
    return nearest if rows * columns > 1 and deviation <= 1 else None


def _before_attention(model: nn.Module, layer: TargetLayer) -> TargetLayer:
    """The input of a transformer's last attention, where the classifier reads a token of its own.

    No gradient reaches the other tokens behind it. Source: the grad-cam library's advice for vision transformers.
    """
    norm = getattr(layer.module, "norm1", None)
    if getattr(model, "global_pool", None) != "token" or norm is None:
        return layer
    return TargetLayer(layer.stage, f"{layer.name}.norm1", norm, layer.to_map)


def _layout(model: nn.Module, name: str, channels: int | None) -> Callable[[Tensor], Tensor]:
    """From a layer's output to (B, C, H, W): maps with the channels last, and tokens, are turned round.

    Args:
        model: The network.
        name: The layer's path.
        channels: What the network says to be the number of its channels; not all say where they put them.
    """
    inner: Any = getattr(model, "model", model)  # networks that return features may hold the network
    prefix = int(getattr(inner, "num_prefix_tokens", 0) or 0)
    channels_last = getattr(inner, "output_fmt", None) == "NHWC"
    grid = getattr(getattr(inner, "patch_embed", None), "grid_size", None)
    reroll = getattr(inner, "reroll", None)  # Hiera's tokens are in the order of its windows

    def rows_of(count: int) -> int | None:
        """Rows of a map of so many positions; None where they do not fill the grid, or no square if none is known."""
        rows, columns = (int(grid[0]), int(grid[1])) if grid else (math.isqrt(count),) * 2
        return rows if rows * columns == count else None

    def to_map(x: Tensor) -> Tensor:
        if x.ndim == 3 and reroll is not None:
            return reroll(x, int(name.rpartition(".")[2])).permute(0, 3, 1, 2).clone()
        if x.ndim == 3:  # tokens, (B, N, C)
            if rows_of(x.shape[1]) is None:  # CaiT and XCiT add their class token after the layers of their map
                x = x[:, prefix:]
            count = x.shape[1]
            height = rows_of(count) or math.isqrt(count)
            return x.transpose(1, 2).unflatten(2, (height, count // height)).clone()
        last = channels_last or x.shape[1] != channels == x.shape[3]
        return x.permute(0, 3, 1, 2).clone() if last else x.clone()

    return to_map
