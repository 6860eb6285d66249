"""``partialnet search``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from partialnet.data.sources import KINDS_OF_DATA
from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.search.config import SearchConfig
from partialnet.training.settings import parse_setting

from .next_command import next_command
from .results import tell_written
from .runs import Run, RunOptions, default_recipe, run_options
from .settings import GroupedCommand, given_settings, setting_options

if TYPE_CHECKING:
    from partialnet.search import Plan
    from partialnet.search.run import SearchResult


class Thetas(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """One θ, or several with commas between them."""

    name = "number,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers, each checked as the setting is."""
        parts = str(value).split(",")
        return tuple(parse_setting(SearchConfig, "theta", part.strip()) for part in parts)


@click.command(cls=GroupedCommand)
@run_options(SearchConfig, KINDS_OF_DATA, "-search")
@click.option(
    "--theta",
    type=Thetas(),
    help="How much cheaper the network should be than one that convolves all channels (θ); several, such as 2,4,8, are "
    "searched one after another and compared.  [default: 4]",
)
@click.option("--ray", metavar="ADDRESS", help="Search several θ in parallel on this Ray cluster; local starts one.")
@setting_options(SearchConfig, without=("theta",))
@click.pass_context
def search(
    ctx: click.Context,
    /,
    run_options: RunOptions[SearchConfig],
    theta: tuple[float, ...] | None,
    ray: str | None,
    **options: Any,
) -> None:
    """Learn on DATA how many channels each layer of a network should convolve.

    The network's partial convolutions become DPConv, whose split ratios are learned together with the weights, under
    the constraint that θ sets. DATA, recipes and settings are those of `partialnet train`. While the learning rate
    warms up, the ratios do not change.

    The run folder gets plan.json, which `partialnet train --plan` takes; the planned network with the search's weights;
    the metrics, including each layer's ratio; and pictures of the ratios.

    \b
    Examples: partialnet search photos/ --theta 4 -o runs/searched
              partialnet train photos/ --plan runs/searched -o runs/planned
              partialnet search photos/ --theta 1.5,2,4,8 -o runs/sweep
    """
    given = given_settings(ctx, options)
    if theta is not None and len(theta) == 1:
        given["theta"] = theta[0]
    run = run_options.prepare(given)
    # what the planned network is to be trained with too
    shared = [] if run.recipe == default_recipe(SearchConfig, run.data) else ["--recipe", run.recipe]
    shared += ["--img-size", str(given["img_size"])] if "img_size" in given else []
    if theta is not None and len(theta) > 1:
        _sweep(run, theta, ray, shared)
        return
    if ray is not None:
        raise UserError("--ray searches several θ in parallel; give several, such as --theta 2,4,8.")

    from partialnet.search.run import search as start

    result = start(run.config, run.data, run.folder, run.resume)
    click.echo(f"\n{plan_table(result.plan)}\n")
    click.echo(_verdict(result))
    planned = Path("runs") / f"{run.folder.name}-planned"
    tell_written(result.files, _training(run.data, run.folder, [*shared, "-o", str(planned)]))


def _sweep(run: Run[SearchConfig], thetas: tuple[float, ...], ray: str | None, shared: list[str]) -> None:
    from partialnet.search.ray_cluster import search_on_cluster
    from partialnet.search.sweep import sweep

    if ray is not None:
        require("ray", "ray")  # if it is missing, it is to be told now
    search_points = partial(search_on_cluster, ray) if ray is not None else None
    result = sweep(run.config, thetas, run.data, run.folder, run.resume, search_points)
    click.echo(f"\n{'θ':>6}{'ζ/κ':>8}{'mean ratio':>12}{'accuracy':>10}{'G MACs':>9}   split ratio of each layer")
    for theta, plan in result.plans.items():
        ratios = " ".join(f"{ratio:.3g}" for ratio in plan.split_ratios.values())
        click.echo(
            f"{theta:>6g}{plan.zeta / plan.kappa:>8.2f}{plan.mean_ratio:>12.3f}"
            f"{plan.search['val_accuracy']:>10.1%}{plan.macs_g:>9.4f}   {ratios}"
        )
    if failed := [f"{theta:g}" for theta, plan in result.plans.items() if not plan.satisfied]:
        click.echo(f"\nThe constraint ζ ≤ κ is not met for θ = {', '.join(failed)}.")
    tell_written(result.files, _training(run.data, result.files[-1], shared))


def _training(data: str, plan: Path, options: list[str]) -> str:
    """The command that trains a planned network."""
    return next_command("train", data, "--plan", plan, *options)


def plan_table(plan: Plan) -> str:
    """Split ratio and convolved channels of each layer, and the cost of the network."""
    width = max(len(name) for name in plan.split_ratios)
    lines = [f"{'layer':{width}}  split ratio"]
    for name, ratio in plan.split_ratios.items():
        lines.append(f"{name:{width}}  {ratio:>11.4g}  {'█' * max(1, round(32 * ratio))}")
    lines.append(f"{'mean':{width}}  {plan.mean_ratio:>11.4g}")
    lines.append("")
    lines.append(
        f"{plan.network}: {plan.macs_g:.4f} G multiply–adds folded at {plan.resolution}, {plan.params_m:.3f} M "
        "parameters in training form."
    )
    return "\n".join(lines)


def _verdict(result: SearchResult) -> str:
    plan = result.plan
    share = plan.zeta / plan.kappa
    found = f"plan of epoch {result.epoch} of {result.epochs}, accuracy {result.accuracy:.1%} while searching"
    if plan.satisfied:
        return f"The constraint ζ ≤ κ is met: ζ/κ = {share:.3f} ({found})."
    return (
        f"The constraint ζ ≤ κ is NOT met: ζ is {share - 1:.1%} above κ ({found}). Search longer (--epochs), weigh the "
        "complexity more (--alpha, such as -0.1), let the gates move more (--gate-travel), or allow more (a smaller "
        "--theta)."
    )
