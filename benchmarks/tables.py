"""Print the documents' tables from the result files, as Markdown.

    python benchmarks/tables.py

prints the README's table, those of docs/training.md (which size), docs/speed_comparison.md, docs/surgery.md,
docs/search.md and docs/ablations.md, and the accuracies that were measured.
"""

from __future__ import annotations

import csv
import json
import statistics
from fractions import Fraction
from pathlib import Path

import timm

import partialnet  # noqa: F401 - registers the models
from partialnet.ablation.report import as_markdown
from partialnet.bench import presets
from partialnet.complexity import PAPER, measure
from partialnet.search.pictures import as_fraction, short_layer_name

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


def readme(training: list[dict], inference: list[list[dict]]) -> None:
    """Size and work of each network beside the paper's, and its times beside FasterNet's; ``inference`` by machine."""
    quoted = {row.model: row.top1_quoted for row in presets.PAPER}
    print("| | top-1 %, paper | parameters M (paper) | multiply–adds G (paper) | OpenVINO | onnxruntime ", end="")
    print(f"| training step |\n|{'---|' * 7}")
    for size in SIZES:
        name = f"partialnet_{size}"
        complexity = measure(timm.create_model(name, device="meta"), (3, 224, 224))
        params, macs = PAPER[name]
        cells = [
            f"{quoted[name]:.1f}",
            f"{complexity.training.params_m:.2f} ({params})",
            f"{complexity.folded.macs_g:.3f} ({macs:.2f})",
        ]
        for runtime in ("openvino", "onnxruntime"):
            found = (
                row["timings"][name]["ratio"]
                for rows in inference
                for row in rows
                if (row["size"], row["runtime"], row["precision"]) == (size, runtime, "fp32")
            )
            cells.append(", ".join(f"{ratio:.2f}" for ratio in found))
        cells.append(f"{timing(training, size, 'training step', True)[2]['ratio']:.2f}")
        print(f"| `{name}` | {' | '.join(cells)} |")


def which_size(training: list[dict], inference: list[dict]) -> None:
    """What each size costs: milliseconds of one image, images a second of training, and the time of a small run."""
    quoted = {row.model: row.top1_quoted for row in presets.PAPER}
    latency = {(row["size"], row["runtime"]): row["timings"][f"partialnet_{row['size']}"] for row in inference}
    print("\n| | ImageNet top-1 %, quoted | parameters M | OpenVINO ms | onnxruntime ms ", end="")
    print("| training images/s | 60 epochs of 1,000 images |\n|---|---|---|---|---|---|---|")
    for size in SIZES:
        name = f"partialnet_{size}"
        complexity = measure(timm.create_model(name, device="meta"), (3, 224, 224))
        batch, _, ours = timing(training, size, "training step", True)
        images_per_second = 1e3 * batch / ours["median_ms"]
        minutes = 60 * 1000 / images_per_second / 60
        cells = [
            f"{quoted[name]:.1f}",
            f"{complexity.training.params_m:.2f}",
            *(f"{latency[size, runtime]['median_ms']:.0f}" for runtime in ("openvino", "onnxruntime")),
            f"{images_per_second:.{0 if images_per_second > 20 else 1}f}",
            f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h",
        ]
        print(f"| `{name}` | {' | '.join(cells)} |")


def against_fasternet(threads: int, rows: list[dict]) -> None:
    print(f"\n{threads} thread(s)\n")
    print("| | forward, batch 1 | forward, larger batch | training step | batch |\n|---|---|---|---|---|")
    for size in SIZES:
        cells = [
            ratio(timing(rows, size, what, largest)[2])
            for what, largest in (("forward", False), ("forward", True), ("training step", True))
        ]
        print(f"| {size.upper()} | {' | '.join(cells)} | {timing(rows, size, 'training step', True)[0]} |")


