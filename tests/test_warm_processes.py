"""The helper that runs commands for other tests: what it tells of commands that end early."""

from __future__ import annotations

from pathlib import Path

import pytest
from warm_processes import WarmProcesses


def test_waiting_for_a_process_that_ends(tmp_path: Path, warm_processes: WarmProcesses) -> None:
    """It fails at once, with what the process has written, whose exit code is there all the same."""
    process = warm_processes.start("predict", "nowhere", "nothing.png", out=tmp_path / "out")
    with pytest.raises(RuntimeError, match="ended early:\npartialnet: There is no file or folder"):
        process.wait_until(lambda: False)
    assert process.wait() == 2


def test_what_a_process_does_at_its_end_counts(tmp_path: Path, warm_processes: WarmProcesses) -> None:
    process = warm_processes.start("--version", out=tmp_path / "out")
    process.wait_until(lambda: process.out.startswith("partialnet, version"))
    assert process.wait() == 0
