"""Measure the networks of a preset in turn, each beside one reference; a run that was stopped can be continued."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from partialnet.checkpoint import load
from partialnet.complexity import measure
from partialnet.deploy.library_messages import quiet
from partialnet.errors import UserError
from partialnet.files import write_json

from .contestants import Setting, prepare, prepare_and_run
from .environment import environment
from .peak import Peak, measure_peak
from .presets import PRESETS, PresetRow
from .timing import Timing, interleave, synchronizer
from .torch_settings import torch_settings

RESULT_NAME = "comparison.json"


@dataclass(frozen=True)
class Conditions:
    """What the rows of one result file have in common.

    Attributes:
        preset: Name of the list of networks.
        against: Network that each row takes turns with; the ratios are to its time.
        precision: See ``Setting``.
        threads: CPU threads.
        device: "cpu" or "cuda".
        batch_size: Images at a time where throughput is measured; latency is that of one image.
        seconds: Time to spend on each latency and on each throughput.
    """

    preset: str
    against: str
    precision: str = "fp32"
    threads: int = 1
    device: str = "cpu"
    batch_size: int = 16
    seconds: float = 4.0

    def setting(self, runtime: str, batch_size: int, img_size: int | None) -> Setting:
        """The setting of one measurement."""
        return Setting(runtime, self.precision, self.threads, batch_size, img_size, self.device)


@dataclass(frozen=True)
class Measurement:
    """One network in one runtime.

    Attributes:
        name: Name of its row in the preset.
        runtime: One of ``RUNTIMES``.
        params_m: Parameters in millions, in training form as papers count them.
        macs_g: Multiply–adds in billions for one image, re-parameterised and folded as it is run.
        latency: Times of one image, and their ratio to the reference.
        throughput: Times of one batch, and their ratio to the reference.
        reference_ms: Median time of the reference in the rounds of ``latency``.
        images_per_second: Batch size ÷ median time of a batch.
        gflops: Twice the multiply–adds ÷ median latency, in 10⁹ a second.
        share_of_peak: ``gflops`` ÷ the speed of the machine's fastest convolution, timed in turn with the network.
    """

    name: str
    runtime: str
    params_m: float
    macs_g: float
    latency: Timing
    throughput: Timing
    reference_ms: float
    images_per_second: float
    gflops: float
    share_of_peak: float


@dataclass
class Comparison:
    """What has been measured so far, as the result file stores it.

    Attributes:
        conditions: What the rows have in common.
        machine: CPU, versions and commit that all rows were measured with.
        sessions: The environment of every run that added rows.
        peaks: The machine's fastest convolution, for every run.
        measurements: Finished rows.
        failures: One sentence for each row that could not be measured, by row and runtime, until it is measured.
        missing: Rows of the preset that neither timm nor torchvision has here.
    """

    conditions: Conditions
    machine: dict[str, Any]
    sessions: list[dict[str, Any]] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def find(self, name: str, runtime: str) -> Measurement | None:
        """The finished row of a network in a runtime."""
        return next((row for row in self.measurements if (row.name, row.runtime) == (name, runtime)), None)

    def unfinished(self, rows: Sequence[PresetRow], runtime: str) -> list[PresetRow]:
        """Those of ``rows`` that exist here and have no measurement in the runtime."""
        return [row for row in rows if row.name not in self.missing and self.find(row.name, runtime) is None]

    def runtimes(self) -> list[str]:
        """All runtimes with a finished row, in the order they were measured in."""
        return list(dict.fromkeys(row.runtime for row in self.measurements))

    def num_untried(self, rows: Sequence[PresetRow]) -> int:
        """How many of a preset's rows have neither finished nor failed yet, counted over the runtimes so far."""
        return sum(
            key_of(row.name, runtime) not in self.failures
            for runtime in self.runtimes()
            for row in self.unfinished(rows, runtime)
        )

    def steady_latency_ms(self, row: Measurement) -> float:
        """The row's ratio to the reference × the reference's median over all rows of the runtime, in ms.

        It equals the median latency on a quiet machine, and stays comparable where others' work slowed some rows down.
        """
        return row.latency.ratio * median(
            other.reference_ms for other in self.measurements if other.runtime == row.runtime
        )

    def save(self, folder: Path) -> None:
        """Write the result file in one step."""
        write_json(folder / RESULT_NAME, asdict(self))


def key_of(name: str, runtime: str) -> str:
    """What ``Comparison.failures`` calls a network in a runtime."""
    return f"{name} · {runtime}"


