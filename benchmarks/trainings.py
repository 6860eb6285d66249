"""Trainings and searches, several at a time and each in a process of its own; accuracies over seeds."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from partialnet.training.config import RunConfig, TrainConfig
from partialnet.training.run import train
from partialnet.training.run_folder import read_metrics

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def threads_of_each(jobs: int) -> int:
    """CPU threads for each of so many runs at a time."""
    return max(1, (os.cpu_count() or 1) // jobs)


def run_in_processes(
    run: Callable[..., object], configs: Mapping[Path, ConfigT], data: str, jobs: int, description: str
) -> Iterator[Path]:
    """Do runs, in the order given, and tell each one's folder as soon as it is done.

    Args:
        run: ``partialnet.training.run.train`` or ``partialnet.search.run.search``.
        configs: How, by run folder. Runs that are finished are kept, those that were interrupted continue.
        data: What to learn from.
        jobs: Runs at a time.
        description: Label of the progress bar.
    """
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        folders = {pool.submit(_run, run, config, data, folder): folder for folder, config in configs.items()}
        for job in tqdm(as_completed(folders), total=len(folders), desc=description):
            job.result()
            yield folders[job]


def _run(run: Callable[..., object], config: RunConfig, data: str, folder: Path) -> None:
    run(config, data, folder, resume=True)


def train_with_seeds(
    configs: Mapping[str, TrainConfig], seeds: int, data: str, folder: Path, jobs: int
) -> Iterator[tuple[str, int, list[dict[str, float]]]]:
    """Train each network with seeds 0, 1, …; as soon as one is done, its label, its seed and its row of each epoch.

    Args:
        configs: How to train, by the network's label; their own seeds are not used.
        seeds: Number of seeds.
        data: What to learn from.
        folder: Where the run folders go.
        jobs: Trainings at a time.
    """
    runs = {
        folder / f"{label.replace(' ', '_').replace('/', '-')}-{config.epochs}-{seed}": (label, seed)
        for seed in range(seeds)  # all networks with a seed before the next: equal numbers if interrupted
        for label, config in configs.items()
    }
    seeded = {path: replace(configs[label], seed=seed) for path, (label, seed) in runs.items()}
    for path in run_in_processes(train, seeded, data, jobs, "trainings"):
        yield *runs[path], read_metrics(path)


def mean_and_stdev(accuracies: Sequence[float]) -> dict[str, float | None]:
    """``mean`` and ``stdev`` over the seeds; a single one has no deviation."""
    return {
        "mean": statistics.mean(accuracies),
        "stdev": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    }
