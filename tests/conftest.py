"""Fixtures that the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Threads gain nothing on tensors this small. While another process has the cores they wait for each other and the
# tests take 20 times as long. The variable is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

import partialnet  # noqa: F401 - registers the variants with timm

torch.set_num_threads(1)

MAX_PROCESSES = 8  # each takes up to 2 GB

Randomize = Callable[[nn.Module], nn.Module]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core; none beside this one where single files or tests are named, which begin at once so."""
    if any(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_PROCESSES)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """Layers and tensors in double precision unless they are told otherwise."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def randomize() -> Randomize:
    return randomize_parameters


@torch.no_grad()
def randomize_parameters(model: nn.Module) -> nn.Module:
    """Weights, affines and statistics as after training, in place.

    A fresh network's features shrink from layer to layer and its normalisations do nothing, so that errors would
    disappear below any tolerance. Here outputs are of order one, gates vary, and no statistic is 0 or 1.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        leaf = name.rpartition(".")[2]
        if not tensor.is_floating_point():
            continue  # counters, indices
        if leaf == "running_var" or (leaf == "weight" and tensor.ndim == 1):
            tensor.copy_(torch.empty_like(tensor).uniform_(0.5, 1.5))
        elif leaf == "table":
            tensor.copy_(torch.randn_like(tensor))
        elif tensor.ndim > 1:
            tensor.copy_(torch.randn_like(tensor) * (1.0 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.2 * torch.randn_like(tensor))
    return model
