"""Forward pass and training step of every PartialNet against timm's FasterNet of the same size, in eager PyTorch.

    python benchmarks/eager.py --threads 2

writes benchmarks/results/eager_<threads>t.json and prints the table. Random images of 224×224, channels_last,
float32, networks as timm builds them (nothing folded).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import timm
import torch
from result_file import result_file, result_parser
from torch import nn
from training_step import random_batch, training_step

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import environment, interleave
from partialnet.files import write_json

SIZES = ("t0", "t1", "t2", "s", "m", "l")
#: images in a training step; the largest networks would need minutes a step at 32
TRAIN_BATCH = {"t0": 32, "t1": 32, "t2": 32, "s": 16, "m": 8, "l": 8}


def forward(model: nn.Module, images: torch.Tensor):
    def run():
        with torch.inference_mode():
            model(images)

    return run


def measure(size: str, seconds: float) -> list[dict]:
    names = (f"fasternet_{size}", f"partialnet_{size}")
    rows = []
    for what, batch in (("forward", 1), ("forward", TRAIN_BATCH[size]), ("training step", TRAIN_BATCH[size])):
        torch.manual_seed(0)
        images, labels = random_batch(batch, 224)
        contestants = {}
        for name in names:
            model = timm.create_model(name).to(memory_format=torch.channels_last)
            model.train(what == "training step")
            contestants[name] = (
                partial(training_step(model), images, labels) if what == "training step" else forward(model, images)
            )
        timings = interleave(contestants, against=names[0], seconds=seconds, description=f"{size} {what} x{batch}")
        ours, theirs = timings[names[1]], timings[names[0]]
        print(
            f"{size:3} {what:14} batch {batch:<3} FasterNet {theirs.median_ms:8.1f} ms   PartialNet "
            f"{ours.median_ms:8.1f} ms   ratio {ours.ratio:.2f} [{ours.ratio_q1:.2f}, {ours.ratio_q3:.2f}]",
            flush=True,
        )
        rows.append(
            {"size": size, "what": what, "batch": batch, "timings": {name: asdict(t) for name, t in timings.items()}}
        )
    return rows


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure each row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = result_file(options, f"eager_{options.threads}t.json")
    rows = []
    for size in options.sizes:
        rows += measure(size, options.seconds)
        write_json(
            path, {"environment": environment(), "threads": options.threads, "rows": rows}
        )  # should it be cut off
    print(f"written: {path}")


if __name__ == "__main__":
    main()
