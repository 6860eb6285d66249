"""An ablation from the rows of its table to what was found: every row trained, counted and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from partialnet.data.sources import open_data
from partialnet.training.config import TrainConfig

from .accuracy import TrainedRow, row_configs, train_rows
from .measure import Conditions, build, count, time_rows
from .report import Ablation
from .tables import AblationTable, Row

#: Classes of the paper's networks, which rows without data of their own get.
_NUM_CLASSES = 1000


@dataclass(frozen=True)
class Trainings:
    """How rows are to be trained, and on what.

    Attributes:
        data: What to learn from; see ``partialnet.data.sources.open_data``.
        folder: Where the run folders go, one for each row and seed. Finished runs are kept, interrupted ones continued.
        seeds: Trainings of each row.
        recipe: Name of the recipe that the configuration comes from, for the report.
    """

    data: str
    folder: Path
    seeds: int
    recipe: str


def run_ablation(
    table: AblationTable,
    rows: Sequence[Row],
    config: TrainConfig,
    conditions: Conditions,
    trainings: Trainings | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Ablation:
    """Train, count and time rows of a table, all beside one another, as ``partialnet ablate`` does.

    Args:
        table: The paper's table.
        rows: Some of its rows.
        config: The variant, its arguments and image size, and how every row is trained.
        conditions: How the rows are timed; without runtimes they are not.
        trainings: On what they are trained; None trains none.
        say: Takes a line on what is going on.

    Raises:
        UserError: Something does not fit; where it can be known before, nothing has been trained or timed.
        RunInterrupted: A signal asked to stop a training; the same call goes on.
    """
    conditions.check()
    num_classes, configs = _NUM_CLASSES, {}
    if trainings is not None:
        configs = row_configs(rows, config, trainings.seeds)
        num_classes = len(open_data(trainings.data, config.val_share, config.seed).class_names)
    networks = build(rows, config.model, config.model_args, config.img_size, num_classes)
    trained: dict[str, TrainedRow] = {}
    training: dict[str, Any] = {}
    if trainings is not None:
        trained = train_rows(table, configs, trainings.data, trainings.folder, say)
        settings = {key: value for key, value in asdict(config).items() if key != "seed"}
        name = Path(trainings.data).name or trainings.data
        training = {"data": name, "recipe": trainings.recipe, "config": settings}
    costs = {row: count(network) for row, network in networks.items()}
    against = table.reference if table.reference in networks else rows[0].name
    speeds = {}
    for runtime in conditions.runtimes:
        say(f"Preparing {len(networks)} networks for {runtime} …")
        speeds[runtime] = time_rows(networks, against, runtime, conditions)
    return Ablation(table, rows, config.model, costs, against, conditions, speeds, training, trained)
