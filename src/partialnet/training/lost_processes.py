"""What the other training processes do when one of them is gone, as when the system has killed it for its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

#: What gloo and NCCL say where another process no longer answers.
_SIGNS = ("gloo/transport", "remote process exit")
#: Time in which a process is expected to notice by itself that another one is gone; on GPUs it may wait for minutes.
SECONDS_TO_NOTICE = 10.0
#: Time that a process takes to end after it has cut its connections.
_SECONDS_TO_END = 5.0
#: Time from a killed process's last connection to its end.
_SECONDS_TO_BE_ORPHANED = 0.2


@dataclass(frozen=True)
class LostProcess:
    """A training process that has ended before the others.

    Attributes:
        rank: Its number, from 0; None if it is not known which one it was.
        code: Its exit code, or minus the number of the signal that killed it; None if that is not known.
        world_size: Number of all processes.
    """

    rank: int | None
    code: int | None
    world_size: int

    @property
    def exit_code(self) -> int:
        """What this process is to end with: that of an error, which may come again; 75 where the other was killed."""
        return self.code if self.code is not None and self.code > 0 else 75

    def __str__(self) -> str:
        if self.rank is None or self.code is None:
            return f"Another of the {self.world_size} training processes was lost; it may have said why."
        place = f"Training process {self.rank} (of 0 to {self.world_size - 1})"
        if self.code > 0:
            return f"{place} ended with exit code {self.code}; it has said why."
        reason = ", as by the system where memory is short" if -self.code == signal.SIGKILL else ""
        return f"{place} was killed by {signal.Signals(-self.code).name}{reason}."


def tells_of_loss(error: BaseException) -> bool:
    """Whether an error says that another training process no longer answers."""
    return isinstance(error, dist.DistNetworkError) or any(sign in str(error) for sign in _SIGNS)


class WatchedStrategy(DDPStrategy):
    """Lightning's DDP, but the processes that it starts are watched by ``ProcessWatch``.

    Lightning's own watch kills this process without a word when another one ends.
    """

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _WatchingLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
        self._parent = os.getppid()

    def is_told_by_first(self) -> bool:
        """Whether the process that has started this one is there to tell the user."""
        if not isinstance(self.cluster_environment, LightningEnvironment) or self.local_rank == 0:
            return False
        time.sleep(_SECONDS_TO_BE_ORPHANED)
        return os.getppid() == self._parent

    def lost_process(self) -> LostProcess:
        """The process that is gone, as far as it can be known here."""
        started = getattr(self._launcher, "procs", [])
        end = time.monotonic() + _SECONDS_TO_END
        while started and time.monotonic() < end:
            if lost := find_lost(started, self.global_rank, self.world_size):
                return lost
            time.sleep(0.05)
        return LostProcess(None, None, self.world_size)


class _WatchingLauncher(_SubprocessScriptLauncher):
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes of this machine, unless a launcher has done that, and run ``function``."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            first = self.cluster_environment.node_rank() * self.num_processes
            ProcessWatch(self.procs, first, self.num_processes * self.num_nodes).start()
        return function(*args, **kwargs)


class ProcessWatch(threading.Thread):
    """Ends this process, in a sentence, if another one is gone and this one waits for it all the same.

    Args:
        started: The processes that this one has started; their ranks follow its own.
        rank: Of this process.
        world_size: Number of all processes.
    """

    def __init__(self, started: Sequence[subprocess.Popen[Any]], rank: int, world_size: int) -> None:
        super().__init__(daemon=True)  # it ends with the process
        self.started = started
        self.rank = rank
        self.world_size = world_size

    def run(self) -> None:
        """Look once a second."""
        while (lost := find_lost(self.started, self.rank, self.world_size)) is None:
            if all(process.poll() == 0 for process in self.started):
                return
            time.sleep(1)
        time.sleep(SECONDS_TO_NOTICE)
        for process in self.started:
            process.kill()
        print(f"\npartialnet: {lost} Continue from the last state with --resume.", file=sys.stderr, flush=True)
        os._exit(lost.exit_code)


def find_lost(started: Sequence[subprocess.Popen[Any]], rank: int, world_size: int) -> LostProcess | None:
    """The process, of those that process ``rank`` has started, that has ended in failure; a killed one rather than
    others, which may have failed for its loss.
    """
    codes = {number: code for number, process in enumerate(started, rank + 1) if (code := process.poll())}
    if not codes:
        return None
    first = min(codes, key=lambda number: codes[number])
    return LostProcess(first, codes[first], world_size)
