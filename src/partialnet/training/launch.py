"""Who starts the training processes: torchrun, SLURM, or the first of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

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


def start_processes(environment: ClusterEnvironment, devices: int, world_size: int) -> list[subprocess.Popen[Any]]:
    """Start this machine's other processes by the command of this one.

    By their variable ``LOCAL_RANK`` Lightning takes all of them, this one too, for processes of a launcher.

    Args:
        environment: Where the processes find one another.
        devices: Processes on this machine, with this one.
        world_size: Number of all processes.
    """
    module = sys.modules["__main__"].__spec__
    script = ["-m", module.name] if module else [os.path.abspath(sys.argv[0])]
    os.environ |= {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
    }
    command = [sys.executable, *script, *sys.argv[1:]]
    return [subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}) for rank in range(1, devices)]


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
