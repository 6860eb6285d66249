"""A run that is killed at any moment ends with the same bits as one that is not."""

from __future__ import annotations

import csv
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from training_runs import DRAW_NOTHING, write_photos
from warm_processes import WarmProcess, WarmProcesses

from partialnet.training.config import TrainConfig
from partialnet.training.settings import as_yaml, create_settings
from partialnet.training.signals import StopSignals, leave_lost_terminal

# Files are written by open, write, fsync, rename; this dies before the rename.
KILL_IN_WRITE = """
import os, signal
real, left = os.fsync, [{number}]
def fsync(handle):
    left[0] -= 1
    if not left[0]:
        os.ftruncate(handle, os.fstat(handle).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
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


Start = Callable[..., WarmProcess]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 14)


@pytest.fixture(scope="module")
def start(photos: Path, warm_processes: WarmProcesses) -> Start:
    """Begin or continue the run in a folder with some settings changed."""

    def start(folder: Path, kill_in_write: int = 0, **settings: Any) -> WarmProcess:
        config = folder.with_suffix(".yaml")
        config.write_text(as_yaml(create_settings(TrainConfig, {**SETTINGS, **settings})))
        before = DRAW_NOTHING + (KILL_IN_WRITE.format(number=kill_in_write) if kill_in_write else "")
        arguments = ["train", photos, "--config", config, "-o", folder, "--resume"]
        return warm_processes.start(*arguments, out=folder.with_suffix(".log"), before=before)

    return start


@pytest.fixture(scope="module")
def uninterrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(folder, workers=0)
    assert process.wait() == 0, process.err
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


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(workers: int, start: Start, uninterrupted: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    moments = random.Random(workers)
    for _ in range(3):
        # some steps on, each of which is saved, and somewhere between them
        goal = states(folder) + moments.randint(1, 4)
        process = start(folder, workers=workers)
        process.wait_until(lambda goal=goal: states(folder) >= goal)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = start(folder, workers=workers)
    assert process.wait() == 0, process.err
    assert "Continuing with epoch" in process.err
    assert outcome(folder) == uninterrupted


def test_killed_while_writing(start: Start, uninterrupted: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # the first run dies in its second state, the others in states, metrics and checkpoints further on
    for write in (2, 4, 5, 7):
        assert start(folder, kill_in_write=write, workers=0).wait() == -signal.SIGKILL
    assert list(folder.glob("**/.*")), "a write was to be interrupted"
    process = start(folder, workers=0)
    assert process.wait() == 0, process.err
    assert outcome(folder) == uninterrupted
    assert not list(folder.glob("**/.*"))


def test_asked_to_stop(photos: Path, start: Start, uninterrupted: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        before = states(folder)
        process = start(folder, workers=0, save_minutes=60)
        # the bar opens when the training is about to begin
        process.wait_until(lambda process=process: "training:" in process.err)
        process.send_signal(number)
        assert process.wait() == 75, process.err
        assert f"Stopped by {number.name}" in process.err
        assert f"partialnet train {photos} --config {folder}/config.yaml -o {folder} --resume" in process.err
        assert states(folder) == before + 1
    process = start(folder, workers=0, save_minutes=60)
    assert process.wait() == 0, process.err
    assert outcome(folder) == uninterrupted


def test_one_process_at_a_time(photos: Path, start: Start, uninterrupted: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(folder, workers=1)
    first.wait_until(lambda: states(folder) >= 1)
    first.send_signal(signal.SIGSTOP)
    second = start(folder, workers=1)
    assert second.wait() == 2, second.err
    assert second.err.splitlines()[-1].endswith(
        "is being trained by another process; wait for it, or choose another folder."
    )
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.err
    assert outcome(folder) == uninterrupted
    assert not list(folder.glob("**/.*"))


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP"])
def test_signals_are_noted_and_given_back(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == name
    assert signal.getsignal(number) == before


def test_nohup_is_followed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signals.install()
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_printing_goes_on_where_the_terminal_is_gone(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    with os.fdopen(terminal, "wb", buffering=0) as stream, (tmp_path / "file").open("wb", buffering=0) as file:
        os.close(ours)
        with pytest.raises(OSError, match="Input/output error"):
            stream.write(b"lost")
        leave_lost_terminal([stream.fileno(), file.fileno()])
        stream.write(b"nowhere")
        file.write(b"here")
    assert (tmp_path / "file").read_bytes() == b"here"
