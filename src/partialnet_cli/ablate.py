"""``partialnet ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from partialnet.errors import UserError
from partialnet.files import write_atomically, write_csv
from partialnet.training.config import TrainConfig
from partialnet.training.settings import read_settings

from .next_command import next_command, same_command
from .options import FloatRange, IntRange, output_folder, parse_runtimes, runtime_option
from .results import Results, result_options
from .runs import default_recipe, run_folder
from .settings import GroupedCommand, configure, given_settings, on_command_line, setting_options

_TABLES = ("3", "4", "6", "12")
#: Settings of a training that also shape what is counted and timed.
_NETWORK_SETTINGS = ("model", "model_args", "img_size", "device")


@click.command(cls=GroupedCommand)
@click.option("--table", type=click.Choice(_TABLES), required=True, help="Table of the paper.")
@click.option(
    "--data", metavar="DATA", help="Train every row on this data, as `partialnet train` does, and report its accuracy."
)
@click.option("--row", "names", metavar="NAME", multiple=True, help="Only this row; repeatable.")
@click.option("--seeds", type=IntRange(min=1), default=1, help="Seeds to train each row with.")
@runtime_option
@click.option(
    "--seconds",
    type=FloatRange(min=0),
    default=10.0,
    help="Time for the latencies in a runtime, and as much for the throughputs; 0 times nothing.",
)
@click.option("--bench-threads", type=IntRange(min=1), default=1, help="CPU threads of the timing.")
@click.option(
    "--processor-time",
    is_flag=True,
    help="Count the time of the processor, which leaves out what else a busy machine does; one CPU thread only.",
)
@click.option(
    "--bench-batch-size",
    type=IntRange(min=1),
    default=16,
    help="Images at a time for the throughput; the latency is that of one image.",
)
@click.option("--recipe", metavar="NAME", help="Settings to start from, for every row.  [default: digits or small]")
@click.option("--config", "config_file", metavar="FILE", help="YAML file of settings that override the recipe's.")
@output_folder("Folder for the run folders of --data.  [default: runs/DATA-ablation]")
@result_options(
    json="everything and the environment",
    csv="a line for each row and runtime as CSV",
    markdown="the tables as Markdown",
)
@setting_options(TrainConfig)
@click.pass_context
def ablate(
    ctx: click.Context,
    /,
    table: str,
    data: str | None,
    names: tuple[str, ...],
    seeds: int,
    runtime: str,
    seconds: float,
    bench_threads: int,
    processor_time: bool,
    bench_batch_size: int,
    results: Results,
    output: Path | None,
    recipe: str | None,
    config_file: str | None,
    **options: Any,
) -> None:
    """Repeat an ablation of the paper: each row of the table is a configuration of one network.

    Table 3 compares partial with full attention, 4 adds the three blocks one by one, 6 replaces PAT_ch with other
    convolutions, 12 with other channel attentions. Parameters, multiply–adds, latency and throughput are shown beside
    the paper's figures; all rows are timed in turn in one run.

    With --data, every row is trained with the same recipe, in a run folder for each row and seed. Finished runs are
    kept and interrupted ones continued when you repeat the command. All settings of `partialnet train` are options here
    and apply to all rows.

    \b
    Examples: partialnet ablate --table 4 --runtime openvino --json table4.json
              partialnet ablate --table 12 --data digits --model partialnet_t0 --epochs 5 --seeds 3
              partialnet ablate --table 4 --data cifar10/ --recipe cifar10 --model-args patch_size=2
    """
    from partialnet.ablation.tables import PAPER_MODEL, TABLES

    given = given_settings(ctx, options)
    from_file = read_settings(config_file) if config_file else {}
    if data is None:
        _refuse_training_options(ctx, [*given, *from_file])
    if "model" not in from_file:
        given.setdefault("model", PAPER_MODEL)
    config, name = configure(TrainConfig, recipe, default_recipe(TrainConfig, data), config_file, given)
    chosen = TABLES[int(table)]
    rows = chosen.select(names)

    from partialnet.ablation.measure import Conditions
    from partialnet.ablation.report import as_markdown, as_text, csv_records
    from partialnet.ablation.run import Trainings, run_ablation
    from partialnet.bench import environment

    device = "cuda" if config.device == "cuda" else "cpu"
    runtimes = parse_runtimes(runtime)
    conditions = Conditions(
        runtimes if seconds else [], bench_threads, bench_batch_size, device, seconds, processor_time
    )
    trainings = None if data is None else Trainings(data, run_folder(output, data, "ablation"), seeds, name)
    ablation = run_ablation(chosen, rows, config, conditions, trainings, lambda text: click.echo(text, err=True))
    content = ablation.as_dict()
    results.say(as_text(content))
    results.write_json({"environment": environment(), **content})
    records = csv_records(ablation)
    results.write("csv", lambda path: write_csv(path, records, list(records[0])))
    results.write("markdown", lambda path: write_atomically(path, as_markdown(content).encode()))
    if ablation.trained:
        first = next(iter(ablation.trained.values())).folders[0]
        results.written.append(f"run folders in {first.parent}")
        results.finish(next_command("predict", first, "IMAGES"))
    elif not results.written:
        results.finish("add --json, --csv or --markdown FILE to keep the result, or --data DATA to train every row.")
    else:
        results.finish(f"{same_command('--data', 'DATA')}   (trains every row and adds its accuracy)")


def _refuse_training_options(ctx: click.Context, names: list[str]) -> None:
    """Settings that would have no effect without data.

    Raises:
        UserError: One was given.
    """
    given = [name for name in names if name not in _NETWORK_SETTINGS]
    given += [name for name in ("seeds", "recipe", "output") if on_command_line(ctx, name)]
    if given:
        hint = {
            "threads": "; the timing has --bench-threads",
            "batch_size": "; the timing has --bench-batch-size",
            "precision": "; the timing is in fp32",
        }
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} is for training: give --data, too{hint.get(given[0], '')}.")
