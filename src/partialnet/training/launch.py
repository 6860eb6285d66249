"""Who starts the training processes: torchrun, SLURM, or the first of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from partialnet.errors import UserError

_TASKS_ON_NODE = "SLURM_NTASKS_PER_NODE"


@dataclass(frozen=True)
class Launch:
    """The processes of a run.

    Attributes:
        devices: Processes on each machine.
        num_nodes: Machines.
        environment: How Lightning finds out which of them this is, or starts them.
    """

    devices: int
    num_nodes: int
    environment: ClusterEnvironment

    @property
    def world_size(self) -> int:
        """Number of all processes."""
        return self.devices * self.num_nodes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes, and speaks to the user."""
        return self.world_size == 1 or _is_first(self.environment)


def find_launch(devices: int, num_nodes: int) -> Launch:
    """The processes that torchrun or SLURM has started; else those that were asked for, which are yet to be started.

    Args:
        devices: Processes that were asked for on each machine.
        num_nodes: Machines that were asked for.

    Raises:
        UserError: SLURM does not say how many processes run on each machine.
    """
    environment = _environment()
    if isinstance(environment, LightningEnvironment):
        return Launch(devices, num_nodes, environment)
    local = int(os.environ["LOCAL_WORLD_SIZE" if isinstance(environment, TorchElasticEnvironment) else _TASKS_ON_NODE])
    return Launch(local, environment.world_size() // local, environment)


def is_first_process() -> bool:
    """Whether this is the process that prints to the user, as far as the launcher shows."""
    return _is_first(_environment())


def _environment() -> ClusterEnvironment:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # a single task of SLURM is a process like any other, which may start more
    if SLURMEnvironment.detect() and (tasks := int(os.environ["SLURM_NTASKS"])) > 1:
        if _TASKS_ON_NODE not in os.environ:
            raise UserError(f"SLURM starts {tasks} tasks without saying where; use --ntasks-per-node, not --ntasks.")
        return SLURMEnvironment(auto_requeue=False)  # we answer its signals ourselves
    return LightningEnvironment()


def _is_first(environment: ClusterEnvironment) -> bool:
    return environment.node_rank() == environment.local_rank() == 0
