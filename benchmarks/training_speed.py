"""Images per second of a training step: PartialNet-T0 against FasterNet-T0 at 128², on two cores.

    python benchmarks/training_speed.py

The step alone: forward, backward and AdamW in float32, channels_last, on the same random images every time; no loader.
Both networks are timed in turn. Writes benchmarks/results/training_speed.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import timm
import torch
from eager import training_step

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import environment, interleave
from partialnet.files import write_atomically

RESULTS = Path(__file__).parent / "results"
NAMES = ("fasternet_t0", "partialnet_t0")


def step_rows(batch_size: int, img_size: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each network; ratios are of times, to the first."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, img_size, img_size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch_size,))
    steps = {
        name: training_step(timm.create_model(name).train().to(memory_format=torch.channels_last), images, labels)
        for name in NAMES
    }
    timings = interleave(steps, against=NAMES[0], seconds=seconds, description="training step")
    return [
        {
            "what": "step",
            "model": name,
            "batch_size": batch_size,
            "img_size": img_size,
            "images_per_second": round(1e3 * batch_size / timing.median_ms, 2),
            "against": NAMES[0],
            **asdict(timing),
        }
        for name, timing in timings.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=60.0, help="time to measure (60)")
    parser.add_argument("--output", type=Path, default=RESULTS / "training_speed.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = step_rows(options.batch_size, options.img_size, options.seconds)
    for row in rows:
        spread = f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"
        print(f"{row['model']:14} {row['images_per_second']:8.1f} images/s   time ratio {spread}")
    content = {"environment": environment(), "threads": options.threads, "rows": rows}
    write_atomically(options.output, (json.dumps(content, indent=1) + "\n").encode())
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
