"""``partialnet bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from partialnet.errors import UserError

from .failures import fail
from .options import FloatRange, IntRange, output_folder, parse_runtimes, runtime_option
from .results import Results, result_options, tell_written

if TYPE_CHECKING:
    from partialnet.bench.comparison import Conditions
    from partialnet.bench.contestants import Setting
    from partialnet.bench.report import Row


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "--preset",
    type=click.Choice(["paper", "modern"]),
    help="Compare a list of networks: the paper's Table 10, or what one would choose from today.",
)
@click.option(
    "-a",
    "--against",
    metavar="SOURCE",
    help="Network that the ratios refer to.  [default: timm's FasterNet of the first model's size, or the first model; "
    "resnet50 for a preset]",
)
@runtime_option
@click.option(
    "-p", "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]), default="fp32", help="Number format."
)
@click.option("-t", "--threads", type=IntRange(min=1), default=1, help="CPU threads.")
@click.option(
    "-b",
    "--batch-size",
    type=IntRange(min=1),
    help="Images at a time.  [default: 1; 16 for a preset's throughput]",
)
@click.option(
    "--img-size", type=IntRange(min=32), help="Height and width of the images.  [default: each network's own]"
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where to run.")
@click.option(
    "--seconds",
    type=FloatRange(min=0, min_open=True),
    help="Time to measure each runtime; for a preset each latency and each throughput.  [default: 10; 4 for a preset]",
)
@output_folder("Folder for a preset's files.  [default: bench_PRESET_PRECISION_THREADSt]")
@result_options(json="the rows and the environment", csv="the rows as CSV", plot="a bar chart as PNG")
def bench(
    sources: tuple[str, ...],
    preset: str | None,
    against: str | None,
    runtime: str,
    precision: str,
    threads: int,
    batch_size: int | None,
    img_size: int | None,
    device: str,
    seconds: float | None,
    results: Results,
    output: Path | None,
) -> None:
    """Time networks in turn, in one process, ready for inference.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, or a model
    name (timm's, torchvision:NAME). All are treated alike: re-parameterised where possible, with BatchNorms folded, in
    the memory layout that suits them: in eager PyTorch the faster one; compiled, channels_last on the CPU, and on a GPU
    the one that is faster uncompiled. In eager PyTorch on a GPU, convolutions that are matrix products run as such
    where that is faster. Ratios are medians of the ratios round by round, so that changes in the machine's speed cancel
    out.

    With --preset, a list of networks is measured, each in turn with the reference, into a folder: JSON, CSV, a Markdown
    table, and accuracy against latency as PNG. Accuracies are quoted, not measured. Model names then choose some of the
    rows. A run that was stopped continues where it left off.

    \b
    Examples: partialnet bench partialnet_t0 mobilenetv3_large_100 -r onnxruntime,openvino
              partialnet bench runs/flowers resnet18 --img-size 224 --plot speed.png
              partialnet bench --preset paper --runtime openvino
    """
    runtimes = parse_runtimes(runtime)
    if preset is not None:
        if results.wanted or img_size:
            raise UserError("A preset chooses its image sizes and writes all its files into a folder: give -o only.")
        from partialnet.bench.comparison import Conditions

        conditions = Conditions(
            preset, against or "resnet50", precision, threads, device, batch_size or 16, seconds or 4.0
        )
        _bench_preset(conditions, sources, runtimes, output)
        return
    if output is not None:
        raise UserError("-o is for presets; use --json, --csv and --plot for single models.")
    if not sources:
        raise UserError("Name at least one SOURCE, or a --preset; see partialnet bench --help.")
    from partialnet.bench.contestants import Setting

    plot = results.files["plot"]
    if plot is not None and plot.suffix != ".png":
        raise UserError(f"The plot is a PNG; {str(plot)!r} should end in .png.")
    settings = [Setting(name, precision, threads, batch_size or 1, img_size, device) for name in runtimes]
    rows, failures, interruption = _measure_models(sources, settings, against, seconds or 10.0)
    if not rows:
        fail(failures)
    results.say(_as_text(rows, settings[0]))
    _write_rows(rows, failures, interruption is not None, results)
    results.finish(None if results.written else "add --json, --csv or --plot FILE to keep the result.")
    if interruption is not None:
        for failure in failures:
            click.echo(f"partialnet: {failure}", err=True)
        raise interruption
    if failures:
        fail(failures)


def _measure_models(
    models: Sequence[str], settings: Sequence[Setting], against: str | None, seconds: float
) -> tuple[list[Row], list[str], KeyboardInterrupt | None]:
    """What was measured, a sentence for each failure, and the Ctrl-C that ended it early, if any.

    Raises:
        KeyboardInterrupt: Nothing had been measured yet.
    """
    from partialnet.bench.measure import measure_each_setting

    rows: list[Row] = []
    failures: list[str] = []
    left = [setting.runtime for setting in settings]
    each_setting = measure_each_setting(
        models, settings, against, seconds, lambda text: click.echo(text, err=True), failures.append
    )
    try:
        for measured in each_setting:
            rows += measured
            del left[0]
    except KeyboardInterrupt as error:
        if not rows:
            raise
        click.echo(f"\nInterrupted; not measured: {', '.join(left)}.", err=True)
        return rows, failures, error
    return rows, failures, None


def _as_text(rows: Sequence[Row], setting: Setting) -> str:
    from partialnet.bench.environment import place
    from partialnet.bench.report import as_table

    where = place(setting.device, setting.threads)
    return (
        f"{as_table(rows)}\n\nMACs: multiply–adds of the folded network for one image; "
        f"ratio: time ÷ that of {rows[0].against} in the same round; {where}, {setting.precision}."
    )


def _write_rows(rows: Sequence[Row], failures: list[str], interrupted: bool, results: Results) -> None:
    """Write or print what was asked for."""
    from partialnet.bench import environment
    from partialnet.bench.speed_bars import speed_bars
    from partialnet.files import write_csv

    records = [row.as_dict() for row in rows]
    content = {"rows": records, "failures": failures, "interrupted": interrupted}
    results.write_json({"environment": environment(), **content})
    sizes = ("×".join(map(str, row.input_size)) for row in rows)
    lines = [{**record, "input_size": size} for record, size in zip(records, sizes, strict=True)]
    results.write("csv", lambda path: write_csv(path, lines, list(records[0])))
    results.write("plot", lambda path: speed_bars(path, rows))


def _bench_preset(conditions: Conditions, names: tuple[str, ...], runtimes: list[str], output: Path | None) -> None:
    from partialnet.bench.comparison import RESULT_NAME, measure_rows, open_comparison, select
    from partialnet.bench.preset_report import as_text, notes, write_report
    from partialnet.bench.presets import PRESETS
    from partialnet.files import check_destinations

    rows = PRESETS[conditions.preset]
    chosen = select(rows, names)
    where = "cuda" if conditions.device == "cuda" else f"{conditions.threads}t"
    folder = output or Path(f"bench_{conditions.preset}_{conditions.precision}_{where}")
    comparison = open_comparison(folder, conditions)
    if comparison.measurements:
        click.echo(f"Continuing in {folder}: {len(comparison.measurements)} rows are finished.", err=True)
    folder.mkdir(parents=True, exist_ok=True)
    check_destinations(folder / RESULT_NAME)
    try:
        failed = measure_rows(chosen, runtimes, comparison, folder, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        if comparison.measurements:
            comparison.save(folder)  # what failed since the last finished row
        click.echo(f"\nStopped. The same command continues with the rows that {folder} lacks.", err=True)
        raise
    if not comparison.measurements:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in comparison.failures.items())
        raise UserError(f"No row could be measured. {reasons or 'None of them exists here.'}")
    comparison.save(folder)
    written = write_report(folder, comparison, rows)
    click.echo(as_text(comparison, rows))
    click.echo()
    for note in notes(comparison):
        click.echo(note)
    remaining = "the same command without models measures the remaining rows into the same folder."
    tell_written([folder / RESULT_NAME, *written], remaining if comparison.num_untried(rows) else None)
    if failed:
        fail(failed)
