"""What the other training processes do when one of them is gone, as when the system has killed it for its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from partialnet.errors import RunInterrupted

from .launch import start_processes
from .progress_bar import say

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
        reason = ", perhaps by the system for its memory" if -self.code == signal.SIGKILL else ""
        return f"{place} was killed by {signal.Signals(-self.code).name}{reason}."


def tells_of_loss(error: BaseException) -> bool:
    """Whether an error says that another training process no longer answers."""
    return isinstance(error, dist.DistNetworkError) or any(sign in str(error) for sign in _SIGNS)


class OtherProcesses:
    """The other processes of a run; those of this machine are started and watched, unless a launcher has started them.

    Args:
        trainer: Lightning's, of several processes, before it begins.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        strategy: Any = trainer.strategy
        self.environment = strategy.cluster_environment
        self.rank = trainer.global_rank
        self.world_size = trainer.world_size
        self.started: list[subprocess.Popen[Any]] = []
        self._parent = os.getppid()
        if not self.environment.creates_processes_externally:
            # Lightning would start them itself, but kill this process without a word when one of them ends
            self.started = start_processes(self.environment, trainer.num_devices, self.world_size)
            strategy.launcher.procs = self.started  # to which it passes SIGTERM on, and a second Ctrl-C
            ProcessWatch(self.started, self.rank, self.world_size).start()

    def end_with(self, error: RuntimeError, resume_command: Sequence[str]) -> NoReturn:
        """End this process, as another one is gone.

        Args:
            error: What has told of it.
            resume_command: Subcommand, arguments and options that continue the run.

        Raises:
            RunInterrupted: The other one was killed, and this process is the one to tell the user.
            SystemExit: Another process tells the user, or the other one has failed by itself.
        """
        lost = self._lost()
        if self._is_told_by_first():
            sys.exit(0)
        if lost.exit_code != 75:
            say(str(lost))
            sys.exit(lost.exit_code)
        raise RunInterrupted(str(lost), resume_command) from error

    def _is_told_by_first(self) -> bool:
        """Whether the process that has started this one is there to tell the user."""
        if not isinstance(self.environment, LightningEnvironment) or self.environment.local_rank() == 0:
            return False
        time.sleep(_SECONDS_TO_BE_ORPHANED)
        return os.getppid() == self._parent

    def _lost(self) -> LostProcess:
        """The process that is gone, as far as it can be known here."""
        end = time.monotonic() + _SECONDS_TO_END
        while self.started and time.monotonic() < end:
            if lost := find_lost(self.started, self.rank, self.world_size):
                return lost
            time.sleep(0.05)
        return LostProcess(None, None, self.world_size)


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
    """The process that has ended in failure, of those that process ``rank`` has started; None if none has.

    Of several it is one that was killed, as the others may have failed because they lost it.
    """
    codes = {number: code for number, process in enumerate(started, rank + 1) if (code := process.poll())}
    if not codes:
        return None
    first = min(codes, key=lambda number: codes[number])
    return LostProcess(first, codes[first], world_size)
