"""Go through the plan within a time budget and write every row as soon as it is known."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from partialnet.bench import environment
from partialnet.files import write_json

from .ceilings import measure_ceilings
from .networks import missing, work
from .plan import PRECISIONS, Job
from .runs import CompileTimeout, Prepared, free, prepare, release, start_compiler, usable
from .state import device_facts, device_state
from .timing import Samples, Stopwatch, interleave

#: Seconds that a kind of job takes for each network until one has been seen.
FIRST_GUESS = {
    "inference eager": 5.0,
    "inference cudagraph": 3.0,
    "inference compile": 30.0,
    "inference autotune": 75.0,
    "training eager": 8.0,
    "training compile": 60.0,
}
BYTES_PER_VALUE = {"bf16": 2, "tf32": 4, "fp32": 4}


@dataclass
class Suite:
    """One run of the suite and its result file.

    Attributes:
        device: Where to measure.
        path: The result file, written anew after every job.
        minutes: Time budget for everything; what does not fit is skipped and named.
        seconds: Time to measure each network under each setting.
        compile_seconds: The most that compiling one network may take.
        quick: Small ceilings, too.
    """

    device: torch.device
    path: Path
    minutes: float = 8.0
    seconds: float = 1.0
    compile_seconds: float = 90.0
    quick: bool = False
    results: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.begin = time.monotonic()
        self.seconds_per_network = dict(FIRST_GUESS)
        self.given_up: set[str] = set()
        self.results = {
            "environment": environment() | device_facts(self.device),
            "finished": False,
            "minutes": self.minutes,
            "ceilings": {},
            "missing": [],
            "skipped": [],
            "failed": [],
            "rows": [],
        }

    def run(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Do the jobs in order; what the result file holds."""
        torch.backends.cudnn.benchmark = True  # every contestant gets cuDNN's fastest convolutions
        if self.device.type == "cuda" and any(job.compile_mode is not None for job in jobs):
            start_compiler()
        lacking = missing({name for job in jobs for name in job.names})
        self.results["missing"] = lacking
        if lacking:
            print(f"not in this version of timm: {', '.join(lacking)}", flush=True)
        precisions = tuple(precision for precision in PRECISIONS if any(job.precision == precision for job in jobs))
        self.results["ceilings"] = measure_ceilings(self.device, precisions, self.quick)
        self.write()
        print(f"ceilings: {json.dumps(self.results['ceilings'])}", flush=True)
        for index, job in enumerate(jobs):
            names = tuple(name for name in job.names if name not in lacking)
            if len(names) < 2:
                continue
            job = replace(job, names=names)
            kind = f"{job.task} {job.runtime}"
            expected = len(names) * self.seconds_per_network[kind]
            in_vain = kind in self.given_up
            if in_vain or expected > self.left():
                reason = "nothing of this kind could be run" if in_vain else f"{self.left():.0f} s were left"
                self.results["skipped"].append({"job": job.label, "reason": reason})
                self.write()
                continue
            print(f"[{index + 1}/{len(jobs)}, {self.left():.0f} s left] {job.label}", flush=True)
            start, rows = time.monotonic(), len(self.results["rows"])
            self.measure(job)
            release(self.device)
            if len(self.results["rows"]) == rows:
                self.given_up.add(kind)  # without a compiler, say, each further comparison would take its time to fail
            self.seconds_per_network[kind] = (time.monotonic() - start) / len(names)
            self.write()
            if not usable(self.device):
                self.results["skipped"] += [
                    {"job": later.label, "reason": "the device stopped working"} for later in jobs[index + 1 :]
                ]
                break
        self.results["finished"] = True
        self.write()
        return self.results

    def left(self) -> float:
        """Seconds left of the budget."""
        return 60 * self.minutes - (time.monotonic() - self.begin)

    def measure(self, job: Job) -> None:
        """Prepare, time and record the networks of one job; one that fails is recorded with its error."""
        prepared: dict[str, Prepared] = {}
        for name in job.names:
            limit = min(self.compile_seconds, max(self.left(), 1))
            try:
                prepared[name] = prepare(name, job, self.device, limit)
            except CompileTimeout as timeout:
                self.fail(job, (name,), timeout)
                break  # the others may take as long
            except Exception as error:
                self.fail(job, (name,), error)
            else:
                for problem in prepared[name].errors:
                    self.fail(job, (name,), f"in another form: {_sentence(problem)}")
                continue
            free(self.device)  # the others may need what it took
        runs = {name: entry.run for name, entry in prepared.items()}
        samples = interleave(runs, Stopwatch(self.device), self.seconds, latency=job.batch_size == 1)
        state = device_state(self.device)
        reference = samples.get(job.names[0])
        for name, sample in samples.items():
            if sample.error is not None:
                self.fail(job, (name,), sample.error)
                continue
            whole = reference if reference is not None and reference.error is None else None
            row = self.row(name, job, prepared[name], sample, whole) | state
            self.results["rows"].append(row)
            speed = f"{row['median_ms']:9.3f} ms {row['images_per_second']:10.0f} images/s"
            ratio = "" if row["ratio"] is None else f"   ratio {row['ratio']:.2f}"
            print(f"  {name:28} {speed}{ratio}", flush=True)

    def row(
        self, name: str, job: Job, prepared: Prepared, sample: Samples, reference: Samples | None
    ) -> dict[str, Any]:
        """What is known about one network under one setting. Ratios are of times: below 1 is faster."""
        q1, median, q3 = sample.quartiles()
        ratios = sample.ratio_quartiles(reference) if reference is not None else (None, None, None)
        row: dict[str, Any] = {
            "task": job.task,
            "runtime": job.runtime,
            "compile_mode": job.compile_mode,
            "precision": job.precision,
            "layout": "channels_last" if job.channels_last else "contiguous",
            "batch_size": job.batch_size,
            "img_size": job.img_size,
            "model": name,
            "form": prepared.form or "plain",
            "median_ms": median,
            "q1_ms": q1,
            "q3_ms": q3,
            "images_per_second": 1e3 * job.batch_size / median,
            "against": job.names[0] if reference is not None else None,
            "ratio": ratios[1],
            "ratio_q1": ratios[0],
            "ratio_q3": ratios[2],
            "rounds": len(sample.milliseconds),
            "calls_per_round": sample.calls,
            "prepare_seconds": prepared.seconds,
            "peak_memory_mb": prepared.peak_memory_mb,
        }
        if job.task == "inference":
            row |= self.rates(name, job, median)
        return {key: _rounded(value) for key, value in row.items()}

    def rates(self, name: str, job: Job, milliseconds: float) -> dict[str, Any]:
        """Size, achieved TFLOP/s and least GB/s of one batch, and their shares of the ceilings."""
        try:
            needed = work(name, job.img_size)
        except Exception as error:
            return {"work_error": _sentence(error)}
        tflops = needed.flops(job.batch_size) / milliseconds / 1e9
        gb_per_s = needed.bytes_moved(job.batch_size, BYTES_PER_VALUE[job.precision]) / milliseconds / 1e6
        ceilings = self.results["ceilings"]
        return {
            "params_m": needed.params / 1e6,
            "macs_g": needed.macs_per_image / 1e9,
            "tflops": tflops,
            "least_gb_per_s": gb_per_s,
            "share_of_gemm": tflops / ceilings["gemm_tflops"][job.precision],
            "share_of_copy": gb_per_s / ceilings["copy_gb_per_s"],
        }

    def fail(self, job: Job, names: Sequence[str], error: BaseException | str) -> None:
        """Record networks that could not be measured."""
        text = error if isinstance(error, str) else _sentence(error)
        print(f"  failed: {', '.join(names)}: {text}", flush=True)
        self.results["failed"].append({"job": job.label, "models": list(names), "error": text})

    def write(self) -> None:
        """Put the result file as it is now in place of the last."""
        self.results["seconds"] = round(time.monotonic() - self.begin, 1)
        write_json(self.path, self.results)


def _sentence(error: BaseException) -> str:
    """The first lines of an error, without the traces that compilers append."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
