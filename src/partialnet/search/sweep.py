"""Searches for several θ: the table and the heat map of the paper's Figure 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from partialnet.errors import RunInterrupted, UserError
from partialnet.files import write_csv
from partialnet.training.continuation import differences

from . import pictures
from .config import SearchConfig
from .plan import PLAN_NAME, Plan, load_plan
from .run import SearchRun, search

TABLE_NAME = "sweep.csv"
PICTURE_NAME = "sweep.png"

#: Searches some points, each a configuration with its run folder, and leaves a plan in each folder.
SearchPoints = Callable[[Sequence[tuple[SearchConfig, Path]], str], None]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left.

    Attributes:
        folder: Folder with a run folder for each θ.
        plans: The plans by θ, in ascending order.
        files: All files that are meant for people, the table first.
    """

    folder: Path
    plans: dict[float, Plan]
    files: tuple[Path, ...]


def sweep(
    config: SearchConfig,
    thetas: Sequence[float],
    data: str,
    folder: Path,
    resume: bool = False,
    search_points: SearchPoints | None = None,
) -> SweepResult:
    """Search for each θ and tabulate what was found.

    Args:
        config: How to search; its own θ is not used.
        thetas: Values of θ, each at least 1.
        data: What to learn from; see ``partialnet.data.sources.open_data``.
        folder: Gets a run folder for each θ, the table and the picture.
        resume: Keep the points in ``folder`` that are finished, and continue those that are not.
        search_points: What searches the points that are not finished; None does, one after the other.

    Raises:
        UserError: Something does not fit.
        RunInterrupted: A signal asked to stop; what is finished is kept.
    """
    if config.devices != 1 or config.num_nodes != 1:
        # further processes are started with the same command, and would begin the sweep anew
        raise UserError(
            "A sweep searches each θ by one process; search them on several devices in parallel with --ray, or one θ "
            "with several processes."
        )
    points = {theta: folder / f"theta-{theta:g}" for theta in sorted(set(thetas))}
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file; choose a folder for the sweep.")
    if not resume and any(path.exists() for path in (*points.values(), folder / TABLE_NAME)):
        raise UserError(f"{str(folder)!r} holds a sweep already; continue it with --resume or choose another folder.")
    configs = {theta: replace(config, theta=theta) for theta in points}
    finished = {theta for theta, path in points.items() if (path / PLAN_NAME).exists()}
    kind = SearchRun()
    opened = kind.open_data(data, config)  # a mistake in its name is told before anything is searched
    if finished:
        images = kind.describe_data(opened)
        for theta in finished:
            if found := differences(load_plan(points[theta]).search, configs[theta], images):
                raise UserError(f"The search in {str(points[theta])!r} had other settings: {'; '.join(found)}.")
    left = [(configs[theta], path) for theta, path in points.items() if theta not in finished]
    folder.mkdir(parents=True, exist_ok=True)
    (search_points or _one_after_the_other)(left, data)
    plans = {theta: load_plan(path) for theta, path in points.items()}
    rows = [table_row(plan) for plan in plans.values()]
    write_csv(folder / TABLE_NAME, rows, list(rows[0]))
    pictures.draw_sweep(folder / PICTURE_NAME, plans)
    return SweepResult(folder, plans, (folder / TABLE_NAME, folder / PICTURE_NAME, *points.values()))


def table_row(plan: Plan) -> dict[str, Any]:
    """One line of Figure 7's table: θ, the constraint, accuracy and cost, and each layer's ratio."""
    return {
        "theta": plan.theta,
        "kappa": plan.kappa,
        "zeta": plan.zeta,
        "constraint_met": plan.satisfied,
        "mean_split_ratio": round(plan.mean_ratio, 6),
        "val_accuracy": plan.search["val_accuracy"],
        "macs_g": plan.macs_g,
        "params_m": plan.params_m,
        **plan.split_ratios,
    }


def _one_after_the_other(points: Sequence[tuple[SearchConfig, Path]], data: str) -> None:
    for config, folder in points:
        try:
            search(config, data, folder, resume=True)
        except RunInterrupted as error:
            raise RunInterrupted(
                f"Stopped in the search for θ = {config.theta:g}, whose state is saved. Continue with the same "
                "command and --resume."
            ) from error
