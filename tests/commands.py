"""Run commands as people do, and what a mistake must look like."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CLASSES = ("cat", "dog", "Übergröße")


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


def process(*args: Any, cwd: Path | None = None) -> Result:
    """Run a command in a process of its own."""
    arguments = [sys.executable, "-m", "partialnet", *map(str, args)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=cwd, timeout=600)  # cores may be shared
    return Result(done.returncode, done.stdout, done.stderr)


def assert_mistake(result: Result, *parts: str) -> None:
    """Exit code 2, nothing on stdout, and on stderr one sentence, or click's hint at the usage."""
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    if lines[0].startswith("Usage:"):
        assert sum(line.startswith("Error: ") for line in lines) == 1
        assert len(lines) <= 4
    else:
        assert len(lines) == 1
        assert lines[0].startswith("partialnet: ")
    for part in parts:
        assert part in result.err


NUM_PHOTOS = 15
