"""``partialnet detect bench``."""

from __future__ import annotations

import click

from ..options import FloatRange, IntRange
from ..results import Results, result_options


@click.command()
@click.argument("models", nargs=-1)
@click.option(
    "-a", "--against", metavar="MODEL", help="Detector that the ratios refer to.  [default: resnet50, or the first]"
)
@click.option(
    "--img-size",
    nargs=2,
    type=IntRange(min=64),
    default=(800, 1280),
    metavar="HEIGHT WIDTH",
    help="Size of the image, in multiples of 32.",
)
@click.option(
    "--pyramid-channels",
    multiple=True,
    type=IntRange(min=1),
    default=(256,),
    help="Channels of the pyramid, the width of the heads; repeatable, for each backbone with each. Trained detectors "
    "have their own.",
)
@click.option("--masks/--no-masks", default=True, help="Whether those on backbones find masks, too.")
@click.option("--count", "count_only", is_flag=True, help="Count parameters and multiply–adds only.")
@click.option("-t", "--threads", type=IntRange(min=1), default=1, help="CPU threads.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where to run.")
@click.option("--rounds", type=IntRange(min=1), default=3, help="Times that each is run, at least.")
@click.option("--seconds", type=FloatRange(min=0), default=30, help="Time to measure, at least.")
@result_options(json="the rows and the environment", csv="the rows as CSV")
def bench(
    models: tuple[str, ...],
    against: str | None,
    img_size: tuple[int, int],
    pyramid_channels: tuple[int, ...],
    masks: bool,
    count_only: bool,
    threads: int,
    device: str,
    rounds: int,
    seconds: float,
    results: Results,
) -> None:
    """Time Mask R-CNN, or without masks Faster R-CNN, with the backbones MODELS, in turn, as whole detectors.

    MODELS are names of timm's registry, and run folders or model.safetensors files of trained detectors; without any,
    PartialNet-S, -M and -L and the backbones of the paper's Table 11 (PVT v2 instead of PVT) are measured. One image at
    a time, folded, in float32; backbones with random weights. All pass on as much as they can of 1000 proposals and 100
    detections. The paper's figures are in brackets; its images/s are for a GPU.

    \b
    Example: partialnet detect bench partialnet_s fasternet_s --json detectors.json
    """
    from partialnet.bench.environment import environment, place
    from partialnet.detection.bench import (
        DETECTIONS,
        MODELS,
        PROPOSALS,
        as_table,
        bench_detectors,
        count_detectors,
        write_detector_csv,
    )
    from partialnet.devices import find_device

    names = list(dict.fromkeys(models)) or list(MODELS)
    results.spare(*names)
    find_device(device)
    reference = against or ("resnet50" if "resnet50" in names else names[0])
    if against is not None and against not in names:
        names.append(against)
    widths = list(dict.fromkeys(pyramid_channels))
    if count_only:
        rows = list(count_detectors(names, img_size, widths, masks).values())
    else:
        rows = bench_detectors(
            names,
            reference,
            size=img_size,
            pyramid_channels=widths,
            masks=masks,
            device=device,
            threads=threads,
            seconds=seconds,
            min_rounds=rounds,
        )
    setting = {
        "size": list(img_size),
        "batch_size": 1,
        "precision": "fp32",
        "device": device,
        "threads": threads,
        "against": reference,
        "pyramid_channels": widths,
        "masks": masks,
        "proposals": PROPOSALS,
        "detections": DETECTIONS,
    }
    results.say(as_table(rows))
    if not count_only:
        against_all = f"{reference} with {widths[0]} channels" if len(widths) > 1 else reference
        results.say(f"\nratio: time ÷ that of {against_all} in the same round; {place(device, threads)}, fp32.")
    content = {"environment": environment(), "setting": setting, "rows": [row.as_dict() for row in rows]}
    results.write_json(content)
    results.write("csv", lambda path: write_detector_csv(path, rows))
    results.finish(None if results.written else "add --json or --csv FILE to keep the result.")
