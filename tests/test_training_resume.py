"""A run that is killed at any moment ends with the same bits as one that is not."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from training_runs import write_photos

from partialnet.training.signals import StopSignals

# Trains in a fork of a process that has imported everything, as imports take longer than these runs. Reads a job as a
# line of JSON, writes the number of the training process and then its exit code.
SERVER = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import torch.utils.tensorboard
from partialnet.errors import RunInterrupted
from partialnet.training.config import TrainConfig
from partialnet.training import pictures
from partialnet.training.run import train

pictures.draw_first_batch = pictures.draw_results = lambda *arguments: None

def kill_in_write(number):
    # files are written by open, write, fsync, rename; this dies before the rename
    real, left = os.fsync, [number]
    def fsync(handle):
        left[0] -= 1
        if not left[0]:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)
    os.fsync = fsync

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 2)
        if job["kill_in_write"]:
            kill_in_write(job["kill_in_write"])
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in job["settings"].items()}
        try:
            train(TrainConfig(**settings), job["data"], Path(job["folder"]), resume=True)
        except RunInterrupted as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(75)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

SETTINGS: dict[str, Any] = {
    "model_args": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
    "img_size": 32,
    "epochs": 3,
    "batch_size": 4,
    "accumulate": 2,
    "warmup_epochs": 1,
    "lr": 3e-3,
    "lr_scaling": "none",
    "drop_path_rate": 0.3,
    "mixup": 0.2,
    "cutmix": 1.0,
    "erasing": 0.25,
    "auto_augment": "rand-m5-mstd0.5",
    "random_sizes": [32, 40],
    "ema": 0.9,
    "clip_grad": 1.0,
    "save_minutes": 0,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
}


class TrainingProcess:
    """Starts training processes one after the other."""

    def __init__(self, data: Path) -> None:
        self.data = data
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path, kill_in_write: int = 0, **settings: Any) -> int:
        """Begin or continue the run in ``folder``; the number of its process."""
        self.log(folder).unlink(missing_ok=True)
        job = {
            "data": str(self.data),
            "folder": str(folder),
            "log": str(self.log(folder)),
            "settings": {**SETTINGS, **settings},
            "kill_in_write": kill_in_write,
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """Exit code of the process that was started; negative the number of the signal that killed it."""
        return int(self._line())

    @staticmethod
    def log(folder: Path) -> Path:
        return folder.with_suffix(".log")

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcess]:
    found = TrainingProcess(write_photos(tmp_path_factory.mktemp("data") / "photos", 14))
    yield found
    assert found.server.stdin is not None
    found.server.stdin.close()
    found.server.wait(20)


@pytest.fixture(scope="module")
def uninterrupted(processes: TrainingProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    processes.start(folder, workers=0)
    assert processes.wait() == 0, processes.log(folder).read_text()
    return outcome(folder)


def outcome(folder: Path) -> tuple[Any, ...]:
    """Everything a run ends with but its times: weights of the best and the last epoch, metrics to the last digit."""
    weights = [safetensors.torch.load_file(folder / part / "model.safetensors") for part in (".", "last")]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    newest = max((folder / "state").iterdir())
    state = torch.load(newest, weights_only=True)
    precise = state["progress"]["rows"]
    for row in (*rows, *precise):
        del row["seconds"], row["images_per_second"]
    names = sorted(name for part in weights for name in part)
    values = [(name, part[name].numpy().tobytes()) for part in weights for name in sorted(part)]
    optimizer = [
        tensor.numpy().tobytes()
        for entry in state["optimizer_states"][0]["state"].values()
        for tensor in entry.values()
        if isinstance(tensor, torch.Tensor)
    ]
    return names, values, rows, precise, optimizer, state["global_step"]


def states(folder: Path) -> int:
    """Number of the newest state; 0 while there is none."""
    found = (folder / "state").glob("*-epoch-*.pt") if (folder / "state").is_dir() else ()
    return max((int(path.name.partition("-")[0]) for path in found), default=0)


def wait_for_state(folder: Path, number: int) -> None:
    end = time.monotonic() + 60
    while states(folder) < number and time.monotonic() < end:
        time.sleep(0.01)
    assert states(folder) >= number


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(
    workers: int, processes: TrainingProcess, uninterrupted: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    moments = random.Random(workers)
    killed = 0
    while killed < 3:
        pid = processes.start(folder, workers=workers)
        # some steps on, each of which is saved, and somewhere between them
        wait_for_state(folder, states(folder) + moments.randint(1, 4))
        time.sleep(moments.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert processes.wait() == -signal.SIGKILL
        killed += 1
    processes.start(folder, workers=workers)
    assert processes.wait() == 0, processes.log(folder).read_text()
    assert "Continuing after" in processes.log(folder).read_text()
    assert outcome(folder) == uninterrupted


def test_killed_while_writing(processes: TrainingProcess, uninterrupted: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # the first run dies in its second state, the others in states, metrics and checkpoints further on
    for write in (2, 4, 5, 7):
        processes.start(folder, kill_in_write=write, workers=0)
        assert processes.wait() == -signal.SIGKILL
    assert list(folder.glob("**/.*")), "a write was to be interrupted"
    processes.start(folder, workers=0)
    assert processes.wait() == 0, processes.log(folder).read_text()
    assert outcome(folder) == uninterrupted
    assert not list(folder.glob("**/.*"))


def test_asked_to_stop(processes: TrainingProcess, uninterrupted: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        pid = processes.start(folder, workers=0, save_minutes=60)
        before = states(folder)
        # the bar opens when the training is about to begin
        wait_for_text(processes.log(folder), "training:")
        os.kill(pid, number)
        assert processes.wait() == 75, processes.log(folder).read_text()
        told = processes.log(folder).read_text()
        assert f"Stopped by {number.name}" in told
        assert f"partialnet train {processes.data} --config {folder}/config.yaml -o {folder} --resume" in told
        assert states(folder) == before + 1
    processes.start(folder, workers=0, save_minutes=60)
    assert processes.wait() == 0, processes.log(folder).read_text()
    assert outcome(folder) == uninterrupted


def wait_for_text(path: Path, text: str) -> None:
    end = time.monotonic() + 60
    while not (path.exists() and text in path.read_text()) and time.monotonic() < end:
        time.sleep(0.01)


def test_signals_are_noted_and_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before
