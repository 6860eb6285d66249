"""The files of a comparison: CSV, a Markdown table, and a picture for each runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from partialnet.files import write_atomically, write_csv
from partialnet.markdown import markdown_table

from .accuracy_latency import Point, accuracy_latency
from .comparison import Comparison, Conditions, Measurement
from .contestants import RUNTIMES
from .presets import PAPER_SOURCE, PresetRow

_PACKAGES = {"eager": "torch", "compile": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}


def write_report(folder: Path, comparison: Comparison, rows: Sequence[PresetRow]) -> list[Path]:
    """Write all files for what has been measured so far.

    Args:
        folder: Where they go.
        comparison: At least one measurement.
        rows: The preset.

    Returns:
        The files.
    """
    records = [
        _record(row, found, comparison)
        for runtime in comparison.runtimes()
        for row, found in _finished(comparison, rows, runtime)
    ]
    csv_path, table_path = folder / "comparison.csv", folder / "comparison.md"
    write_csv(csv_path, records, list(records[0]))
    write_atomically(table_path, _markdown(comparison, rows).encode())
    written = [csv_path, table_path]
    for runtime in comparison.runtimes():
        points = [
            Point(row.name, row.family, row.size, comparison.steady_latency_ms(found), row.top1_quoted, row.distilled)
            for row, found in _finished(comparison, rows, runtime)
            if row.top1_quoted is not None
        ]
        if points:
            path = folder / f"accuracy_latency_{runtime}.png"
            families = list(dict.fromkeys(row.family for row in rows))
            conditions, note = _conditions(comparison, runtime), _figure_note(points, rows, comparison)
            accuracy_latency(path, points, families, "Accuracy against latency", conditions, note)
            written.append(path)
    return written


def _finished(comparison: Comparison, rows: Sequence[PresetRow], runtime: str) -> list[tuple[PresetRow, Measurement]]:
    """Finished rows of a runtime, in the preset's order."""
    return [(row, found) for row in rows if (found := comparison.find(row.name, runtime)) is not None]


def _record(row: PresetRow, found: Measurement, comparison: Comparison) -> dict[str, Any]:
    """A row of the CSV file. What was quoted says so in the name of its column."""
    conditions = comparison.conditions
    paper = asdict(row.paper) if row.paper else {}
    return {
        "name": row.name,
        "family": row.family,
        "model": row.model,
        "img_size": row.img_size,
        "runtime": found.runtime,
        "precision": conditions.precision,
        "threads": conditions.threads,
        "device": conditions.device,
        "params_m": round(found.params_m, 4),
        "macs_g": round(found.macs_g, 5),
        "latency_ms": round(found.latency.median_ms, 4),
        "latency_q1_ms": round(found.latency.q1_ms, 4),
        "latency_q3_ms": round(found.latency.q3_ms, 4),
        "latency_steady_ms": round(comparison.steady_latency_ms(found), 4),
        "against": conditions.against,
        "latency_ratio": round(found.latency.ratio, 4),
        "latency_ratio_q1": round(found.latency.ratio_q1, 4),
        "latency_ratio_q3": round(found.latency.ratio_q3, 4),
        "batch_size": conditions.batch_size,
        "images_per_second": round(found.images_per_second, 2),
        "gflops_per_second": round(found.gflops, 2),
        "share_of_peak": round(found.share_of_peak, 4),
        "top1_quoted_percent": "" if row.top1_quoted is None else row.top1_quoted,
        "top1_quoted_from": row.top1_source,
        "params_m_quoted": paper.get("params_m", ""),
        "macs_g_quoted": paper.get("macs_g", ""),
        "latency_ms_quoted": paper.get("latency_ms", ""),
        "images_per_second_v100_quoted": paper.get("images_per_second_v100", ""),
        "images_per_second_mi250_quoted": paper.get("images_per_second_mi250", ""),
    }


def _conditions(comparison: Comparison, runtime: str) -> str:
    """Runtime, precision, threads and processor in one line."""
    conditions, machine = comparison.conditions, comparison.machine
    version = machine["versions"].get(_PACKAGES[runtime], "")
    threads = "1 thread" if conditions.threads == 1 else f"{conditions.threads} threads"
    where = f"{machine['gpu']}" if conditions.device == "cuda" else f"{machine['cpu']}, {threads}"
    return f"{RUNTIMES[runtime]} {version}, {conditions.precision}, batch 1 · {where}"


