"""Several training processes learn what one with the same effective batch learns."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from training_runs import DRAW_NOTHING, ON_ONE_CORE, TINY, metrics, write_photos
from warm_processes import WarmProcesses

from partialnet.errors import UserError
from partialnet.training import lost_processes
from partialnet.training.config import TrainConfig
from partialnet.training.launch import find_launch, is_first_process
from partialnet.training.lost_processes import ProcessWatch, find_lost
from partialnet.training.machine import threads
from partialnet.training.run import train
from partialnet.training.settings import as_yaml, create_settings
from partialnet.training.states import StateFiles

SETTINGS: dict[str, Any] = {
    "model_args": TINY,
    "img_size": 32,
    "epochs": 2,
    "batch_size": 4,
    "warmup_epochs": 1,
    "lr": 3e-3,
    "lr_batch": 8,
    "drop_path_rate": 0.0,  # drawn in each process, so it would differ
    "mixup": 0.2,
    "cutmix": 1.0,
    "ema": 0.9,
    "max_unreadable_share": 0.1,
    "sync_bn": True,
    **ON_ONE_CORE,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_photos(tmp_path_factory.mktemp("data") / "photos", 15)
    (root / "red" / "03.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with all of the batch."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(create_settings(TrainConfig, {**SETTINGS, "batch_size": 8}), str(photos), folder)
    return folder


def arguments(photos: Path, folder: Path) -> list[str]:
    """Of ``partialnet``, for a training in that folder."""
    config = folder.with_suffix(".yaml")
    config.write_text(as_yaml(create_settings(TrainConfig, SETTINGS)))
    return ["train", str(photos), "--config", str(config), "-o", str(folder)]


def start_cold(launcher: list[str], arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    """The command under a launcher, or with the variables that one sets, as a user's process begins."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [*launcher, "-m", "partialnet", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_same_run(folder: Path, alone: Path) -> None:
    rows, expected = metrics(folder), metrics(alone)
    assert len(rows) == len(expected) == 2
    for row, wanted in zip(rows, expected, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert row[name] == pytest.approx(wanted[name], abs=1e-4), name
    names = [set(safetensors.torch.load_file(path / "model.safetensors")) for path in (folder, alone)]
    assert names[0] == names[1]
    assert (folder / "unreadable_images.txt").read_text() == "red/03.png\n"


def test_two_devices(photos: Path, alone: Path, tmp_path: Path, warm_processes: WarmProcesses) -> None:
    """Lightning starts the second process as a user's would be started."""
    process = warm_processes.start(
        *arguments(photos, tmp_path / "run"), "--devices", "2", out=tmp_path / "out", before=DRAW_NOTHING
    )
    assert process.wait() == 0, process.err
    told = process.err
    assert "effective batch 8 (4 images × 2 processes)" in told
    assert told.count("run folder") == told.count("epoch 2/2  loss") == 1
    assert_same_run(tmp_path / "run", alone)


def test_two_machines(photos: Path, alone: Path, tmp_path: Path) -> None:
    """Two launchers that know of each other an address only, as on two machines with a shared disk."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=test"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    machines = [start_cold(launcher, arguments(photos, tmp_path / "run")) for _ in range(2)]
    told = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert_same_run(tmp_path / "run", alone)


def slurm_task(rank: int, tasks: int, **more: str) -> dict[str, str]:
    """What srun sets for one of several tasks, each on a machine of its own."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NNODES": str(tasks),
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank),
        "SLURM_LOCALID": "0",
        **more,
    }


def test_two_tasks_of_slurm(photos: Path, alone: Path, tmp_path: Path, warm_processes: WarmProcesses) -> None:
    port = str(free_port())  # SLURM's jobs have one that follows from the job's number
    command = arguments(photos, tmp_path / "run")
    first = warm_processes.start(
        *command, out=tmp_path / "out", before=DRAW_NOTHING, **slurm_task(0, 2, MASTER_PORT=port)
    )
    # a cold one, as Lightning takes its rank from the environment while it is imported
    second = start_cold([sys.executable], command, **slurm_task(1, 2, MASTER_PORT=port))
    told = second.communicate(timeout=300)[1]
    assert (first.wait(), second.returncode) == (0, 0), (first.err, told)
    assert [text.count("run folder") for text in (first.err, told)] == [1, 0]
    assert_same_run(tmp_path / "run", alone)


def test_processes_that_slurm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm_task(3, 8, SLURM_NTASKS_PER_NODE="4").items():
        monkeypatch.setenv(name, value)
    launch = find_launch(devices=1, num_nodes=1)
    assert (launch.devices, launch.num_nodes) == (4, 2)
    assert isinstance(launch.environment, SLURMEnvironment)
    assert not launch.environment.auto_requeue
    assert not is_first_process()
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="--ntasks-per-node"):
        find_launch(devices=1, num_nodes=1)
    # one task starts the others itself, so Lightning must not take it for all there are
    monkeypatch.setenv("SLURM_NTASKS", "1")
    launch = find_launch(devices=2, num_nodes=1)
    assert (launch.devices, launch.num_nodes) == (2, 1)
    assert isinstance(launch.environment, LightningEnvironment)


