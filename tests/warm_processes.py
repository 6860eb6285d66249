"""Commands in processes that begin with everything imported, as imports take longer than most of these commands."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

# Reads a job as a line of JSON. A start is answered by the number of the new process, which goes on as
# `python -m partialnet ARGUMENTS` would after its imports; a wait by its exit code; a look by whether it has ended.
SERVER = """
import json, os, runpy, signal, sys, traceback
import torch
torch.set_num_threads(1)
import torch.utils.tensorboard
import partialnet_cli, partialnet.demo, partialnet.detection.run, partialnet.search.run, partialnet.training.run

def run(job):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for name in ("out", "err")]
    for number, handle in enumerate((nothing, *files)):
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(job["cwd"])
    os.environ.update(job["variables"])
    sys.argv = ["partialnet", *job["arguments"]]
    code = 0
    try:
        exec(job["before"], {})
        runpy.run_module("partialnet", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
    elif "look" in job:
        ended = os.waitid(os.P_PID, job["look"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
        print(int(ended is not None), flush=True)
    else:
        pid = os.fork()
        if not pid:
            run(job)
        print(pid, flush=True)
"""


class WarmProcesses:
    """Starts commands from a process that has imported what they need."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def start(
        self,
        *arguments: Any,
        out: Path,
        cwd: Path = Path(),
        before: str = "",
        **variables: str,
    ) -> WarmProcess:
        """``python -m partialnet ARGUMENTS``.

        Args:
            out: Where its output goes: stdout into this file, stderr into the one that ends in ``.err``.
            before: Python to run in the process before the command.
            variables: Of its environment, besides this process's.
        """
        err = out.with_name(f"{out.name}.err")
        for path in (out, err):
            path.unlink(missing_ok=True)
        job = {
            "arguments": [str(argument) for argument in arguments],
            "out": str(out.absolute()),
            "err": str(err.absolute()),
            "cwd": str(cwd.absolute()),
            "before": before,
            "variables": variables,
        }
        return WarmProcess(self, int(self.ask(job)), out, err)

    def ask(self, job: dict[str, Any], timeout: float = 300) -> str:
        """The server's answer.

        Raises:
            TimeoutError: There was none in time.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            raise TimeoutError(f"no answer to {job}")
        return self._server.stdout.readline()

    def __enter__(self) -> WarmProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.communicate()


class WarmProcess:
    """A started command.

    Attributes:
        pid: Its number.
    """

    def __init__(self, processes: WarmProcesses, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self._processes, self._out, self._err = processes, out, err

    @property
    def out(self) -> str:
        """What it has written to stdout by now."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        """What it has written to stderr by now."""
        return self._err.read_text() if self._err.exists() else ""

    def wait_until(self, condition: Callable[[], object], timeout: float = 200) -> None:
        """Until something has come about that is seen from outside.

        Raises:
            RuntimeError: The process has ended without it; the message is what it has written.
            TimeoutError: It has not come about in time.
        """
        end = time.monotonic() + timeout
        while True:
            ended = self._processes.ask({"look": self.pid}).strip() == "1"  # first, as its last act counts as well
            if condition():
                return
            if ended:
                raise RuntimeError(f"the process has ended early:\n{self.out}{self.err}")
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(self.err)
            time.sleep(0.002)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """Its exit code, once it has ended; minus the number of the signal that killed it."""
        try:
            return int(self._processes.ask({"wait": self.pid}, timeout))
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise
