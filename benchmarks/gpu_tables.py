"""Print the documents' tables of a GPU result, as Markdown.

    python benchmarks/gpu_tables.py benchmarks/results/gpu_nvidia_h200.json

Without a file: every benchmarks/results/gpu_*.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RUNTIMES = {"eager": "eager", "cudagraph": "CUDA graph", "compile": "compiled", "autotune": "autotuned"}
PRECISIONS = ("bf16", "tf32", "fp32")
#: What tells two settings apart, in the order in which they are sorted.
SETTING = ("task", "batch_size", "precision", "runtime", "layout", "img_size")

Row = dict[str, Any]
Setting = tuple[Any, ...]


def setting_of(row: Row) -> Setting:
    return tuple(row[key] for key in SETTING)


def title(setting: Setting) -> str:
    """A column's heading."""
    task, batch, precision, runtime, layout, img_size = setting
    words = [f"{task if task == 'training' else 'batch'} {batch}", precision, RUNTIMES[runtime]]
    if layout != "channels_last":
        words.append(layout)
    if img_size != 224:
        words.append(f"{img_size}²")
    return ", ".join(words)


def in_order(settings: set[Setting]) -> list[Setting]:
    """Inference before training, large batches first, bf16 first, eager first."""
    runtimes = tuple(RUNTIMES)
    return sorted(settings, key=lambda s: (s[0], -s[1], PRECISIONS.index(s[2]), runtimes.index(s[3]), s[4], s[5]))


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    table = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*table, *(f"| {' | '.join(line)} |" for line in lines)])


def size_of(model: str) -> str:
    return model.rpartition("_")[2].upper()


def pairs_table(rows: list[Row]) -> str:
    """PartialNet's time over that of FasterNet of the same size: a line for each setting, a column for each size."""
    paired = [row for row in rows if row["model"].startswith("partialnet_") and is_faster_net(row["against"])]
    sizes = [s for s in ("T0", "T1", "T2", "S", "M", "L") if s in {size_of(row["model"]) for row in paired}]
    cells = {(setting_of(row), size_of(row["model"])): row for row in paired}
    lines = []
    for setting in in_order({setting_of(row) for row in paired}):
        found = [cells.get((setting, size)) for size in sizes]
        ratios = [f"{r['ratio']:.2f} ({r['ratio_q1']:.2f}–{r['ratio_q3']:.2f})" if r else "" for r in found]
        lines.append([title(setting), *ratios])
    return markdown(["time ÷ FasterNet's", *sizes], lines)


def is_faster_net(name: str | None) -> bool:
    return name is not None and name.startswith("fasternet_")


def networks_tables(rows: list[Row]) -> list[str]:
    """A heading and a table of every network for each precision and layout, bf16 in channels_last first."""
    rows = [row for row in rows if row["task"] == "inference"]
    kinds = {(row["precision"], row["layout"]) for row in rows}
    parts = []
    for precision, layout in sorted(kinds, key=lambda kind: (PRECISIONS.index(kind[0]), kind[1])):
        of_kind = [row for row in rows if (row["precision"], row["layout"]) == (precision, layout)]
        parts += [f"In {precision}, {layout}:", networks_table(of_kind)]
    return parts


def networks_table(rows: list[Row]) -> str:
    """Networks under one precision and layout: speed, memory, and how near each comes to the device's ceilings."""
    columns: list[tuple[str, Callable[[Row], bool], str, str]] = [
        ("images/s, eager", lambda r: throughput(r, "eager"), "images_per_second", ",.0f"),
        ("images/s, compiled", lambda r: throughput(r, "compile"), "images_per_second", ",.0f"),
        ("images/s, autotuned", lambda r: throughput(r, "autotune"), "images_per_second", ",.0f"),
        ("ms for one, CUDA graph", lambda r: one_image(r, "cudagraph"), "median_ms", ".3f"),
        ("ms for one, compiled", lambda r: one_image(r, "compile"), "median_ms", ".3f"),
        ("ms for one, autotuned", lambda r: one_image(r, "autotune"), "median_ms", ".3f"),
        ("peak MB, eager", lambda r: throughput(r, "eager"), "peak_memory_mb", ",.0f"),
        ("of GEMM rate", lambda r: throughput(r, "eager"), "share_of_gemm", ".0%"),
        ("of copy rate, at least", lambda r: throughput(r, "eager"), "share_of_copy", ".0%"),
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    heads, cells = ["network", "params M", "MACs G"], {model: [model] for model in models}
    for model in models:
        known = next((row for row in rows if row["model"] == model and "macs_g" in row), None)
        cells[model] += [f"{known['params_m']:.2f}", f"{known['macs_g']:.3f}"] if known else ["", ""]
    for head, wanted, key, form in columns:
        # a network that was timed in two groups counts where it was timed first
        values = {row["model"]: row.get(key) for row in reversed(rows) if wanted(row)}
        if any(value is not None for value in values.values()):
            heads.append(head)
            for model in models:
                value = values.get(model)
                cells[model].append("" if value is None else f"{value:{form}}")
    return markdown(heads, list(cells.values()))


def throughput(row: Row, runtime: str) -> bool:
    return row["runtime"] == runtime and row["batch_size"] > 1


def one_image(row: Row, runtime: str) -> bool:
    return row["runtime"] == runtime and row["batch_size"] == 1


def heading(result: dict[str, Any]) -> str:
    """Device, versions and ceilings in a paragraph."""
    environment, ceilings = result["environment"], result["ceilings"]
    versions = ", ".join(f"{name} {environment['versions'].get(name)}" for name in ("torch", "timm"))
    clocks = [row["sm_clock_mhz"] for row in result["rows"] if "sm_clock_mhz" in row]
    clock = f" SM clock {min(clocks):,.0f}–{max(clocks):,.0f} MHz." if clocks else ""
    rates = ", ".join(f"{precision} {rate:.3g} TFLOP/s" for precision, rate in ceilings["gemm_tflops"].items())
    return (
        f"{environment['gpu'] or environment['cpu']}; {versions}; commit {environment['commit']}. Ceilings in the same "
        f"run: copy {ceilings['copy_gb_per_s']:,.0f} GB/s; product of {ceilings['gemm_side']}² matrices: "
        f"{rates}.{clock}"
    )


def gaps(result: dict[str, Any]) -> str:
    """What the tables lack, and why."""
    lines = [f"- not in this timm: {', '.join(result['missing'])}"] if result["missing"] else []
    lines += [f"- failed: {', '.join(entry['models'])} ({entry['job'].partition(':')[0]}): {entry['error']}"
              for entry in result["failed"]]  # fmt: skip
    lines += [f"- skipped: {entry['job']}: {entry['reason']}" for entry in result["skipped"]]
    if not result["finished"]:
        lines.append("- the run was cut off")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """All tables of one result."""
    parts = [heading(result), pairs_table(result["rows"]), *networks_tables(result["rows"]), gaps(result)]
    return "\n\n".join(part for part in parts if part)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="result files of gpu_suite.py")
    files = parser.parse_args(arguments).files or sorted(RESULTS.glob("gpu_*.json"))
    if not files:
        parser.error("there is no result yet; run benchmarks/gpu_suite.py on a machine with a GPU first.")
    print("\n\n".join(page(json.loads(path.read_text())) for path in files))


if __name__ == "__main__":
    main()
