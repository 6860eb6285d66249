"""``partialnet ui``: it serves until it is interrupted, and says why where it cannot."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command, assert_mistake
from ui_pages import photo_bytes
from warm_processes import WarmProcesses

from partialnet.ui import PageServer, Viewer

pytest.importorskip("pytorch_grad_cam")


def test_command_serves_and_ends(page_runs: tuple[Path, Path], tmp_path: Path, warm_processes: WarmProcesses) -> None:
    """runs/demo by default; Ctrl-C is the way to end it, not a failure."""
    shutil.copytree(page_runs[0], tmp_path / "runs" / "demo")
    process = warm_processes.start("ui", "--no-open", cwd=tmp_path, out=tmp_path / "out")
    process.wait_until(lambda: process.out.endswith("\n"))
    found = re.match(r"Showing demo at http://127\.0\.0\.1:(\d+)/", process.out)
    assert found is not None, process.err
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
    connection.request("GET", "/api/networks")
    assert json.loads(connection.getresponse().read())["networks"][0]["name"] == "demo"
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0, process.err
    assert process.out.partition("\n")[2].strip() == "The page is closed."
    assert process.err == ""


def test_a_second_interrupt_ends_at_once(
    page_runs: tuple[Path, Path], tmp_path: Path, warm_processes: WarmProcesses
) -> None:
    """Where a question in hand keeps the command from ending."""
    slow = "import time, partialnet.ui; partialnet.ui.PageServer.server_close = lambda self: time.sleep(60)"
    process = warm_processes.start("ui", page_runs[0], "--no-open", out=tmp_path / "out", before=slow)
    process.wait_until(lambda: process.out.endswith("\n"))
    process.send_signal(signal.SIGINT)
    process.wait_until(lambda: process.out.endswith("closed.\n"))
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    assert process.err == ""


def test_command_without_anything_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    assert_mistake(command("ui", "--no-open"), "`partialnet demo`")


def test_exported_file_on_a_machine_with_a_gpu(
    page_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """Its runtime computes on the CPU, which is no other network's affair."""
    file = tmp_path / "net.onnx"
    assert command("export", page_runs[0], "-o", file).code == 0
    answers: list[dict[str, Any]] = []

    class OnePhoto:
        url = "http://127.0.0.1:1/"

        def __init__(self, viewer: Viewer, port: int) -> None:
            self.viewer = viewer

        def serve_forever(self) -> None:
            answers.append(self.viewer.add_photo(photo_bytes(), "a.png"))

        def server_close(self) -> None:
            pass

    monkeypatch.setattr("partialnet.ui.PageServer", OnePhoto)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command("ui", file, "--no-open").code == 0
    assert len(answers[0]["networks"][0]["classes"]) == 3
    assert_mistake(command("ui", file, "--no-open", "--device", "cuda"), "Exported files run on the CPU")


def test_port_in_use(page_runs: tuple[Path, Path], page_server: PageServer, command: Command) -> None:
    refused = command("ui", page_runs[0], "--no-open", "--port", page_server.port)
    assert_mistake(refused, f"Port {page_server.port} is in use")


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EACCES])
def test_reasons_for_a_port(number: int) -> None:
    from partialnet_cli.ui import _why_not

    assert "any free one" in _why_not(OSError(number, os.strerror(number)), 80)
