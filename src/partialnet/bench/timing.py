"""Time contestants in turn, so that changes in the machine's speed affect all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from partialnet.errors import UserError


@dataclass(frozen=True)
class Timing:
    """Times of one contestant, and their ratio to those of the reference.

    Attributes:
        median_ms: Median time of a call, in milliseconds.
        q1_ms: Lower quartile of the times, in milliseconds.
        q3_ms: Upper quartile of the times, in milliseconds.
        ratio: Median of the ratios round by round, in which slow moments of the machine cancel.
        ratio_q1: Lower quartile of these ratios.
        ratio_q3: Upper quartile of these ratios.
        rounds: How often it was timed.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    rounds: int


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    against: str,
    seconds: float = 5.0,
    min_rounds: int = 7,
    warmup: int = 2,
    synchronize: Callable[[], None] = lambda: None,
    description: str = "measuring",
    progress: bool = True,
    clock: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """Run all contestants A B C A B C … and compare their times.

    Args:
        contestants: What to time, by name.
        against: Name of the reference for the ratios.
        seconds: Time to spend on measuring, all contestants together.
        min_rounds: Rounds at least, however long they take.
        warmup: Rounds that are not counted.
        synchronize: Called before each reading of the clock, for devices that work asynchronously.
        description: Label of the progress bar.
        progress: Show a progress bar.
        clock: Gives the seconds that are reported; None takes wall time. ``time.process_time`` leaves out what other
            programs did on the same core; where one thread has a core of its own, it equals wall time.

    Returns:
        The timing of each contestant.
    """
    clock = clock or time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(warmup):
        for run in contestants.values():
            run()
    synchronize()
    with tqdm(
        total=seconds,
        desc=description,
        unit="s",
        bar_format="{l_bar}{bar}| {elapsed}",
        delay=2,
        disable=None if progress else True,
    ) as bar:
        spent = 0.0
        while spent < seconds or min(map(len, samples.values())) < min_rounds:
            before = time.perf_counter()
            for name, run in contestants.items():
                start = clock()
                run()
                synchronize()
                samples[name].append(1e3 * (clock() - start))
            spent += time.perf_counter() - before
            bar.update(min(spent, seconds) - bar.n)
    reference = np.asarray(samples[against])
    return {name: _summarize(np.asarray(values), reference) for name, values in samples.items()}


def _summarize(values: np.ndarray, reference: np.ndarray) -> Timing:
    q1, median, q3 = (float(value) for value in np.percentile(values, (25, 50, 75)))
    ratio_q1, ratio, ratio_q3 = (float(value) for value in np.percentile(values / reference, (25, 50, 75)))
    return Timing(median, q1, q3, ratio, ratio_q1, ratio_q3, len(values))


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits for a device to finish: nothing on the CPU.

    Raises:
        UserError: It is neither a CPU nor a GPU of CUDA.
    """
    if device.type == "cpu":
        return lambda: None
    if device.type != "cuda":
        raise UserError(f"Times are measured on cpu and cuda, not on {str(device)!r}.")
    return partial(torch.cuda.synchronize, device)
