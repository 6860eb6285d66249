"""Networks ready to be timed, each built and folded once, and the work that they do."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import partialnet
from partialnet.layers.inference import Runtime


@dataclass(frozen=True)
class Work:
    """What one pass over a batch takes at the least.

    ``values_moved`` counts each convolution's, dense layer's and attention product's inputs, weights and outputs once:
    ``values_per_image`` of them belong to the images, ``values_of_weights`` to the network. Element-wise work, which a
    compiler can merge into those, is left out, so that the traffic is a lower bound. Attention is two products in every
    network of the suite, and what lies between them counts as for two layers: written by one, read by the other.
    """

    params: int
    macs_per_image: float
    values_per_image: int
    values_of_weights: int

    def flops(self, batch_size: int) -> float:
        """Floating-point operations of a batch; a multiply–add is two."""
        return 2 * self.macs_per_image * batch_size

    def bytes_moved(self, batch_size: int, bytes_per_value: int) -> float:
        """Bytes read and written for a batch."""
        return bytes_per_value * (self.values_of_weights + batch_size * self.values_per_image)


@cache
def inference_network(name: str, img_size: int, form: Runtime | None = None) -> nn.Module:
    """The folded network on the CPU in float32, to be copied: ours by ``fold``, others re-parameterised and folded.

    ``form`` is what ``fold`` calls runtime: "torch" makes matrix products of the convolutions that are.
    """
    if form is not None:  # building and folding a large network takes seconds
        return partialnet.fold(inference_network(name, img_size), runtime=form)
    torch.manual_seed(0)
    return partialnet.fold(timm.create_model(name).eval(), img_size)


@cache
def work(name: str, img_size: int) -> Work:
    """Parameters, multiply–adds and least traffic of the folded network."""
    model = copy.deepcopy(inference_network(name, img_size)).to("meta")

    def count(batch_size: int, mapping: dict[Any, Any] | None) -> int:
        images = torch.empty(batch_size, 3, img_size, img_size, device="meta")
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
            model(images)
        return counter.get_total_flops()

    moved = dict.fromkeys(flop_registry, _values)
    one, two = count(1, moved), count(2, moved)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Work(params, count(1, None) / 2, two - one, 2 * one - two)


def _values(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Numbers in all tensors that one operation reads and writes, from their shapes."""
    outputs = (out_shape,) if isinstance(out_shape, torch.Size) else tuple(out_shape)
    return sum(math.prod(shape) for shape in (*args, *outputs) if isinstance(shape, torch.Size))


def missing(names: set[str]) -> list[str]:
    """Those names that this version of timm does not have."""
    return sorted(name for name in names if not timm.is_model(name))
