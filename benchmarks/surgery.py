"""Converted networks against their originals, ready for inference, on one core: what partial channels bring, and where.

    taskset -c 1 python benchmarks/surgery.py

writes benchmarks/results/surgery.json and prints a line for each network, runtime and batch size: 224×224, float32, one
thread; OpenVINO, onnxruntime and eager PyTorch; one image, and 16 at a time. Times are processor time, which leaves out
what others run on the machine. --networks, --runtimes and --batch-sizes measure some of the lines; the others of the
file are kept, each with its date and commit. All contestants of a line take turns:

- the original of timm, BatchNorms folded;
- its conversion in timm's registry (`resnet50_pat`, `mobilenetv2_100_pat`, `convnext_tiny_pat`), folded;
- for MobileNetV2 also the conversion in place, with PATConv on the expanded channels where the depthwise convolutions
  were;
- the original without its spatial convolutions and their BatchNorms, whose output is their input (every other position
  where they had a stride). It computes nothing useful: no conversion of these layers can be much faster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import timm
import torch
from result_file import result_file, result_parser
from torch import nn

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import environment, interleave
from partialnet.bench.contestants import Setting, prepare
from partialnet.checkpoint import create_checkpoint
from partialnet.complexity import measure as measure_complexity
from partialnet.deploy.export import quiet
from partialnet.files import write_json
from partialnet.surgery import convert

RUNTIMES = ("openvino", "onnxruntime", "eager")
BATCH_SIZES = (1, 16)
#: processor time, which equals the time that passes where one thread has a core of its own
CLOCK = time.process_time
IN_PLACE, LIMIT = "in place", "without the convolutions"


@dataclass(frozen=True)
class Network:
    """An original: its timm name, the end of the names of the layers in question, and the paper's ratio of throughputs.

    ``in_place`` holds options of ``partialnet.surgery.convert`` for one more conversion.
    """

    base: str
    layers: str
    paper_ratio: float
    in_place: dict[str, object] | None = None


#: Table 5: PATConv's throughput divided by the original's, V100
NETWORKS = {
    "resnet50": Network("resnet50", "conv2", 2832 / 1258),
    "mobilenetv2": Network("mobilenetv2_100", "conv_dw", 4560 / 3924, {"split_ratio": 1 / 16, "attention": "srm"}),
    "convnext": Network("convnext_tiny", "conv_dw", 1123 / 902),
}


def without_layers(model: nn.Module, ending: str) -> nn.Module:
    """The network whose layers of that name pass every stride-th position on, without the BatchNorm behind them."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, layer), (next_name, following) in pairwise(children):
            if name == ending and isinstance(layer, nn.Conv2d):
                stride = layer.stride[0]
                parent.register_module(name, nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity())
                if isinstance(following, nn.BatchNorm2d):  # left alone it could not be folded into anything
                    parent.register_module(next_name, getattr(following, "act", nn.Identity()))
    return model


def contestants(network: Network) -> dict[str, Callable[[], nn.Module]]:
    """What builds each contestant, by name; the original is the first."""
    base = network.base
    found = {base: lambda: timm.create_model(base), f"{base}_pat": lambda: timm.create_model(f"{base}_pat")}
    if network.in_place is not None:
        select = rf"{network.layers}$"
        found[IN_PLACE] = lambda: convert(timm.create_model(base), select=select, **network.in_place)
    found[LIMIT] = lambda: without_layers(timm.create_model(base), network.layers)
    return found


def measure(network: Network, runtime: str, batch_size: int, seconds: float) -> dict:
    """Times of all contestants in one setting."""
    checkpoint = create_checkpoint(network.base)
    checkpoint.input_config["input_size"] = (3, 224, 224)
    setting = Setting(runtime, batch_size=batch_size)
    with quiet():
        runs = {
            name: prepare(replace(checkpoint, model=build().eval()), setting)
            for name, build in contestants(network).items()
        }
    what = f"{network.base} {runtime} batch {batch_size}"
    timings = interleave(runs, network.base, seconds, min_rounds=5, warmup=1, description=what, clock=CLOCK)
    shown = [f"{name} {1 / timing.ratio:.2f}×" for name, timing in timings.items() if name != network.base]
    print(f"{what:36} {timings[network.base].median_ms:8.2f} ms   {', '.join(shown)}", flush=True)
    made = environment()
    return {
        "date": made["date"],
        "commit": made["commit"],
        "network": network.base,
        "runtime": runtime,
        "batch_size": batch_size,
        "paper_ratio": network.paper_ratio,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
    }


def sizes(network: Network) -> dict[str, dict[str, float]]:
    """Parameters in training form and folded multiply–adds of each contestant, in millions and thousand millions."""
    found = {}
    for name, build in contestants(network).items():
        complexity = measure_complexity(build(), (3, 224, 224))
        found[name] = {"params_m": complexity.training.params_m, "macs_g": complexity.folded.macs_g}
    return found


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=tuple(NETWORKS), choices=tuple(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure each setting")
    options = parser.parse_args()
    path = result_file(options, "surgery.json")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chosen = [NETWORKS[name] for name in options.networks]
    content = json.loads(path.read_text()) if path.exists() else {"sizes": {}, "rows": []}
    content |= {"environment": environment(), "threads": 1, "img_size": 224, "clock": "processor time"}
    content["sizes"] |= {network.base: sizes(network) for network in chosen}
    rows = {(row["batch_size"], row["network"], row["runtime"]): row for row in content["rows"]}
    for batch_size in options.batch_sizes:
        for network in chosen:
            for runtime in options.runtimes:
                rows[batch_size, network.base, runtime] = measure(network, runtime, batch_size, options.seconds)
                content["rows"] = [rows[key] for key in sorted(rows)]
                write_json(path, content)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
