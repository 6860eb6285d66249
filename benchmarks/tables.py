"""Print the documents' tables from the result files, as Markdown.

    python benchmarks/tables.py

prints the README's table and those of docs/measurements.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import timm

import partialnet  # noqa: F401 - registers the models
from partialnet.complexity import PAPER, measure

RESULTS = Path(__file__).parent / "results"
SIZES = ("t0", "t1", "t2", "s", "m", "l")


def timing(rows: list[dict], size: str, what: str, largest_batch: bool) -> tuple[int, dict, dict]:
    """Batch size, FasterNet's and PartialNet's timing of one row."""
    found = [row for row in rows if row["size"] == size and row["what"] == what]
    row = max(found, key=lambda row: row["batch"] if largest_batch else -row["batch"])
    return row["batch"], row["timings"][f"fasternet_{size}"], row["timings"][f"partialnet_{size}"]


def ratio(ours: dict) -> str:
    """Median and quartiles of the ratio."""
    return f"{ours['ratio']:.2f} ({ours['ratio_q1']:.2f}–{ours['ratio_q3']:.2f})"


def readme(rows: list[dict]) -> None:
    for size in SIZES:
        name = f"partialnet_{size}"
        complexity = measure(timm.create_model(name, device="meta"), (3, 224, 224))
        params, macs = PAPER[name]
        _, _, ours = timing(rows, size, "training step", True)
        print(
            f"| `{name}` | {complexity.training.params_m:.2f} | {params} | {complexity.folded.macs_g:.3f} | {macs:.2f} "
            f"| {ratio(ours)} |"
        )


def measurements(threads: int, rows: list[dict]) -> None:
    print(f"\n{threads} thread(s)\n")
    print("| | forward, batch 1 | forward, larger batch | training step | batch |\n|---|---|---|---|---|")
    for size in SIZES:
        cells = [
            ratio(timing(rows, size, what, largest)[2])
            for what, largest in (("forward", False), ("forward", True), ("training step", True))
        ]
        print(f"| {size.upper()} | {' | '.join(cells)} | {timing(rows, size, 'training step', True)[0]} |")


def deployment(rows: list[dict]) -> None:
    """Ratios, then milliseconds and share of what the core can do, of folded networks."""
    columns = (("openvino", "fp32"), ("onnxruntime", "fp32"), ("eager", "fp32"), ("openvino", "bf16"))
    found = {(row["size"], row["runtime"], row["precision"]): row for row in rows}
    print("\n| | OpenVINO | onnxruntime | eager PyTorch | OpenVINO bf16 |\n|---|---|---|---|---|")
    for size in SIZES:
        cells = [ratio(found[size, *column]["timings"][f"partialnet_{size}"]) for column in columns]
        print(f"| {size.upper()} | {' | '.join(cells)} |")
    print("\n| GFLOP/s | OpenVINO | onnxruntime | eager PyTorch | one large convolution |\n|---|---|---|---|---|")
    for size in SIZES:
        pairs = [found[size, *column]["gflops"] for column in columns[:3]]
        cells = [f"{pair[f'fasternet_{size}']:.0f}, {pair[f'partialnet_{size}']:.0f}" for pair in pairs]
        peak = "–".join(
            f"{limit(found[size, *column]['large_convolution_gflops'] for column in columns[:3]):.0f}"
            for limit in (min, max)
        )
        print(f"| {size.upper()} | {' | '.join(cells)} | {peak} |")


def main() -> None:
    files = {threads: json.loads((RESULTS / f"eager_{threads}t.json").read_text()) for threads in (2, 1)}
    readme(files[2]["rows"])
    for threads, content in files.items():
        measurements(threads, content["rows"])
        print(content["environment"])
    content = json.loads((RESULTS / "deployment.json").read_text())
    deployment(content["rows"])
    print(content["environment"])


if __name__ == "__main__":
    main()
