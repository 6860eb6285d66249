"""What only partial-channel networks can show: how they weigh positions, channels and other positions.

Source: paper, Sec. 3.1 and Figs. 3 and 8: the gate of PAT_sp, one weight for each position; the gate of PAT_ch, one for
each channel; the attention of PAT_sf from each position to all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from partialnet.errors import UserError
from partialnet.layers import GaussianSE, SelfAttention2d, SpatialGate
from partialnet.preprocessing import Region

from .cam import Explainer, to_position
from .layers import TargetLayer, stage_of


@dataclass(frozen=True)
class Gate:
    """What one layer weighs in one image.

    Attributes:
        name: Path of the layer in the network.
        stage: Number of its stage, from 1.
        index: Which of its kind in that stage, from 1: the block.
        values: Float32. Of a spatial gate (h, w), of a channel gate (channels,), both in [0, 1]. Of self-attention
            (heads, h, w, h, w): how much a position, by the first two, takes from each position, by the last two; these
            sum to 1.
    """

    name: str
    stage: int
    index: int
    values: np.ndarray

    @property
    def label(self) -> str:
        """Stage and block in words."""
        return f"stage {self.stage}, block {self.index}"

    def statistics(self) -> dict[str, Any]:
        """Mean, deviation, least and greatest value, and the shares that are shut (0) and wide open (1)."""
        values = self.values
        return {
            "layer": self.name,
            "stage": self.stage,
            "block": self.index,
            "shape": list(values.shape),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "min": float(values.min()),
            "max": float(values.max()),
            "share_shut": float((values <= 0).mean()),
            "share_open": float((values >= 1).mean()),
        }


@dataclass(frozen=True)
class Gates:
    """All that a network weighs in one image.

    Attributes:
        spatial: PAT_sp's gates of positions, in the order of the network.
        channel: PAT_ch's gates of channels.
        attention: PAT_sf's attention between positions.
        region: The part of the image that the maps cover, in pixels.
    """

    spatial: tuple[Gate, ...]
    channel: tuple[Gate, ...]
    attention: tuple[Gate, ...]
    region: Region

    def __bool__(self) -> bool:
        return bool(self.spatial or self.channel or self.attention)

    def attention_from(self, point: tuple[float, float]) -> list[tuple[Gate, np.ndarray]]:
        """Each layer's attention from a point (x, y) in pixels of the image, (heads, h, w) each.

        Raises:
            UserError: The network does not see the point.
        """
        found = []
        for gate in self.attention:
            row, column = to_position(point, self.region, gate.values.shape[1:3])
            found.append((gate, gate.values[:, row, column]))
        return found

    def statistics(self) -> dict[str, Any]:
        """Figures for each layer; of attention how far it reaches, ``distance`` in positions, and its ``entropy``."""
        attention = []
        for gate in self.attention:
            heads, height, width = gate.values.shape[:3]
            weights = gate.values.reshape(heads, height * width, height * width)
            places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2)
            distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
            entropy = -(weights * np.log(weights.clip(1e-12))).sum(-1) / max(np.log(height * width), 1e-12)
            attention.append(
                {
                    "layer": gate.name,
                    "stage": gate.stage,
                    "block": gate.index,
                    "heads": heads,
                    "positions": [height, width],
                    "distance": [float(head) for head in (weights * distance).sum(-1).mean(-1)],
                    "entropy": [float(head) for head in entropy.mean(-1)],
                }
            )
        return {
            "spatial": [gate.statistics() for gate in self.spatial],
            "channel": [gate.statistics() for gate in self.channel],
            "attention": attention,
        }


def read_gates(explainer: Explainer, image: Image.Image) -> Gates:
    """What a network weighs in an image; empty if it has no such layers, like most networks.

    Args:
        explainer: The network, in training form.
        image: RGB.

    Raises:
        UserError: The network is folded: its gates are merged with what follows.
    """
    if explainer.checkpoint.folded:
        raise UserError("The network is folded, so its gates are merged; give the run it came from to see them.")
    model = explainer.model
    layers = [explainer.layers[stage] for stage in sorted(explainer.layers)]
    batch = explainer.prepare([image])
    readers: dict[type[nn.Module], Callable[[Any, Sequence[Any]], np.ndarray]] = {
        SpatialGate: _spatial,
        GaussianSE: _channel,
        SelfAttention2d: _attention,
    }
    found: dict[type[nn.Module], dict[str, np.ndarray]] = {kind: {} for kind in readers}
    handles = [
        module.register_forward_pre_hook(_reader(name, read, found[kind]))
        for kind, read in readers.items()
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    try:
        if handles:
            with torch.inference_mode():
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    spatial, channel, attention = (_gates(values, model, layers) for values in found.values())
    return Gates(spatial, channel, attention, explainer.preprocess.region(image.size))


def _gates(values: dict[str, np.ndarray], model: nn.Module, layers: Sequence[TargetLayer]) -> tuple[Gate, ...]:
    gates: list[Gate] = []
    for name, value in values.items():
        stage = stage_of(name, model, layers)
        index = 1 + sum(gate.stage == stage for gate in gates)
        gates.append(Gate(name, stage, index, value))
    return tuple(gates)


def _reader(
    name: str, read: Callable[[Any, Sequence[Any]], np.ndarray], values: dict[str, np.ndarray]
) -> Callable[[nn.Module, Sequence[Any]], None]:
    def note(module: nn.Module, inputs: Sequence[Any]) -> None:
        values[name] = read(module, inputs)

    return note


def _spatial(gate: SpatialGate, inputs: Sequence[Any]) -> np.ndarray:
    return gate.gate(*inputs)[0, 0].float().cpu().numpy()


def _channel(gate: GaussianSE, inputs: Sequence[Any]) -> np.ndarray:
    return gate.gate(*inputs)[0, :, 0, 0].float().cpu().numpy()


def _attention(attention: SelfAttention2d, inputs: Sequence[Any]) -> np.ndarray:
    height, width = inputs[0].shape[2:]
    weights = attention.weights(*inputs)[0].float().cpu()
    return weights.unflatten(2, (height, width)).unflatten(1, (height, width)).numpy()