def _figure_note(points: Sequence[Point], rows: Sequence[PresetRow], comparison: Comparison) -> str:
    drawn = {point.name for point in points}
    used = {row.top1_source for row in rows if row.name in drawn}
    kinds = {"paper": "the paper (Table 10)", "timm": "timm's results", "authors'": "their authors' tables"}
    sources = [text for kind, text in kinds.items() if any(source.startswith(kind) for source in used)]
    note = f"Accuracies are quoted from {', '.join(sources)}, not measured."
    if any(point.distilled for point in points):
        note += " Hollow: distilled."
    return f"{note}\nLatency: ratio to {comparison.conditions.against} in the same rounds × its median."


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the figures must know, one sentence each."""
    conditions = comparison.conditions
    lines = [
        "Top-1 accuracies are quoted, not measured.",
        f"Ratios: time ÷ that of {conditions.against} in the same round; medians and quartiles of the rounds.",
        "latency_steady_ms and the picture: that ratio × the reference's median over all rows, which other programs' "
        "load disturbs less than a median latency.",
        "Networks have random weights and random images; all are re-parameterised and folded where they can be, and "
        "in the memory layout that suits them.",
        "Parameters are those of the training form; multiply–adds those of the form that is run. Speed counts two "
        "operations for each multiply–add.",
    ]
    if conditions.precision == "int8":
        lines.append("int8 was calibrated on random images: that shows the speed and says nothing of accuracy.")
    if conditions.precision in ("int8", "fp16"):
        lines.append("The peak is that of fp32.")
    if comparison.peaks:
        fastest = max(comparison.peaks, key=lambda peak: peak.gflops)
        lines.append(
            f"Peak: {fastest.gflops:.0f} GFLOP/s, the fastest of some large convolutions ({fastest.convolution}) in "
            f"{RUNTIMES[fastest.runtime]}, {fastest.precision}, {fastest.threads} thread(s). Shares are of that "
            "convolution's speed in the same rounds."
        )
    if comparison.missing:
        lines.append(f"Neither timm nor torchvision has here: {', '.join(comparison.missing)}.")
    lines += [f"Not measured: {name}: {reason}" for name, reason in comparison.failures.items()]
    return lines


def _markdown(comparison: Comparison, rows: Sequence[PresetRow]) -> str:
    conditions, machine = comparison.conditions, comparison.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# Preset {conditions.preset}, {conditions.precision}, "
        f"{'GPU' if conditions.device == 'cuda' else f'{conditions.threads} CPU thread(s)'}",
        "",
        f"{machine['gpu'] if conditions.device == 'cuda' else machine['cpu']}; {versions}; commit {machine['commit']}. "
        f"{comparison.sessions[-1]['date'] if comparison.sessions else ''}",
    ]
    paper = any(row.paper for row in rows) and conditions.preset == "paper"
    for runtime in comparison.runtimes():
        table = [_cells(row, found, conditions, paper) for row, found in _finished(comparison, rows, runtime)]
        header = [heading for heading, _ in table[0]]
        texts = [[text for _, text in cells] for cells in table]
        lines += ["", f"## {RUNTIMES[runtime]}", "", *markdown_table(header, texts)]
    lines += ["", *(f"- {note}" for note in notes(comparison))]
    if paper:
        lines.append(f"- Columns headed “paper” and the accuracies are quoted from the {PAPER_SOURCE}.")
    return "\n".join(lines) + "\n"


def _cells(row: PresetRow, found: Measurement, conditions: Conditions, paper: bool) -> list[tuple[str, str]]:
    """Headings and texts of a row; ``paper``: with what the paper has for it, where it has the row."""
    latency, quoted = found.latency, row.paper
    cells = [
        ("network", f"**{row.name}**" if row.family == "PartialNet" else row.name),
        ("image", f"{row.img_size}²"),
        ("params M", f"{found.params_m:.2f}"),
        ("paper", quoted and f"{quoted.params_m}"),
        ("MACs G", f"{found.macs_g:.3f}"),
        ("paper", quoted and f"{quoted.macs_g:.2f}"),
        ("latency ms", f"{latency.median_ms:.2f} ({latency.q1_ms:.2f}–{latency.q3_ms:.2f})"),
        ("paper, EPYC 73F3", quoted and f"{quoted.latency_ms}"),
        (f"÷ {conditions.against}", f"{latency.ratio:.2f} ({latency.ratio_q1:.2f}–{latency.ratio_q3:.2f})"),
        (f"images/s, batch {conditions.batch_size}", f"{found.images_per_second:.1f}"),
        ("paper, V100", quoted and f"{quoted.images_per_second_v100}"),
        ("paper, MI250", quoted and f"{quoted.images_per_second_mi250}"),
        ("of peak", f"{found.share_of_peak:.0%}"),
        ("top-1 % (quoted, not measured)", "" if row.top1_quoted is None else f"{row.top1_quoted:.1f}"),
        *([] if paper else [("quoted from", row.top1_source)]),
    ]
    return [(heading, text or "") for heading, text in cells if paper or not heading.startswith("paper")]


def as_text(comparison: Comparison, rows: Sequence[PresetRow]) -> str:
    """A table for a terminal."""
    width = max(len(row.name) for row in rows) + 2
    head = f"{'network':{width}}{'params M':>9}{'MACs G':>9}{'ms':>10}{'ratio':>8}{'images/s':>11}{'of peak':>9}"
    lines = []
    for runtime in comparison.runtimes():
        lines += [
            "",
            f"{RUNTIMES[runtime]}, {comparison.conditions.precision}",
            f"{head}{'top-1 % (quoted)':>18}",
        ]
        lines += [
            f"{row.name:{width}}{found.params_m:>9.2f}{found.macs_g:>9.3f}{found.latency.median_ms:>10.2f}"
            f"{found.latency.ratio:>8.2f}{found.images_per_second:>11.1f}{found.share_of_peak:>9.0%}"
            f"{'' if row.top1_quoted is None else f'{row.top1_quoted:.1f}':>18}"
            for row, found in _finished(comparison, rows, runtime)
        ]
    return "\n".join(lines[1:])
