"""Accuracy of an ablation's rows: every row is trained with the same recipe, once for each seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from partialnet.data.sources import open_data
from partialnet.errors import RunInterrupted, UserError
from partialnet.training.config import TrainConfig
from partialnet.training.run import is_finished, train
from partialnet.training.run_folder import read_metrics

from .tables import AblationTable, Row


@dataclass(frozen=True)
class TrainedRow:
    """Accuracies of one row.

    Attributes:
        seeds: Seed of each run.
        accuracies: Share of the held-out images that the network of the last epoch gets right, for each run.
        folders: Run folders.
    """

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    folders: tuple[Path, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


def row_configs(rows: Sequence[Row], config: TrainConfig, seeds: int = 1) -> dict[tuple[int, str], TrainConfig]:
    """The configuration of every training, by seed and row: all rows of a seed before the next seed.

    Args:
        rows: The rows.
        config: What they have in common; its ``model_args`` are those that all networks get.
        seeds: Number of seeds, counted from the setting ``seed``.

    Raises:
        UserError: An argument does not fit, or several processes are asked for.
    """
    if config.devices != 1 or config.num_nodes != 1:
        raise UserError(
            "Each row is trained by one process; start one command for each GPU with --row and the same -o, then the "
            "command without --row."
        )
    arguments = {row.name: row.arguments(config.model, config.model_args) for row in rows}
    return {
        (seed, name): replace(config, model_args=own, seed=seed)
        for seed in range(config.seed, config.seed + seeds)
        for name, own in arguments.items()
    }


def train_rows(
    table: AblationTable,
    configs: Mapping[tuple[int, str], TrainConfig],
    data: str,
    folder: Path,
    on_run: Callable[[str], None] = lambda text: None,
) -> dict[str, TrainedRow]:
    """Train what is not finished yet, in one run folder for each row and seed.

    Args:
        table: The rows' table, for the table's part of the folders' names.
        configs: From ``row_configs``.
        data: What to learn from; see ``partialnet.data.sources.open_data``.
        folder: Where the run folders go. Finished runs are kept, interrupted ones continued.
        on_run: Called with one line of text before each run.

    Raises:
        UserError: A folder holds a run of other settings or data, told before anything is trained; or a training
            does not fit.
        RunInterrupted: A signal asked to stop; the same call goes on.
    """
    folders = {key: run_folder(folder, table, *key) for key in configs}
    finished, seed, images = {}, None, None
    for key, config in configs.items():
        if key[0] != seed or images is None:  # which images are held out may depend on the seed
            seed, images = key[0], open_data(data, config.val_share, config.seed)
        finished[key] = is_finished(config, images, folders[key])
    for number, (key, config) in enumerate(configs.items(), 1):
        state = "finished" if finished[key] else "training"
        on_run(f"[{number}/{len(configs)}] {key[1]}, seed {key[0]}: {state} in {folders[key]}")
        if finished[key]:
            continue
        try:
            train(config, data, folders[key], resume=True)
        except RunInterrupted as interruption:
            told = f"{interruption.what} The same command continues with {folders[key]}."
            raise RunInterrupted(told) from interruption
    names = list(dict.fromkeys(name for _, name in configs))
    return {name: _collect(name, folders) for name in names}


def run_folder(folder: Path, table: AblationTable, seed: int, name: str) -> Path:
    """Where a row is trained."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / f"table{table.number}-{slug}-seed{seed}"


def _collect(name: str, folders: Mapping[tuple[int, str], Path]) -> TrainedRow:
    own = {seed: path for (seed, row), path in folders.items() if row == name}
    return TrainedRow(tuple(own), tuple(_last_accuracy(path) for path in own.values()), tuple(own.values()))


def _last_accuracy(folder: Path) -> float:
    """Validation accuracy of the last epoch: the best epoch's would be chosen by the held-out images."""
    return read_metrics(folder)[-1]["val_accuracy"]
