"""What the rows of an ablation cost: parameters, multiply–adds, latency and throughput, timed in turn in one run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from partialnet.bench.contestants import Setting, prepare_and_run
from partialnet.bench.timing import Timing, interleave, synchronizer
from partialnet.bench.torch_settings import torch_settings
from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.complexity import measure
from partialnet.errors import UserError
from partialnet.models import PartialNet

from .tables import Row


@dataclass(frozen=True)
class Cost:
    """Size of one row's network.

    Attributes:
        model_args: What ``timm.create_model`` is given besides the variant's name.
        input_size: (C, H, W) that multiply–adds are counted for.
        num_classes: Classes of the head.
        params_m: Parameters in millions, training form.
        macs_g: Multiply–adds in billions for one image, folded.
    """

    model_args: Mapping[str, Any]
    input_size: tuple[int, int, int]
    num_classes: int
    params_m: float
    macs_g: float


@dataclass(frozen=True)
class Speed:
    """Times of one row in one runtime; their ratios are to the reference row.

    Attributes:
        runtime: One of ``partialnet.bench.contestants.RUNTIMES``.
        latency: Times of one image.
        throughput: Times of one batch.
        batch_size: Images in that batch.
    """

    runtime: str
    latency: Timing
    throughput: Timing
    batch_size: int

    @property
    def images_per_second(self) -> float:
        """Batch size ÷ median time of a batch."""
        return 1e3 * self.batch_size / self.throughput.median_ms


@dataclass(frozen=True)
class Conditions:
    """How rows are timed.

    Attributes:
        runtimes: Some of ``partialnet.bench.contestants.RUNTIMES``; without any, nothing is timed.
        threads: CPU threads.
        batch_size: Images in a batch for the throughput; the latency is that of one image.
        device: "cpu" or "cuda".
        seconds: Time for the latencies of all rows in a runtime, and as much again for the throughputs.
        processor_time: Count the time of the processor, which leaves out what else a busy machine does.
    """

    runtimes: Sequence[str] = ("eager",)
    threads: int = 1
    batch_size: int = 16
    device: str = "cpu"
    seconds: float = 10.0
    processor_time: bool = False

    def setting(self, runtime: str, images: int) -> Setting:
        """The setting of one measurement with ``images`` at a time."""
        return Setting(runtime, "fp32", self.threads, images, None, self.device)

    def check(self) -> None:
        """Raise UserError for what cannot be timed like this."""
        if self.processor_time and (self.device != "cpu" or self.threads != 1):
            raise UserError("--processor-time adds up all threads, so it can measure one CPU thread only.")
        for runtime in self.runtimes:
            self.setting(runtime, self.batch_size).check()


def build(
    rows: Sequence[Row],
    model: str,
    model_args: Mapping[str, Any],
    img_size: int | None = None,
    num_classes: int = 1000,
) -> dict[str, Checkpoint]:
    """The network of each row, untrained, by the row's name.

    Args:
        rows: The rows.
        model: Name of a PartialNet.
        model_args: Arguments that all rows get.
        img_size: Height and width; None takes the variant's own.
        num_classes: Classes of the head.

    Raises:
        UserError: ``model`` is no PartialNet, an argument does not fit, or the images are too small for it.
    """
    networks = {}
    for row in rows:
        arguments = {"num_classes": num_classes, **row.arguments(model, model_args)}
        networks[row.name] = create_checkpoint(model, **arguments).resized(img_size)
    return networks


def count(checkpoint: Checkpoint) -> Cost:
    """Parameters and multiply–adds of one row's network."""
    channels, height, width = checkpoint.input_config["input_size"]
    complexity = measure(checkpoint.model, (channels, height, width))
    assert isinstance(checkpoint.model, PartialNet)
    return Cost(
        {name: value for name, value in checkpoint.model_args.items() if name != "num_classes"},
        complexity.input_size,
        checkpoint.model.num_classes,
        complexity.training.params_m,
        complexity.folded.macs_g,
    )


def time_rows(
    networks: Mapping[str, Checkpoint], reference: str, runtime: str, conditions: Conditions
) -> dict[str, Speed]:
    """Time all rows in turn in one runtime, folded: one image, then a batch.

    Args:
        networks: Each row's network, by name.
        reference: Name of the row that the ratios refer to.
        runtime: One of ``partialnet.bench.contestants.RUNTIMES``.
        conditions: All else.

    Returns:
        The speed of each row, by name.

    Raises:
        UserError: The runtime is not installed, does not offer the setting, or cannot run a row's network.
    """
    found: list[dict[str, Timing]] = []
    wait = synchronizer(torch.device(conditions.device))
    clock = time.process_time if conditions.processor_time else None
    for images, what in ((1, "latency"), (conditions.batch_size, "throughput")):
        setting = conditions.setting(runtime, images)
        setting.check()
        with torch_settings(conditions.threads):
            contestants = {name: prepare_and_run(name, checkpoint, setting) for name, checkpoint in networks.items()}
            label = f"{runtime}, {what}"
            found.append(
                interleave(contestants, reference, conditions.seconds, synchronize=wait, description=label, clock=clock)
            )
    latencies, throughputs = found
    return {name: Speed(runtime, latencies[name], throughputs[name], conditions.batch_size) for name in networks}