@pytest.mark.parametrize(
    ("asked", "given", "expected"), [(3, None, 3), (3, "1", 3), (0, None, 2), (0, "4", 4)], ids=str
)
def test_threads_of_each_process(asked: int, given: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with threads(TrainConfig(threads=asked), processes=2):
            _set_num_threads_if_needed(num_processes=2)  # what Lightning's launcher does
            assert torch.get_num_threads() == expected
            assert os.environ["OMP_NUM_THREADS"] == str(expected)  # for the processes that it starts
        assert torch.get_num_threads() == 4
        assert os.environ.get("OMP_NUM_THREADS") == given
    finally:
        torch.set_num_threads(before)


def test_only_the_first_machine_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines whose processes Lightning starts, told apart by hand."""
    assert is_first_process()
    assert find_launch(devices=2, num_nodes=2).is_first
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_first_process()
    assert not find_launch(devices=2, num_nodes=2).is_first
    assert find_launch(devices=1, num_nodes=1).is_first  # a run of its own


def test_stopping_one_of_two(photos: Path, alone: Path, tmp_path: Path, warm_processes: WarmProcesses) -> None:
    """A signal to the first process stops both after the same step; the continued run is the uninterrupted one."""
    folder = tmp_path / "run"
    command = [*arguments(photos, folder), "--devices", "2"]
    process = warm_processes.start(*command, out=tmp_path / "out")
    process.wait_until(lambda: "training:" in process.err)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, process.err
    assert process.err.count("Stopped by SIGTERM") == 1
    assert not (folder / "curves.png").exists()
    process = warm_processes.start(*command, "--resume", out=tmp_path / "out", before=DRAW_NOTHING)
    assert process.wait() == 0, process.err
    assert_same_run(folder, alone)


# Notes the number of the process that Lightning starts for the other device.
NOTE_OTHER = """
import subprocess
start = subprocess.Popen.__init__
def note(self, *arguments, **options):
    start(self, *arguments, **options)
    if "LOCAL_RANK" in (options.get("env") or ()):
        open({file!r}, "w").write(str(self.pid))
subprocess.Popen.__init__ = note
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_is_killed(killed: int, photos: Path, tmp_path: Path, warm_processes: WarmProcesses) -> None:
    """The one that is left says so and how to continue, and leaves the saved state alone."""
    folder, number = tmp_path / "run", tmp_path / "number"
    command = [*arguments(photos, folder), "--devices", "2", "--epochs", "1000"]
    before = DRAW_NOTHING + NOTE_OTHER.format(file=str(number))
    process = warm_processes.start(*command, out=tmp_path / "out", before=before)
    process.wait_until(lambda: list(folder.glob("state/*-epoch-*.pt")))
    os.kill((process.pid, int(number.read_text()))[killed], signal.SIGKILL)
    assert process.wait() == (75 if killed else -signal.SIGKILL), process.err
    lost = "Training process 1 (of 0 to 1) was killed by SIGKILL" if killed else "Another of the 2 training processes"
    deadline = time.monotonic() + 60
    while not process.err.endswith("--resume\n") and time.monotonic() < deadline:
        time.sleep(0.05)
    told = process.err.replace("\r", "\n").splitlines()[-1]
    assert told.startswith(f"partialnet: {lost}")
    assert told.endswith(f"Continue with: partialnet train {photos} --config {folder}/config.yaml -o {folder} --resume")
    assert "Traceback" not in process.err
    states = StateFiles(folder / "state", print)
    assert states.newest() is not None
    assert states.newest().path == states.files()[0]


@pytest.mark.parametrize(
    ("end", "code", "told"), [("kill -9 $$", 75, "killed by SIGKILL"), ("exit 2", 2, "exit code 2")]
)
def test_waiting_for_a_process_that_is_gone(
    end: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a GPU's process does, which notices nothing; a third one, which waits, too, is ended."""
    monkeypatch.setattr(lost_processes, "SECONDS_TO_NOTICE", 0.0)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with subprocess.Popen(["sleep", "60"]) as waiting, subprocess.Popen(["sh", "-c", end]) as gone:
        gone.wait()
        ProcessWatch([waiting, gone], 4, 8).run()
    assert codes == [code]
    assert waiting.returncode == -signal.SIGKILL
    assert "Training process 6 (of 0 to 7)" in (err := capsys.readouterr().err)
    assert told in err


def test_a_process_that_was_killed_is_the_reason() -> None:
    """Others fail for its loss."""
    with subprocess.Popen(["sh", "-c", "exit 1"]) as failed, subprocess.Popen(["sh", "-c", "kill -9 $$"]) as killed:
        failed.wait()
        killed.wait()
        lost = find_lost([failed, killed], 0, 3)
    assert lost is not None
    assert (lost.rank, lost.code) == (2, -signal.SIGKILL)
    with subprocess.Popen(["true"]) as done:
        done.wait()
        assert find_lost([done], 0, 2) is None
