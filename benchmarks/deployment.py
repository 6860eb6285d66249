"""Folded PartialNet against FasterNet of the same size, ready for inference, on one core.

    taskset -c 0 python benchmarks/deployment.py

writes benchmarks/results/deployment.json and prints a line for each pair: one 224×224 image, or ``--batch-size``, one
thread; eager PyTorch, onnxruntime and OpenVINO in float32, OpenVINO in bfloat16 where the CPU has it, and, with
``--precisions int8``, onnxruntime and OpenVINO in int8; with ``--runtimes compile``, PyTorch's compiler. FasterNet's
BatchNorms are folded too, and eager PyTorch runs both in the memory layout that is faster for each; once with
FasterNet's 1×1 convolutions as matrix products, like ours, and once with its layers as they are. Beside each network
stand the GFLOP/s that it reaches, and those of one large convolution in OpenVINO, in float32 or bfloat16, measured just
before: what the core can do. Times are processor time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace

import timm
import torch
from result_file import result_file, result_parser
from torch import nn

import partialnet
from partialnet.bench import environment, interleave
from partialnet.bench.contestants import RUNTIMES, Setting, fastest_form, open_and_prepare
from partialnet.bench.runners import exported_runner
from partialnet.complexity import measure as measure_complexity
from partialnet.errors import UserError
from partialnet.files import write_json

SIZES = ("t0", "t1", "t2", "s", "m", "l")
SETTINGS = tuple(
    Setting(runtime, precision)
    for runtime, precision in (
        *(("openvino", "fp32"), ("onnxruntime", "fp32"), ("eager", "fp32"), ("compile", "fp32")),
        *(("openvino", "bf16"), ("openvino", "int8"), ("onnxruntime", "int8")),
    )
)
#: the convolution that shows what a core can do: channels and side of its map
CHANNELS, SIDE = 256, 56
#: processor time, which leaves out what others ran on the core in the meantime
CLOCK = time.process_time


def large_convolution(precision: str) -> Callable[[], object]:
    """A 3×3 convolution in OpenVINO on one thread, in bf16 or otherwise in fp32."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).eval()
    images = torch.randn(1, CHANNELS, SIDE, SIDE)
    return exported_runner(conv, images, "openvino", "bf16" if precision == "bf16" else "fp32", 1)


def with_own_layers(name: str, setting: Setting) -> Callable[[], object]:
    """A network in eager PyTorch with its BatchNorms folded, and nothing else changed."""
    images = torch.randn(setting.batch_size, 3, 224, 224)
    return fastest_form([partialnet.fold(timm.create_model(name).eval())], images, setting)


def gflops(macs: float, milliseconds: float) -> float:
    return round(2 * macs / milliseconds / 1e6, 1)


def measure(size: str, setting: Setting, own_layers: bool, seconds: float) -> dict:
    """One row of the result; raises UserError where this machine does not offer the setting."""
    names = (f"fasternet_{size}", f"partialnet_{size}")
    what = f"{size} {setting.runtime} {setting.precision}{' own layers' if own_layers else ''}"
    runs = {name: open_and_prepare(name, setting) for name in names}
    if own_layers:
        runs[names[0]] = with_own_layers(names[0], setting)
    convolution = interleave({"conv": large_convolution(setting.precision)}, "conv", seconds=0.5, clock=CLOCK)["conv"]
    timings = interleave(runs, names[0], seconds=seconds, clock=CLOCK, description=what)
    macs = {name: measure_complexity(timm.create_model(name, device="meta"), (3, 224, 224)) for name in names}
    computed = {name: 1e9 * macs[name].folded.macs_g * setting.batch_size for name in names}
    reached = {name: gflops(computed[name], timings[name].median_ms) for name in names}
    core = gflops(CHANNELS**2 * 9 * SIDE**2, convolution.median_ms)
    ours, theirs = timings[names[1]], timings[names[0]]
    print(
        f"{what:26} FasterNet {theirs.median_ms:7.2f} ms {reached[names[0]]:6.1f} GFLOP/s   PartialNet "
        f"{ours.median_ms:7.2f} ms {reached[names[1]]:6.1f} GFLOP/s   large convolution {core:.1f} GFLOP/s   ratio "
        f"{ours.ratio:.3f} [{ours.ratio_q1:.3f}, {ours.ratio_q3:.3f}]",
        flush=True,
    )
    return {
        "size": size,
        "runtime": setting.runtime,
        "precision": setting.precision,
        "fasternet": "own layers" if own_layers else "best form",
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "gflops": reached,
        "large_convolution_gflops": core,
    }


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--runtimes", nargs="+", default=("eager", "onnxruntime", "openvino"), choices=RUNTIMES)
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"), choices=("fp32", "bf16", "int8"))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure each pair")
    options = parser.parse_args()
    path = result_file(options, "deployment.json")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    settings = [
        (replace(setting, batch_size=options.batch_size), own_layers)
        for setting in SETTINGS
        for own_layers in ((False, True) if setting.runtime == "eager" else (False,))
        if setting.runtime in options.runtimes and setting.precision in options.precisions
    ]
    rows: list[dict] = []
    unavailable: dict[str, str] = {}
    for size in options.sizes:
        for setting, own_layers in settings:
            what = f"{setting.runtime} {setting.precision}"
            if what in unavailable:
                continue
            try:
                rows.append(measure(size, setting, own_layers, options.seconds))
            except UserError as error:
                unavailable[what] = str(error)
                print(f"not available: {what}: {error}", flush=True)
    content = {"environment": environment(), "threads": 1, "clock": "processor time", "batch_size": options.batch_size}
    if unavailable:
        content["not_available"] = unavailable
    write_json(path, {**content, "rows": rows})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
