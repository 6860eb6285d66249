"""Images per second of training T0 at 128²: the step alone, against FasterNet's, and with the loader beside it.

    python benchmarks/training_speed.py FOLDER

Part 1, without images: forward, backward and AdamW in float32, channels_last, of PartialNet-T0 and FasterNet-T0 in turn
on the same random images. Part 2, for PartialNet-T0 and the images of FOLDER (class folders, or train and val) under
recipe imagenette128: the loader alone, the step alone on one batch again and again, and both together, in turn; once
with a core for the step and one for a worker, once with all cores for the step and workers beside it. What is
counted of the loader and of both begins when the batches that were read ahead are used up. Writes
benchmarks/results/training_speed.json.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import timm
import torch
from loader_speed import quartiles
from result_file import result_file, result_parser
from tqdm import tqdm
from training_step import random_batch, training_step

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import environment, interleave
from partialnet.data import LabelledImages
from partialnet.data.sources import open_data
from partialnet.files import write_json
from partialnet.training.batches import Batch, train_loader
from partialnet.training.config import TrainConfig
from partialnet.training.recipes import load_recipe

NAMES = ("fasternet_t0", "partialnet_t0")


def step_rows(batch_size: int, img_size: int, seconds: float) -> list[dict[str, Any]]:
    """Part 1: a row for each network; ratios are of times, to the first."""
    torch.manual_seed(0)
    batch = random_batch(batch_size, img_size)
    models = {name: timm.create_model(name).train().to(memory_format=torch.channels_last) for name in NAMES}
    steps = {name: partial(training_step(model), *batch) for name, model in models.items()}
    timings = interleave(steps, against=NAMES[0], seconds=seconds, description="training step")
    return [
        {
            "what": "step",
            "model": name,
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            "img_size": img_size,
            "images_per_second": round(1e3 * batch_size / timing.median_ms, 2),
            "against": NAMES[0],
            **asdict(timing),
        }
        for name, timing in timings.items()
    ]


def together_row(images: LabelledImages, config: TrainConfig, batches: int, rounds: int) -> dict[str, Any]:
    """Part 2 with the threads and workers of ``config``: images a second, and that of both as a share of the step's."""
    torch.set_num_threads(config.threads)
    input_config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(NAMES[1]).to_dict())
    input_config["input_size"] = (3, config.img_size, config.img_size)
    model = timm.create_model(NAMES[1], num_classes=len(images.class_names)).train()
    model.to(memory_format=torch.channels_last)
    train = training_step(model)

    def step(batch: Batch) -> None:
        train(batch.images, batch.labels)

    fixed = next(iter(train_loader(images, replace(config, workers=0), input_config, epoch=0)))
    for _ in range(2):
        step(fixed)
    measured: dict[str, list[float]] = {"loader": [], "step": [], "both": [], "waiting": []}
    ahead = 2 * config.workers  # what torch's loader reads ahead
    for epoch in tqdm(range(rounds), desc=f"{config.threads} threads, {config.workers} workers", delay=2):
        start = time.perf_counter()
        for _ in range(batches):
            step(fixed)
        measured["step"].append(rate(batches, config, start))
        for what, use in (("both", step), ("loader", lambda batch: None)):
            reader = iter(train_loader(images, config, input_config, epoch))
            for _ in range(ahead + 1):
                use(next(reader))
            start = time.perf_counter()
            waited = consume(reader, use, batches)
            measured[what].append(rate(batches, config, start))
            if what == "both":
                measured["waiting"].append(waited / (time.perf_counter() - start))
            del reader
    shares = np.array(measured["both"]) / np.array(measured["step"])
    return {
        "what": "loader, step and both",
        "model": NAMES[1],
        "threads": config.threads,
        "workers": config.workers,
        "batch_size": config.batch_size,
        "img_size": config.img_size,
        **{f"{what}_images_per_second": quartiles(np.array(measured[what])) for what in ("loader", "step", "both")},
        "both_as_share_of_step": quartiles(shares, 3),
        "share_of_time_waiting_for_images": quartiles(np.array(measured["waiting"]), 4),
        "batches": batches,
        "rounds": rounds,
    }


def consume(reader: Iterator[Batch], use: Callable[[Batch], None], batches: int) -> float:
    """Use some batches; the seconds spent waiting for them."""
    waited = 0.0
    for _ in range(batches):
        asked = time.perf_counter()
        batch = next(reader)
        waited += time.perf_counter() - asked
        use(batch)
    return waited


def rate(batches: int, config: TrainConfig, start: float) -> float:
    return batches * config.batch_size / (time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> None:
    parser = result_parser(__doc__)
    parser.add_argument("folder")
    parser.add_argument("--cores", type=int, default=2, help="threads of the step; with a reader beside it, one less")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=40.0, help="time to measure part 1 (40)")
    parser.add_argument("--batches", type=int, default=8, help="batches of a measurement in part 2 (8)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of part 2 (7)")
    options = parser.parse_args(arguments)
    path = result_file(options, "training_speed.json")
    torch.set_num_threads(options.cores)
    rows = step_rows(options.batch_size, options.img_size, options.seconds)
    for row in rows:
        spread = f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"
        print(f"{row['model']:14} {row['images_per_second']:8.1f} images/s   time ratio {spread}")
    images = open_data(options.folder).train
    for threads, workers in ((max(1, options.cores - 1), 1), (options.cores, options.cores)):
        sizes = {"batch_size": options.batch_size, "img_size": options.img_size}
        config = load_recipe("imagenette128", workers=workers, threads=threads, device="cpu", **sizes)
        row = together_row(images, config, options.batches, options.rounds)
        rows.append(row)
        loader, step, both = (row[f"{what}_images_per_second"]["median"] for what in ("loader", "step", "both"))
        print(
            f"{threads} threads, {workers} workers: loader {loader:.0f}, step {step:.0f}, both {both:.0f} images/s, "
            f"{row['both_as_share_of_step']['median']:.1%} of the step's; waiting for images "
            f"{row['share_of_time_waiting_for_images']['median']:.1%} of the time"
        )
    content = {"environment": environment(), "load_average": os.getloadavg()[0], "images": len(images), "rows": rows}
    write_json(path, content)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
