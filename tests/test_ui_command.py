"""``partialnet ui``: it serves until it is interrupted, and says why where it cannot."""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ui_pages import save_networks, serving

from partialnet.cli import main
from partialnet.ui import PageServer

pytest.importorskip("pytorch_grad_cam")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_networks(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def server(runs: tuple[Path, Path]) -> Iterator[PageServer]:
    with serving(runs) as server:
        yield server


def start(*args: Any, cwd: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("DISPLAY", None)
    return subprocess.Popen(
        [sys.executable, "-m", "partialnet", "ui", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment,
        # what runs in the background of a shell ignores the interrupt, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def test_command_serves_and_ends(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """runs/demo by default; Ctrl-C is the way to end it, not a failure."""
    shutil.copytree(runs[0], tmp_path / "runs" / "demo")
    process = start("--no-open", cwd=tmp_path)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Showing demo at http://127.0.0.1:"), process.stderr and process.stderr.read()
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/api/networks")
        assert json.loads(connection.getresponse().read())["networks"][0]["name"] == "demo"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out.strip(), err) == (0, "The page is closed.", "")


def test_command_without_anything_to_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["ui", "--no-open"])
    assert end.value.code == 2
    assert "`partialnet demo`" in capsys.readouterr().err


def test_port_in_use(runs: tuple[Path, Path], server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["ui", str(runs[0]), "--no-open", "--port", str(server.port)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"Port {server.port} is in use" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EACCES])
def test_reasons_for_a_port(number: int) -> None:
    from partialnet.cli.ui import _why_not

    assert "any free one" in _why_not(OSError(number, os.strerror(number)), 80)
