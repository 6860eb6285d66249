"""Weights from one network into another: what fits, what is new, what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
from torch import Tensor

from partialnet.errors import UserError
from partialnet.messages import listed

from .classifier import Checkpoint, load
from .pretrained import load_pretrained


@dataclass(frozen=True)
class Fit:
    """The result of looking for each of one network's tensors in another.

    Attributes:
        tensors: What fits in name and shape, under the names of the network that takes it.
        new: Names in that network for which nothing fits.
        left: Names in the other network that nothing takes.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    new: list[str]
    left: list[str]


def fit(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    names: Callable[[str], Iterable[str]] = lambda name: (name,),
) -> Fit:
    """Find what of ``given`` fits into ``own``; ``names`` tells what a given tensor may be called there."""
    tensors: dict[str, Tensor] = {}
    left: list[str] = []
    for name, tensor in given.items():
        found = next((other for other in names(name) if other in own), None)
        if found is not None and own[found].shape == tensor.shape:
            tensors[found] = tensor
        elif found is None:
            left.append(name)
    return Fit(tensors, [name for name in own if name not in tensors], left)


def open_weights(source: str) -> Checkpoint:
    """A checkpoint whose weights another network is to start from; a model name of timm means its pretrained weights.

    Raises:
        UserError: It is folded, or nothing usable; or a name whose pretrained weights are not on this machine.
    """
    if timm.is_model(source) and not Path(source).exists():
        return load_pretrained(source)
    checkpoint = load(source)
    refuse_folded(source, bool(checkpoint.folded))
    return checkpoint


def refuse_folded(source: str, folded: bool) -> None:
    """Raise UserError for weights in the form for inference."""
    if folded:
        raise UserError(f"{source!r} is folded for inference and cannot be trained; give the run it came from.")


def refuse_strangers(body: Sequence[str], found: Mapping[str, Tensor], place: str, source: str, given: str) -> None:
    """Raise UserError where less than half of a network's layers are found in another.

    Args:
        body: Names of the tensors that both should have.
        found: What fits.
        place: What ``body`` is, for the error: "below the head of NETWORK".
        source: Where the other network is from.
        given: Name of the other network.
    """
    matched = sum(name in found for name in body)
    if 2 * matched < len(body):
        # a file also tells the arguments of its network, which the name alone lacks
        model = source if Path(source).exists() else given
        raise UserError(
            f"{matched or 'None'} of the {len(body)} tensors {place} are in {source!r}, which is a {given}; choose "
            f"--model {model}, or other weights."
        )


def differing(new: Sequence[str], left: Sequence[str]) -> list[str]:
    """Sentences on the tensors that are new though they should not be, and on those that nothing takes.

    BatchNorm's counters of batches are passed over, as nothing depends on them.
    """
    new, left = ([name for name in names if not name.endswith("num_batches_tracked")] for names in (new, left))
    sentences = [f"NEW, because they are missing there or have another shape: {listed(new)}."] if new else []
    return sentences + ([f"NOT USED: {listed(left)}."] if left else [])


def numbers(values: Sequence[float]) -> str:
    """Means or deviations of colours, in words."""
    return ", ".join(f"{value:.3g}" for value in values)
