"""Several training processes learn what one with the same effective batch learns."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from partialnet.training.config import TrainConfig
from partialnet.training.run import train

# What a user's own program looks like; Lightning starts it again for each further process.
PROGRAM = """
import json, sys
from pathlib import Path
from partialnet.training.config import TrainConfig
from partialnet.training import pictures
from partialnet.training.run import train

pictures.draw_first_batch = pictures.draw_results = lambda *arguments: None

if __name__ == "__main__":
    data, folder, settings = sys.argv[1:]
    train(TrainConfig(**json.loads(settings)), data, Path(folder))
"""

SETTINGS: dict[str, Any] = {
    "model_args": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
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
    "sync_bn": True,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for number in range(15):
            pixels = generator.integers(0, 120, (40, 48, 3))
            pixels[..., 2 - channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    (root / "red" / "03.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with all of the batch."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(TrainConfig(**{**SETTINGS, "batch_size": 8, "max_broken_share": 0.1}), str(photos), folder)
    return folder


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, photos: Path, folder: Path, command: list[str], **changes: Any) -> subprocess.Popen[str]:
    settings, environment = {**SETTINGS, "max_broken_share": 0.1}, {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {name: value for name, value in changes.items() if name.isupper()}
    settings |= {name: value for name, value in changes.items() if not name.isupper()}
    arguments = [str(program), str(photos), str(folder), json.dumps(settings)]
    return subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, env=environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_same_run(folder: Path, alone: Path) -> None:
    rows, expected = (list(csv.DictReader((path / "metrics.csv").open(newline=""))) for path in (folder, alone))
    assert len(rows) == len(expected) == 2
    for row, wanted in zip(rows, expected, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert float(row[name]) == pytest.approx(float(wanted[name]), abs=1e-4), name
    names = [set(safetensors.torch.load_file(path / "model.safetensors")) for path in (folder, alone)]
    assert names[0] == names[1]
    assert (folder / "broken_images.txt").read_text() == "red/03.png\n"


def test_two_devices(program: Path, photos: Path, alone: Path, tmp_path: Path) -> None:
    process = start(program, photos, tmp_path / "run", [sys.executable], devices=2)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert "effective batch 8 (4 images × 2 processes)" in told
    assert told.count("epoch 2/2  loss") == 1
    assert_same_run(tmp_path / "run", alone)


def test_two_machines(program: Path, photos: Path, alone: Path, tmp_path: Path) -> None:
    """Two launchers that know of each other an address only, as on two machines with a shared disk."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={address}", "--rdzv-id=test"]
    machines = [start(program, photos, tmp_path / "run", command) for _ in range(2)]
    told = [machine.communicate(timeout=120)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert_same_run(tmp_path / "run", alone)