def deployment(rows: list[dict]) -> None:
    """Ratios, then share of what the core can do, of folded networks; what a processor cannot run has no column."""
    labels = {
        ("openvino", "fp32"): "OpenVINO",
        ("onnxruntime", "fp32"): "onnxruntime",
        ("eager", "fp32"): "eager PyTorch",
        ("eager", "own layers"): "eager, FasterNet's own layers",
        ("compile", "fp32"): "torch.compile",
        ("openvino", "bf16"): "OpenVINO bf16",
        ("openvino", "int8"): "OpenVINO int8",
        ("onnxruntime", "int8"): "onnxruntime int8",
    }
    found = {
        (row["size"], row["runtime"], "own layers" if row.get("fasternet") == "own layers" else row["precision"]): row
        for row in rows
    }
    sizes = [size for size in SIZES if any(row["size"] == size for row in rows)]
    columns = [column for column in labels if all((size, *column) in found for size in sizes)]
    print(f"\n| | {' | '.join(labels[column] for column in columns)} |\n|{'---|' * (1 + len(columns))}")
    for size in sizes:
        cells = [ratio(found[size, *column]["timings"][f"partialnet_{size}"]) for column in columns]
        print(f"| {size.upper()} | {' | '.join(cells)} |")
    columns = [column for column in columns if column[1] == "fp32"]
    if not columns:
        return
    print(f"\n| GFLOP/s | {' | '.join(labels[column] for column in columns)} | one large convolution |")
    print(f"|{'---|' * (2 + len(columns))}")
    for size in sizes:
        pairs = [found[size, *column]["gflops"] for column in columns]
        cells = [f"{pair[f'fasternet_{size}']:.0f}, {pair[f'partialnet_{size}']:.0f}" for pair in pairs]
        peaks = [row["large_convolution_gflops"] for row in rows if row["size"] == size and row["precision"] == "fp32"]
        peak = f"{min(peaks):.0f}–{max(peaks):.0f}"
        print(f"| {size.upper()} | {' | '.join(cells)} | {peak} |")


def surgery(content: dict) -> None:
    """Speed ratios of converted networks and of what limits them, medians and quartiles."""
    runtimes = {"openvino": "OpenVINO", "onnxruntime": "onnxruntime", "eager": "eager PyTorch"}
    found = {(row["network"], row["batch_size"], row["runtime"]): row for row in content["rows"]}
    for batch_size in sorted({batch for _, batch, _ in found}):
        print(
            f"\nBatch {batch_size}:\n\n| | parameters M | multiply–adds G | {' | '.join(runtimes.values())} | paper |"
        )
        print("|---" * (4 + len(runtimes)) + "|")
        for network, sizes in content["sizes"].items():
            for name, size in sizes.items():
                rows = [found.get((network, batch_size, runtime)) for runtime in runtimes]
                cells = [speed_ratio(row["timings"][name]) if row else "" for row in rows]
                if name == network or not any(cells):
                    continue
                quoted = f"{next(row for row in rows if row)['paper_ratio']:.2f}" if name.endswith("_pat") else ""
                label = f"`{name}`" if name.endswith("_pat") else f"{network}, {name}"
                cells = [f"{size['params_m']:.2f}", f"{size['macs_g']:.3f}", *cells, quoted]
                print(f"| {label} | {' | '.join(cells)} |")


def search_steps(content: dict) -> None:
    """A training step while searching against one with dense convolutions, medians and quartiles."""
    sizes = list(dict.fromkeys(row["size"] for row in content["rows"]))
    found = {(row["size"], row["layer"]): row for row in content["rows"]}
    print(f"\n| | {' | '.join(size.upper() for size in sizes)} |\n{'|---' * (len(sizes) + 1)}|")
    for layer in dict.fromkeys(row["layer"] for row in content["rows"]):
        print(f"| {layer} | {' | '.join(ratio(found[size, layer]) for size in sizes)} |")


#: Channels of PartialNet-T0's layers, in the order of the paper's Figure 7.
T0_CHANNELS = (32, *[64] * 2, *[128] * 6, *[256] * 4)


