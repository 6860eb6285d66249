"""Time contestants in turn with the device's own clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

Run = Callable[[], object]

#: Seconds until a GPU that had nothing to do has its clocks up.
WARM_UP_SECONDS = 0.2


class Stopwatch:
    """Milliseconds of a call on a device: CUDA events on a GPU, the wall clock on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, run: Run, calls: int = 1) -> float:
        """Mean time of ``calls`` calls, which are queued without waiting in between."""
        if self.device.type != "cuda":
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            return 1e3 * (time.perf_counter() - begin) / calls
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls


@dataclass
class Samples:
    """Milliseconds of one contestant, round by round, and how many calls make a sample; or the error that ended it."""

    calls: int = 1
    milliseconds: list[float] = field(default_factory=list)
    error: Exception | None = None

    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile."""
        return _quartiles(self.milliseconds)

    def ratio_quartiles(self, reference: Samples) -> tuple[float, float, float]:
        """The same of the ratios to ``reference``, round by round, in which slow moments of the machine cancel."""
        rounds = min(len(self.milliseconds), len(reference.milliseconds))
        return _quartiles(np.asarray(self.milliseconds[:rounds]) / np.asarray(reference.milliseconds[:rounds]))


def _quartiles(values: object) -> tuple[float, float, float]:
    q1, median, q3 = (float(value) for value in np.percentile(np.asarray(values), (25, 50, 75)))
    return q1, median, q3


def interleave(
    contestants: Mapping[str, Run],
    stopwatch: Stopwatch,
    seconds: float,
    latency: bool,
    min_rounds: int = 7,
    max_rounds: int = 300,
) -> dict[str, Samples]:
    """Run all contestants A B C A B C …; one that fails is left out from then on.

    Args:
        contestants: What to time, by name.
        stopwatch: The clock.
        seconds: Time to spend on each contestant, besides warm-up.
        latency: Every call is waited for, as in answering one request. Otherwise a sample is several calls in a row,
            50 ms at least on a GPU, so that the start of a call overlaps with the one before.
        min_rounds: Rounds at least, however long they take.
        max_rounds: Rounds at most.
    """
    samples = {name: Samples() for name in contestants}

    def attempt(name: str, action: Callable[[], float]) -> float:
        try:
            return action()
        except Exception as error:  # whatever one network raises must not end the others' measurement
            samples[name].error = error.with_traceback(None)  # whose frames would keep tensors on the device
            return math.nan

    for name, run in contestants.items():
        # the second call: the first may still look for the fastest kernels
        attempt(name, lambda run=run: stopwatch(run))
        estimate = attempt(name, lambda run=run: stopwatch(run, 3 if stopwatch.device.type == "cuda" else 1))
        if not latency and stopwatch.device.type == "cuda" and estimate > 0:
            samples[name].calls = min(max(math.ceil(50 / estimate), 3), 100)
    begin, rounds = time.perf_counter(), 0
    warm_up = min(WARM_UP_SECONDS, seconds) if stopwatch.device.type == "cuda" else 0.0
    while rounds < 2 or time.perf_counter() - begin < warm_up:
        for name, run in contestants.items():
            if samples[name].error is None:
                attempt(name, lambda run=run, name=name: stopwatch(run, samples[name].calls))
        rounds += 1
    begin = time.perf_counter()
    rounds = 0
    while rounds < min_rounds or (rounds < max_rounds and time.perf_counter() - begin < seconds * len(contestants)):
        for name, run in contestants.items():
            if samples[name].error is None:
                value = attempt(name, lambda run=run, name=name: stopwatch(run, samples[name].calls))
                samples[name].milliseconds.append(value)
        rounds += 1
    return samples
