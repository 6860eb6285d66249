"""``partialnet bench``."""

from __future__ import annotations

from pathlib import Path

import click

from partialnet.errors import UserError


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option(
    "-a",
    "--against",
    help="Network that the ratios refer to.  [default: timm's FasterNet of the first model's size, or the first model]",
)
@click.option(
    "-r",
    "--runtime",
    default="eager",
    show_default=True,
    help="eager, compile, onnxruntime, openvino, or several with commas.",
)
@click.option(
    "-p", "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Format."
)
@click.option("-t", "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads.")
@click.option("-b", "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Images at a time.")
@click.option("--img-size", type=click.IntRange(min=32), help="Height and width.  [default: each network's own]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time to measure each runtime.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows and the environment.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Write a bar chart as PNG.")
def bench(
    models: tuple[str, ...],
    against: str | None,
    runtime: str,
    precision: str,
    threads: int,
    batch_size: int,
    img_size: int | None,
    device: str,
    seconds: float,
    json_path: Path | None,
    csv_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Time MODELS in turn, in one process, ready for inference.

    MODELS are names of timm's registry, run folders, checkpoints, or torchvision:NAME. All are treated alike:
    re-parameterised where they can be, BatchNorms folded, in the memory layout that suits them. Ratios are medians of
    the ratios round by round, so that a machine's changes of speed cancel.

    Example: partialnet bench partialnet_t0 mobilenetv3_large_100 --runtime onnxruntime,openvino --plot speed.png
    """
    import torch

    from partialnet.bench import environment, interleave
    from partialnet.bench.contestants import RUNTIMES, Setting, default_peer, open_and_prepare, open_contestant
    from partialnet.bench.report import Row, as_table, write_json
    from partialnet.bench.timing import synchronizer
    from partialnet.complexity import measure
    from partialnet.files import write_csv
    from partialnet.plots import speed_bars

    runtimes = list(dict.fromkeys(name.strip() for name in runtime.split(",") if name.strip()))
    for name in runtimes:
        if name not in RUNTIMES:
            raise UserError(f"There is no runtime {name!r}; choose among {', '.join(RUNTIMES)}.")
    settings = [Setting(name, precision, threads, batch_size, img_size, device) for name in runtimes]
    for setting in settings:
        setting.check()
    for path in (json_path, csv_path, plot_path):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"There is no folder {str(path.parent)!r} to write {path.name} into.")
    if plot_path is not None and plot_path.suffix != ".png":
        raise UserError(f"The plot is a PNG; {str(plot_path)!r} should end in .png.")
    reference = against or default_peer(models[0]) or models[0]
    names = list(dict.fromkeys([*models, reference]))
    sizes, inputs = {}, {}
    for name in names:
        checkpoint = open_contestant(name)
        channels, height, width = checkpoint.input_config["input_size"]
        inputs[name] = (channels, img_size or height, img_size or width)
        sizes[name] = measure(checkpoint.model, inputs[name]).folded
    if len(set(inputs.values())) > 1:
        each = ", ".join(f"{name} {height}×{width}" for name, (_, height, width) in inputs.items())
        click.echo(f"Warning: image sizes differ ({each}); --img-size sets one for all.", err=True)
    rows = []
    for setting in settings:
        click.echo(f"Preparing {len(names)} networks for {setting.runtime} …", err=True)
        contestants = open_and_prepare(names, setting)
        timings = interleave(
            contestants, reference, seconds, synchronize=synchronizer(torch.device(device)), description=setting.runtime
        )
        rows += [
            Row(model, reference, setting, inputs[model], timing, sizes[model].params_m, sizes[model].macs_g)
            for model, timing in timings.items()
        ]
    click.echo(as_table(rows))
    click.echo(f"\nratio: time ÷ that of {reference} in the same round; {threads} CPU thread(s), {precision}.")
    written = []
    if json_path:
        write_json(json_path, rows, environment())
        written.append(json_path)
    if csv_path:
        records = [row.as_dict() for row in rows]
        write_csv(csv_path, records, list(records[0]))
        written.append(csv_path)
    if plot_path:
        speed_bars(plot_path, rows)
        written.append(plot_path)
    if written:
        click.echo(f"Written: {', '.join(map(str, written))}")
    else:
        click.echo("Next: add --json, --csv or --plot FILE to keep the result.")
