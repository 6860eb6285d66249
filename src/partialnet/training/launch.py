"""Who starts the training processes: torchrun, SLURM, or the first of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from ..errors import UserError


@dataclass(frozen=True)
class Launch:
    """The processes of a run.

    Attributes:
        devices: Processes on each machine.
        num_nodes: Machines.
        environment: How Lightning finds out which of them this is, or starts them; None leaves that to Lightning.
    """

    devices: int
    num_nodes: int
    environment: ClusterEnvironment | None = None


def find_launch(devices: int, num_nodes: int) -> Launch:
    """The processes that torchrun or SLURM has started; else those that were asked for, which are yet to be started.

    Args:
        devices: Processes that were asked for on each machine.
        num_nodes: Machines that were asked for.

    Raises:
        UserError: SLURM does not say how many processes run on each machine.
    """
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return Launch(local, int(os.environ["WORLD_SIZE"]) // local)
    slurm = SLURMEnvironment.detect()
    # a single task of SLURM is a process like any other, which may start more
    if slurm and (tasks := int(os.environ["SLURM_NTASKS"])) > 1:
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError(f"SLURM starts {tasks} tasks without saying where; use --ntasks-per-node, not --ntasks.")
        local = int(os.environ["SLURM_NTASKS_PER_NODE"])
        return Launch(local, tasks // local, SLURMEnvironment(auto_requeue=False))  # we answer its signals ourselves
    return Launch(devices, num_nodes, LightningEnvironment() if slurm else None)


def is_first_process() -> bool:
    """Whether this is the process that speaks to the user, as far as its launcher tells."""
    ranks = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
    return next(ranks, "0") == "0"
