"""What a measurement depends on: hardware, versions, commit, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("partialnet", "torch", "torchvision", "timm", "numpy", "onnxruntime", "openvino", "nncf")


def environment() -> dict[str, Any]:
    """Hardware, versions, commit, command and time, for a result file; no folder and no host name."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "logical_cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "command": _command(sys.argv),
    }


def place(device: str, threads: int) -> str:
    """Where networks run, in words: the GPU's name for "cuda", otherwise how many CPU threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return "1 CPU thread" if threads == 1 else f"{threads} CPU threads"


def _command(arguments: Sequence[str]) -> str:
    """The command as it was typed; of folders outside the current one only the last part, for they are private."""
    program = Path(arguments[0])
    name = "partialnet" if program.name == "__main__.py" else _without_place(str(program))
    return shlex.join([name, *map(_without_place, arguments[1:])])


def _without_place(argument: str) -> str:
    option, equals, value = argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    here = Path.cwd()
    return f"{option}{equals}{path.relative_to(here) if path.is_relative_to(here) else path.name or value}"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checked-out commit of the source this runs from, with "+changes" if files differ; None outside a checkout."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        run = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True, timeout=10)
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "-uno", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit
