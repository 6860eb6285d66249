"""Random numbers that follow from what they are for, not from what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What a random number is for; each purpose has its own stream, so that none shifts another
ORDER, IMAGE, ERASING, SIZE, MIX, REPLACEMENT, BATCH_ORDER = range(1, 8)


def _words(*key: int) -> list[int]:
    """A key for numpy's seed sequence, which takes no negative numbers."""
    return [part % 2**64 for part in key]


def generator(*key: int) -> np.random.Generator:
    """A generator of its own, by what the number is for and what it belongs to."""
    return np.random.default_rng(_words(*key))


def seed_everything(*key: int) -> None:
    """Seed all generators that transforms draw from."""
    for_python, for_numpy, for_torch = np.random.SeedSequence(_words(*key)).generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)  # noqa: NPY002 - timm draws from numpy's old generator
    torch.default_generator.manual_seed(for_torch)


@contextmanager
def random_state_restored() -> Iterator[None]:
    """Leave the process's generators as they were: without workers, it is the training process that reads."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
