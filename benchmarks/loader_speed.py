"""How many training images a second the loader prepares on its own.

    python benchmarks/loader_speed.py FOLDER

writes benchmarks/results/loader_speed.json for the images of FOLDER (class folders, or train and val): images a second
of wall time, and of CPU time of all workers, which other programs on the machine disturb less; each with 0
(CPU time of the process itself), 1 and 2 workers; median and quartiles over epochs' beginnings.
"""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from result_file import result_file, result_parser
from tqdm import tqdm

from partialnet.bench import environment
from partialnet.data.sources import open_data
from partialnet.files import write_json
from partialnet.training.batches import train_loader
from partialnet.training.config import TrainConfig

AUGMENTATIONS: dict[str, dict] = {
    "crop and flip": {},
    "crop, flip, RandAugment": {"auto_augment": "rand-m9-mstd0.5"},
    "crop, flip, RandAugment, mixup, cutmix, erasing": {
        "auto_augment": "rand-m9-mstd0.5",
        "mixup": 0.2,
        "cutmix": 1.0,
        "erasing": 0.25,
    },
}


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("folder")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="batches of a repetition")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    path = result_file(arguments, "loader_speed.json")
    torch.set_num_threads(1)
    images = open_data(arguments.folder).train
    input_config = {
        "input_size": [3, arguments.img_size, arguments.img_size],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
    }
    rows = []
    cases = [(name, workers) for name in AUGMENTATIONS for workers in arguments.workers]
    measured: dict[tuple[str, int], list[tuple[float, float, float]]] = {case: [] for case in cases}
    # every case once in each round, so that a disturbance hits all of them
    for epoch in tqdm(range(arguments.repeats), desc="rounds"):
        for name, workers in cases:
            config = TrainConfig(batch_size=arguments.batch_size, workers=workers, device="cpu", **AUGMENTATIONS[name])
            loader = train_loader(images, config, input_config, epoch)
            measured[name, workers].append(measure(loader, min(arguments.batches, len(loader))))
    for (name, workers), times in measured.items():
        wall, cpu, first = np.array(times).T
        rows.append(
            {
                "augmentation": name,
                "workers": workers,
                "images_per_second": quartiles(wall),
                "images_per_cpu_second": quartiles(cpu),
                "first_batch_ms": quartiles(1e3 * first),
            }
        )
        print(
            f"{name:50}{workers} workers: {np.median(wall):7.0f} images/s, {np.median(cpu):7.0f} per second of CPU, "
            f"first batch after {1e3 * np.median(first):.0f} ms"
        )
    result = {
        "environment": environment(),
        "images": len(images),
        "img_size": arguments.img_size,
        "batch_size": arguments.batch_size,
        "batches": arguments.batches,
        "repeats": arguments.repeats,
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }
    write_json(path, result)
    print(f"written: {path}")


def measure(loader, batches: int) -> tuple[float, float, float]:
    """Images a second of wall time, of CPU time, and the seconds until the first batch.

    The CPU time is that of this process and of its children, which the system tells when they have ended.
    """
    wall, cpu = time.perf_counter(), cpu_seconds()
    reader = iter(loader)
    next(reader)
    first = time.perf_counter() - wall
    start = time.perf_counter()
    count = sum(len(next(reader)) for _ in range(batches - 1))
    wall_rate = count / (time.perf_counter() - start)
    workers = loader.num_workers
    # what the workers have prepared ahead, so that all work that is counted is divided by
    prepared = min(len(loader), batches + workers * (loader.prefetch_factor or 0))
    del reader
    return wall_rate, prepared * loader.dataset.config.batch_size / (cpu_seconds() - cpu), first


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def quartiles(values: np.ndarray, digits: int = 1) -> dict[str, float]:
    q1, median, q3 = (round(float(value), digits) for value in np.percentile(values, [25, 50, 75]))
    return {"median": median, "q1": q1, "q3": q3}


if __name__ == "__main__":
    main()
