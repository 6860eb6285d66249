"""Do learned split ratios follow θ, and are they worth it? CIFAR-10, PartialNet-T0 (the paper's Figure 7).

    python benchmarks/split_ratio_search.py sweep DATA --runs RUNS
    python benchmarks/split_ratio_search.py compare DATA --runs RUNS --theta 4

``sweep`` searches for each θ. ``compare`` then retrains from scratch, with several seeds and the same recipe, the
network that was found for one θ, the fixed ratio 1/4, and the fixed ratio whose multiply–adds come nearest.

DATA is a folder of class folders with train and test (or val) inside. Runs in RUNS that are finished are kept, those
that were interrupted continue. Each part writes benchmarks/results/split_ratio_<part>.json; ``sweep`` draws
docs/images/split_ratio_sweep.png as well, with --output a picture beside that file.

The stem's stride is 2 instead of 4, which leaves maps of 16 to 2 positions a side.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from image_subset import count_images, first_of_each_class
from result_file import result_file, result_parser
from trainings import mean_and_stdev, run_in_processes, threads_of_each, train_with_seeds

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import environment
from partialnet.complexity import measure
from partialnet.files import write_json
from partialnet.search import Plan, load_plan
from partialnet.search.config import SearchConfig
from partialnet.search.pictures import draw_sweep
from partialnet.search.run import search
from partialnet.search.sweep import sweep, table_row
from partialnet.training.recipes import apply_recipe, load_recipe

MODEL = "partialnet_t0"
ARGUMENTS = {"patch_size": 2}
FIXED = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
#: Layers in the paper's words: the first and last of thirteen against those between.
ENDS = ("stages.0.blocks.0.mixer", "stages.3.blocks.3.mixer")


def run_sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Search for each θ, several at a time; the result file's content."""
    values = {"model": MODEL, "model_args": ARGUMENTS, "epochs": options.epochs, "threads": options.threads}
    values |= {"seed": options.seed, "workers": 0, "img_size": 32, "alpha_growth": options.alpha_growth}
    config = apply_recipe(SearchConfig, "cifar10", values)

    def in_processes(points: Sequence[tuple[SearchConfig, Path]], data: str) -> None:
        configs = {folder: point for point, folder in points}
        for _ in run_in_processes(search, configs, data, options.jobs, "searches"):
            pass

    thetas = [float(theta) for theta in options.theta.split(",")]
    result = sweep(config, thetas, options.data, options.runs / "sweep", True, in_processes)
    documents = Path(__file__).parent.parent / "docs" / "images" / "split_ratio_sweep.png"
    draw_sweep(options.output.with_suffix(".png") if options.output else documents, result.plans)
    return {
        "epochs": options.epochs,
        "alpha": config.alpha,
        "alpha_growth": config.alpha_growth,
        "rows": [{**table_row(plan), **ends_and_middle(plan)} for plan in result.plans.values()],
    }


def ends_and_middle(plan: Plan) -> dict[str, float]:
    """Mean ratio of the first and last layer, and of those between."""
    ends = [ratio for name, ratio in plan.split_ratios.items() if name in ENDS]
    middle = [ratio for name, ratio in plan.split_ratios.items() if name not in ENDS]
    return {"mean_of_ends": statistics.mean(ends), "mean_of_middle": statistics.mean(middle)}


def run_compare(options: argparse.Namespace) -> dict[str, Any]:
    """Retrain the planned network and fixed ratios; the result file's content."""
    plan = load_plan(options.runs / "sweep" / f"theta-{float(options.theta):g}")
    macs = {ratio: folded_macs({**ARGUMENTS, "split_ratio": ratio}) for ratio in FIXED}
    nearest = min(FIXED, key=lambda ratio: abs(macs[ratio] - plan.macs_g))
    networks = {"planned": plan.model_args, "fixed 1/4": ARGUMENTS}
    if nearest != 1 / 4:
        networks[f"fixed 1/{round(1 / nearest)}"] = {**ARGUMENTS, "split_ratio": nearest}
    shared = {"model": MODEL, "epochs": options.epochs, "threads": options.threads, "workers": 0}
    configs = {label: load_recipe("cifar10", model_args=arguments, **shared) for label, arguments in networks.items()}
    trainings = train_with_seeds(configs, options.seeds, options.data, options.runs / "compare", options.jobs)
    found = {(label, seed): epochs[-1]["val_accuracy"] for label, seed, epochs in trainings}
    rows = []
    for label, arguments in networks.items():
        accuracies = [found[label, seed] for seed in range(options.seeds)]
        rows.append(
            {
                "network": label,
                "macs_g": folded_macs(arguments),
                **mean_and_stdev(accuracies),
                "accuracies": accuracies,
            }
        )
    return {"theta": plan.theta, "epochs": options.epochs, "rows": rows}


def folded_macs(arguments: dict[str, Any]) -> float:
    """Multiply–adds of the folded network for one image, in thousand millions."""
    return measure(timm.create_model(MODEL, num_classes=10, **arguments), (3, 32, 32)).folded.macs_g


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("part", choices=("sweep", "compare"))
    parser.add_argument("data", help="folder with train and test (or val), each with class folders")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run folders")
    parser.add_argument("--theta", default="1.5,2,3,4,6,8.5", help="for compare, one of those that were swept")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=0, help="training images of each class; 0 takes all")
    parser.add_argument("--alpha-growth", type=float, default=SearchConfig().alpha_growth)
    parser.add_argument("--seed", type=int, default=0, help="of the sweep")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds to compare with")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    path = result_file(options, f"split_ratio_{options.part}.json")
    options.data = first_of_each_class(options.data, options.per_class, options.runs / f"data-{options.per_class}")
    options.threads = threads_of_each(options.jobs)
    content = {"environment": environment(), "train_images": count_images(options.data)}
    content |= run_sweep(options) if options.part == "sweep" else run_compare(options)
    write_json(path, content)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