def open_comparison(folder: Path, conditions: Conditions) -> Comparison:
    """A new comparison, or the one that ``folder`` already holds, if its rows are of the same conditions and machine.

    Raises:
        UserError: The folder holds rows of other conditions, another machine or version, or its file is damaged.
    """
    found = environment()
    machine = {key: found[key] for key in ("cpu", "cpu_capability", "gpu", "versions", "commit")}
    path = folder / RESULT_NAME
    missing = [row.name for row in PRESETS[conditions.preset] if not row.exists()]
    if not path.exists():
        return Comparison(conditions, machine, missing=missing)
    try:
        content = json.loads(path.read_text())
        comparison = Comparison(
            Conditions(**content["conditions"]),
            content["machine"],
            content["sessions"],
            [Peak(**peak) for peak in content["peaks"]],
            [_measurement(row) for row in content["measurements"]],
            dict(content["failures"]),
            missing,
        )
        before = {**asdict(comparison.conditions), **comparison.machine, **comparison.machine["versions"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is damaged or of another kind; give another folder with -o.") from error
    now = {**asdict(conditions), **machine, **machine["versions"]}
    changed = [
        f"{key} was {before.get(key)}, is {value}"
        for key, value in now.items()
        if before.get(key) != value and key != "versions"  # which are compared one by one
    ]
    if changed:
        raise UserError(
            f"{str(folder)!r} holds rows that were measured under other settings ({'; '.join(changed)}); give another "
            "folder with -o, or delete it."
        )
    return comparison


def _measurement(row: dict[str, Any]) -> Measurement:
    return Measurement(**{**row, "latency": Timing(**row["latency"]), "throughput": Timing(**row["throughput"])})


def measure_rows(
    rows: Sequence[PresetRow],
    runtimes: Sequence[str],
    comparison: Comparison,
    folder: Path,
    on_row: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Measure what is not finished yet and store each row as soon as it is.

    Networks take turns with the reference, so that ratios hold though hours lie between two rows. A network that
    cannot be run is told and passed over.

    Args:
        rows: The networks.
        runtimes: Runtimes to measure each in.
        comparison: Results so far; extended in place.
        folder: Where the result file lies.
        on_row: Called with one line of text for each row.

    Returns:
        A sentence for each runtime that cannot run the reference, in which no row was measured.

    Raises:
        UserError: A runtime does not offer the precision or device; nothing is measured then.
    """
    conditions = comparison.conditions
    for runtime in runtimes:
        conditions.setting(runtime, 1, None).check()
    todo = {runtime: lacking for runtime in runtimes if (lacking := comparison.unfinished(rows, runtime))}
    total, number, unusable = sum(map(len, todo.values())), 0, []
    if not total:
        return []
    with torch_settings(conditions.threads):
        reference = load(conditions.against)
        peak, run_peak = measure_peak(conditions.threads, conditions.precision, conditions.device)
        comparison.peaks.append(peak)
        comparison.sessions.append(environment())
        on_row(f"Fastest convolution here: {peak.gflops:.0f} GFLOP/s in {peak.precision} ({peak.runtime}).")
        for runtime, lacking in todo.items():
            try:
                prepared = {
                    size: prepare_and_run(
                        f"The reference {conditions.against}", reference, conditions.setting(runtime, size, None)
                    )
                    for size in (1, conditions.batch_size)
                }
            except UserError as error:
                failure = str(error).rstrip(".")
                unusable.append(f"{failure}; no row was measured there, as all ratios refer to it.")
                comparison.failures[key_of(conditions.against, runtime)] = failure
                on_row(f"Passed over {runtime}: {failure}")
                number += len(lacking)
                continue
            comparison.failures.pop(key_of(conditions.against, runtime), None)
            for row in lacking:
                number += 1
                key = key_of(row.name, runtime)
                measure_row = partial(_measure, row, runtime, prepared, conditions, peak.gflop, run_peak)
                on_row(f"[{number}/{total}] {key}: {_add_row(comparison, key, measure_row, folder)}")
    return unusable


def _add_row(comparison: Comparison, key: str, measure_row: Callable[[], Measurement], folder: Path) -> str:
    """Measure a row and store it, or note why it cannot be measured; what came of it, in words."""
    try:
        found = measure_row()
    except Exception as error:  # networks fail in as many ways as there are runtimes; the others go on
        comparison.failures[key] = " ".join(str(error).split())[:200] or type(error).__name__
        return f"not measured: {comparison.failures[key]}"
    finally:
        gc.collect()  # the last network's memory, before the next one is built
    comparison.measurements.append(found)
    comparison.failures.pop(key, None)
    comparison.save(folder)
    return (
        f"{found.latency.median_ms:.2f} ms, {found.images_per_second:.0f} images/s, {found.share_of_peak:.0%} of peak"
    )


def _measure(
    row: PresetRow,
    runtime: str,
    reference: dict[int, Callable[[], object]],
    conditions: Conditions,
    peak_gflop: float,
    run_peak: Callable[[], object],
) -> Measurement:
    checkpoint = load(row.model)
    channels = checkpoint.input_config["input_size"][0]
    complexity = measure(checkpoint.model, (channels, row.img_size, row.img_size))

    def contestants(batch_size: int) -> dict[str, Callable[[], object]]:
        with quiet():
            run = prepare(checkpoint, conditions.setting(runtime, batch_size, row.img_size))
        return {"reference": reference[batch_size], "row": run}

    def timed(runs: dict[str, Callable[[], object]], min_rounds: int, warmup: int) -> dict[str, Timing]:
        return interleave(
            runs,
            "reference",
            conditions.seconds,
            min_rounds=min_rounds,
            warmup=warmup,
            synchronize=synchronizer(torch.device(conditions.device)),
            progress=False,
        )

    latencies = timed({**contestants(1), "peak": run_peak}, min_rounds=9, warmup=3)
    throughput = timed(contestants(conditions.batch_size), min_rounds=3, warmup=1)["row"]
    gflops = 2e3 * complexity.folded.macs_g / latencies["row"].median_ms
    return Measurement(
        row.name,
        runtime,
        complexity.training.params_m,
        complexity.folded.macs_g,
        latencies["row"],
        throughput,
        latencies["reference"].median_ms,
        1e3 * conditions.batch_size / throughput.median_ms,
        gflops,
        gflops / (1e3 * peak_gflop / latencies["peak"].median_ms),
    )


def select(rows: Sequence[PresetRow], names: Sequence[str]) -> list[PresetRow]:
    """The rows with one of these names or models, in the preset's order; all rows where no name is given.

    Raises:
        UserError: A name belongs to no row.
    """
    wanted = {name.casefold() for name in names}
    known = {key.casefold() for row in rows for key in (row.name, row.model)}
    if unknown := sorted(wanted - known):
        raise UserError(f"The preset has no row {unknown[0]!r}. Its rows: {', '.join(row.name for row in rows)}.")
    return [row for row in rows if not names or {row.name.casefold(), row.model.casefold()} & wanted]
