"""Cost of searching: a training step with DPConv against one with a dense 3×3 convolution in its place.

    python benchmarks/search_step.py --threads 1

writes benchmarks/results/search_step.json. Networks, loss and optimiser are alike but for the layer: a dense
convolution of all channels, DPConv that passes the rest through, DPConv that attends over the rest; and the static
PartialNet for comparison. DPConv convolves 1/4 of the channels, where a search starts, once all, and once two
channels with every layer's gates out of order. Random images of 128×128, channels_last, float32; one thread is timed
by the processor's time that it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import timm
import torch
import torch.nn.functional as F
from result_file import result_file, result_parser
from torch import Tensor, nn
from training_step import random_batch, training_step

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import environment, interleave
from partialnet.files import write_json
from partialnet.search import Objective, dynamic_layers, make_dynamic

SIZES = ("t0", "t1", "t2", "s")
DENSE = "dense 3×3"


def search_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One training step; a searched network's loss is the search's objective."""
    layers = list(dynamic_layers(model).values())
    objective = Objective()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = F.cross_entropy(logits, labels)
        return objective(value, layers) if layers else value

    step = training_step(model.to(memory_format=torch.channels_last).train(), loss)

    def run() -> None:
        step(images, labels)
        for layer in layers:
            layer.clamp_gates()

    return run


@torch.no_grad()
def with_all_channels(model: nn.Module) -> nn.Module:
    """The network with every gate of its searched layers at 1."""
    for layer in dynamic_layers(model).values():
        layer.gates.fill_(0.5)
    return model


@torch.no_grad()
def out_of_order(model: nn.Module) -> nn.Module:
    """The network with the gates of every searched layer out of order, where there are two or more."""
    for layer in dynamic_layers(model).values():
        layer.gates.fill_(-0.5)
        layer.gates[-2:-1] = 0.5
    return model


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=15.0, help="time to measure each size")
    options = parser.parse_args()
    path = result_file(options, "search_step.json")
    torch.set_num_threads(options.threads)
    rows = []
    for size in options.sizes:
        torch.manual_seed(0)
        images, labels = random_batch(options.batch_size, options.img_size)
        static = timm.create_model(f"partialnet_{size}")
        networks = {
            DENSE: timm.create_model(f"partialnet_{size}", mixers=("conv",) * 4),
            "DPConv": make_dynamic(static, attention=False),
            "DPConv with attention": make_dynamic(static),
            "DPConv with attention, all channels": with_all_channels(make_dynamic(static)),
            "DPConv with attention, out of order": out_of_order(make_dynamic(static)),
            "static PATConv": static,
        }
        steps = {name: search_step(network, images, labels) for name, network in networks.items()}
        clock = time.process_time if options.threads == 1 else None
        timings = interleave(steps, against=DENSE, seconds=options.seconds, description=size, clock=clock)
        rows += [{"size": size, "layer": name, **asdict(timing)} for name, timing in timings.items()]
        for name, timing in timings.items():
            print(f"{size:3} {name:36}{timing.median_ms:9.1f} ms   ratio {timing.ratio:.2f}", flush=True)
    content = {"environment": environment(), "threads": options.threads, "batch_size": options.batch_size, "rows": rows}
    write_json(path, content)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
