"""Draw a comparison of accuracies: learning curves, and every seed's last accuracy.

python benchmarks/accuracy_picture.py benchmarks/results/accuracy_cifar10.json docs/images/accuracy_cifar10.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from partialnet.plots import save

#: Okabe and Ito's colours, which differ for colour-blind readers too.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C8C8C")


def draw(content: dict[str, Any], path: Path) -> None:
    """Curves on the left, means over the seeds; on the right a dot for each seed, and the mean as a line.

    Args:
        content: What ``accuracy.py`` writes.
        path: PNG to write.
    """
    labels = [row["network"] for row in content["summary"]]  # best first
    order = list(dict.fromkeys(row["network"] for row in content["rows"]))
    figure = Figure(figsize=(13, 1.4 + 0.75 * max(len(labels), 4)), layout="constrained")
    curves, dots = figure.subplots(1, 2, width_ratios=(5, 7))
    for position, label in enumerate(labels):
        color = COLORS[order.index(label) % len(COLORS)]
        own = [row for row in content["rows"] if row["network"] == label]
        means = [statistics.mean(values) for values in zip(*(row["curve"] for row in own), strict=True)]
        curves.plot(range(1, len(means) + 1), means, color=color, linewidth=2.5, marker="o")
        summary = content["summary"][position]
        dots.plot([summary["mean"]] * 2, [position - 0.32, position + 0.32], color=color, linewidth=3)
        accuracies = [row["accuracy"] for row in own]
        dots.plot(accuracies, [position] * len(own), "o", color=color, markersize=9, alpha=0.6, markeredgewidth=0)
        spread = "" if summary["stdev"] is None else f" ± {summary['stdev']:.1%}"
        dots.annotate(
            f"{summary['mean']:.1%}{spread}",
            (max(accuracies), position),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            fontsize=12,
        )
    curves.set(xlabel="epoch", title="Mean over the seeds")
    dots.set(xlabel="accuracy after the last epoch", title="Each seed, and the mean")
    sizes = {row["network"]: f"{row['params_m']:.1f} M, {row['macs_m']:.0f} M MACs" for row in content["summary"]}
    dots.set_yticks(range(len(labels)), [f"{label}\n{sizes[label]}" for label in labels], fontsize=12)
    for tick, label in zip(dots.get_yticklabels(), labels, strict=True):
        tick.set_color(COLORS[order.index(label) % len(COLORS)])
    dots.set_ylim(len(labels) - 0.5, -0.5)
    dots.margins(x=0.25)
    dots.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    dots.grid(axis="x", alpha=0.3)
    curves.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.grid(alpha=0.3)
    for axes in (curves, dots):
        axes.spines[["top", "right"]].set_visible(False)
    images = content["train_images"]
    figure.suptitle(
        f"{content['experiment']}: {images:,} training images, {content['epochs']} epochs, held-out accuracy",
        fontsize=15,
    )
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.result.read_text()), options.picture)
    print(f"written: {options.picture}")


if __name__ == "__main__":
    main()
