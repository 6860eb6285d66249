"""A search from its images to its plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from partialnet.checkpoint import Checkpoint, load
from partialnet.complexity import measure
from partialnet.errors import UserError
from partialnet.plots import learning_curves
from partialnet.training.engine import RunResult, pictures_may_fail, run
from partialnet.training.pictures import CURVES_NAME, FIRST_BATCH_NAME
from partialnet.training.run import ImageRun, describe_task
from partialnet.training.run_folder import FILES, present_files

from . import pictures
from .config import SearchConfig
from .network import make_dynamic
from .plan import PLAN_NAME, Plan
from .task import RATIO_PREFIX, SearchTask


@dataclass(frozen=True)
class SearchResult(RunResult):
    """What a search left; its checkpoint is the planned network with the search's weights.

    Attributes:
        plan: The ratios that were found.
        accuracy: Share of the held-out images that the searched network got right then.
        epoch: Epoch that the plan is of, from 1.
    """

    plan: Plan
    accuracy: float
    epoch: int


def search(config: SearchConfig, data: str, folder: Path, resume: bool = False) -> SearchResult:
    """Search the split ratios of a network and fill a run folder; see ``partialnet.training.engine.run``.

    The plan is that of the latest epoch that keeps to ζ ≤ κ, or of the last one where none does.

    Args:
        config: How to search.
        data: What to learn from; see ``partialnet.data.sources.open_data``.
        folder: Run folder.
        resume: Continue the run in ``folder`` if there is one.

    Raises:
        UserError: Something does not fit; where it can be known before the search, nothing has been written.
        RunInterrupted: A signal asked to stop; the run's state is saved.
    """
    return run(SearchRun(), config, data, folder, resume)


class SearchRun(ImageRun[SearchConfig, SearchTask, SearchResult]):
    """Search of split ratios."""

    command = ("search",)
    task = SearchTask

    def adapt(self, checkpoint: Checkpoint, config: SearchConfig) -> Checkpoint:
        """The network with its partial convolutions made dynamic.

        Raises:
            UserError: It has none, or none that ``config`` asks for.
        """
        try:
            return replace(checkpoint, model=make_dynamic(checkpoint.model, config.layer_pattern, config.attention))
        except ValueError as error:
            raise UserError(f"{config.model}: {error}") from error

    def announce(self, task: SearchTask) -> list[str]:
        """Images, network, and what the objective asks for."""
        layers = list(task.layers.values())
        zeta, kappa = task.objective.zeta(layers).item(), task.objective.kappa(layers)
        return [
            describe_task(task),
            f"{len(layers)} layers are searched; complexity to reach κ = {kappa:.4g} (θ = {task.config.theta:g}), "
            f"at the start ζ = {zeta:.4g}, ζ/κ = {zeta / kappa:.2f}.",
        ]

    def finish(self, task: SearchTask, folder: Path) -> SearchResult:
        """Write the plan of the kept checkpoint, and draw how its ratios came about."""
        checkpoint = load(folder)
        plan = create_plan(checkpoint)
        plan.save(folder / PLAN_NAME)
        rows, epoch = task.progress.rows, int(checkpoint.training["epoch"])
        accuracy = float(checkpoint.training["val_accuracy"])
        with pictures_may_fail():
            learning_curves(folder / CURVES_NAME, rows, f"Search: {accuracy:.1%} of the held-out images right")
            pictures.draw_ratios(folder / pictures.RATIOS_NAME, rows, epoch, plan)
            pictures.draw_plan(folder / pictures.PLAN_PICTURE_NAME, plan)
        found = (PLAN_NAME, pictures.PLAN_PICTURE_NAME, pictures.RATIOS_NAME)
        files = present_files(folder, (*found, *FILES, CURVES_NAME, FIRST_BATCH_NAME))
        return SearchResult(folder, files, task.progress.epoch, plan, accuracy, epoch)


def create_plan(checkpoint: Checkpoint) -> Plan:
    """The plan that a search's checkpoint holds."""
    training = checkpoint.training
    ratios = {
        name.removeprefix(RATIO_PREFIX): float(value)
        for name, value in training.items()
        if name.startswith(RATIO_PREFIX)
    }
    channels, height, width = checkpoint.input_config["input_size"]
    complexity = measure(checkpoint.model, (channels, height, width))
    arguments = {name: value for name, value in checkpoint.model_args.items() if name != "num_classes"}
    return Plan(
        model=checkpoint.architecture,
        model_args=arguments,
        split_ratios=ratios,
        theta=training["config"]["theta"],
        zeta=training["zeta"],
        kappa=training["kappa"],
        params_m=complexity.training.params_m,
        macs_g=complexity.folded.macs_g,
        input_size=(channels, height, width),
        search={name: training[name] for name in ("epoch", "val_accuracy", "data", "config")},
    )