def split_ratios(content: dict) -> None:
    """The learned split ratios for each θ, and below each row the paper's Figure 7; then what ours cost."""
    with (Path(__file__).parent / "paper_figure7.csv").open() as file:
        paper = {
            float(row.pop("theta")): [float(Fraction(ratio)) for ratio in row.values()] for row in csv.DictReader(file)
        }
    ours = {row["theta"]: row for row in content["rows"]}
    names = [name for name in content["rows"][0] if name.startswith("stages.")]
    places = [short_layer_name(name) for name in names]
    print(f"\n| θ | | {' | '.join(places)} | mean | ends | between | ζ/κ |\n{'|---' * (len(names) + 6)}|")
    for theta in sorted({*paper, *ours}):
        found = {"ours": [ours[theta][name] for name in names]} if theta in ours else {}
        found |= {"paper": paper[theta]} if theta in paper else {}
        for whose, ratios in found.items():
            cells = [as_fraction(share) for share in ratios]
            ends, between = [ratios[0], ratios[-1]], ratios[1:-1]
            cells += [f"{statistics.mean(values):.3f}" for values in (ratios, ends, between)]
            share = sum(c * c * r for c, r in zip(T0_CHANNELS, ratios, strict=True)) / sum(c * c for c in T0_CHANNELS)
            print(f"| {theta:g} | {whose} | {' | '.join(cells)} | {share * theta**2:.2f} |")
    print("\n| θ | multiply–adds M | parameters M | accuracy while searching % |\n|---|---|---|---|")
    for theta, row in sorted(ours.items()):
        print(f"| {theta:g} | {1e3 * row['macs_g']:.2f} | {row['params_m']:.3f} | {100 * row['val_accuracy']:.1f} |")
    print(f"\n{content['epochs']} epochs, {content['train_images']:,} training images")


def retrained(content: dict) -> None:
    """The planned network and fixed ratios, retrained from scratch."""
    print("\n| split ratio | multiply–adds M | accuracy % | each seed |\n|---|---|---|---|")
    for row in content["rows"]:
        spread = "" if row["stdev"] is None else f" ± {100 * row['stdev']:.2f}"
        label = f"planned, θ = {content['theta']:g}" if row["network"] == "planned" else row["network"]
        seeds = ", ".join(f"{100 * accuracy:.2f}" for accuracy in row["accuracies"])
        print(f"| {label} | {1e3 * row['macs_g']:.2f} | {100 * row['mean']:.2f}{spread} | {seeds} |")
    print(f"\n{content['epochs']} epochs, {content['train_images']:,} training images")


def accuracies(content: dict) -> None:
    """Networks trained under the same recipe, best first: mean and spread over the seeds."""
    print(f"\n{content['experiment']}\n")
    print("| | accuracy % | each seed | parameters M | multiply–adds M |\n|---|---|---|---|---|")
    for row in content["summary"]:
        spread = "" if row["stdev"] is None else f" ± {100 * row['stdev']:.2f}"
        own = [found["accuracy"] for found in content["rows"] if found["network"] == row["network"]]
        seeds = ", ".join(f"{100 * accuracy:.2f}" for accuracy in own)
        print(f"| {row['network']} | {100 * row['mean']:.2f}{spread} | {seeds} | {row['params_m']} | {row['macs_m']} |")
    print(f"\n{content['epochs']} epochs, {content['train_images']:,} training images")


def speed_ratio(timing: dict) -> str:
    """How many times as fast as the reference: median and quartiles."""
    return f"{1 / timing['ratio']:.2f} ({1 / timing['ratio_q3']:.2f}–{1 / timing['ratio_q1']:.2f})"


def main() -> None:
    files = {threads: json.loads((RESULTS / f"eager_{threads}t.json").read_text()) for threads in (2, 1)}
    inference = [json.loads((RESULTS / f"deployment_{name}.json").read_text())["rows"] for name in ("epyc", "xeon")]
    readme(files[2]["rows"], inference)
    which_size(files[2]["rows"], inference[0])
    for threads, content in files.items():
        against_fasternet(threads, content["rows"])
        print(content["environment"])
    for path in sorted(RESULTS.glob("deployment*.json")):  # one for each processor
        content = json.loads(path.read_text())
        deployment(content["rows"])
        print(content["environment"])
    content = json.loads((RESULTS / "surgery.json").read_text())
    surgery(content)
    print(content["environment"])
    searches = {"search_step": search_steps, "split_ratio_sweep": split_ratios, "split_ratio_compare": retrained}
    for name, table in searches.items():
        if (RESULTS / f"{name}.json").exists():  # searches take hours
            content = json.loads((RESULTS / f"{name}.json").read_text())
            table(content)
            print(content["environment"])
    for path in sorted(RESULTS.glob("accuracy_*.json")):
        content = json.loads(path.read_text())
        accuracies(content)
        print(content["environment"])
    ablations = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("ablation_table*.json"))]
    for content in sorted(ablations, key=lambda content: content["table"]):
        print(f"\n{as_markdown(content, level=2)}")
        print(content["environment"])


if __name__ == "__main__":
    main()
