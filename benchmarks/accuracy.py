"""Which network is more accurate under the same recipe? Trains each with several seeds, on data at hand.

``cifar10`` and ``imagenette`` put PartialNet beside FasterNet, ``surgery`` the networks of the paper's Table 5, narrow,
beside themselves after conversion.

    python benchmarks/accuracy.py cifar10 DATA --runs RUNS --epochs 10 --jobs 2
    python benchmarks/accuracy.py imagenette DATA --runs RUNS --epochs 10 --jobs 2
    python benchmarks/accuracy.py surgery DATA --runs RUNS --epochs 10 --seeds 2 --jobs 2

DATA is a folder of class folders with train and test (or val) inside. Every network gets the same recipe, epochs,
augmentation and seeds. Runs that are finished in RUNS are kept and interrupted ones continued, so the command may be
repeated with more seeds. ``--per-class N`` trains on the first N images of each class. Writes
benchmarks/results/accuracy_<experiment>.json.

On CIFAR-10 the strides of all stems are halved alike (4 to 2, MobileNetV2's 2 to 1), which leaves maps of 16 to 2
positions a side. Accuracies are those of the last epoch, not of the best one, as the held-out images would otherwise
choose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from image_subset import count_images, first_of_each_class
from result_file import result_file, result_parser
from timm.models import register_model
from torch import nn
from trainings import mean_and_stdev, threads_of_each, train_with_seeds

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import environment
from partialnet.complexity import measure
from partialnet.files import write_json
from partialnet.surgery.inverted_bottleneck import mix_before_expansion
from partialnet.timm_configuration import build_variant
from partialnet.training.config import TrainConfig
from partialnet.training.recipes import load_recipe


@register_model
def mobilenetv2_100_stem1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's MobileNetV2 with a stem of stride 1 instead of 2, for images of 32 pixels."""
    model = timm.create_model("mobilenetv2_100", pretrained=pretrained, **kwargs)
    model.conv_stem.stride = (1, 1)
    return model


@dataclass(frozen=True)
class Network:
    """A contestant: its timm name and what it is built with."""

    label: str
    model: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Data, image size, recipe and contestants, the first of which is the one in question."""

    title: str
    img_size: int
    recipe: str
    networks: tuple[Network, ...]


@register_model
def mobilenetv2_050_pat(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """What ``mobilenetv2_100_pat`` is to MobileNetV2, for the network of half its width."""
    return build_variant("mobilenetv2_050_pat", pretrained, "mobilenetv2_050", mix_before_expansion, **kwargs)


#: Half of ResNet-50's channels, and a third of ConvNeXt-T's.
_NARROW_RESNET = {"stem_width": 32, "channels": (32, 64, 128, 256)}
_NARROW_CONVNEXT = {"dims": (32, 64, 128, 256)}
#: PAT_ch without its attention is FasterNet's partial convolution; without PAT_sf stage 4 has PAT_ch as the others.
_NO_CH = {"name": "pat_ch", "attention": None}
EXPERIMENTS = {
    "cifar10": Experiment(
        "CIFAR-10, 32×32",
        32,
        "cifar10",
        (
            Network("PartialNet-T0", "partialnet_t0", {"patch_size": 2}),
            Network("FasterNet-T0", "fasternet_t0", {"patch_size": 2}),
            Network("MobileNetV2", "mobilenetv2_100_stem1"),
            Network(
                "PartialNet-T0 without PAT_ch",
                "partialnet_t0",
                {"patch_size": 2, "mixers": (_NO_CH, _NO_CH, _NO_CH, "pat_sf")},
            ),
            Network("PartialNet-T0 without PAT_sp", "partialnet_t0", {"patch_size": 2, "mlp_attention": False}),
            Network("PartialNet-T0 without PAT_sf", "partialnet_t0", {"patch_size": 2, "mixers": ("pat_ch",) * 4}),
        ),
    ),
    "imagenette": Experiment(
        "Imagenette, 128×128",
        128,
        "imagenette128",
        (
            Network("PartialNet-T0", "partialnet_t0"),
            Network("FasterNet-T0", "fasternet_t0"),
            Network("PartialNet-T1", "partialnet_t1"),
            Network("FasterNet-T1", "fasternet_t1"),
        ),
    ),
    "surgery": Experiment(
        "Imagenette, 128×128, narrow networks before and after surgery",
        128,
        "imagenette128",
        (
            Network("ResNet-50", "resnet50", _NARROW_RESNET),
            Network("ResNet-50, converted", "resnet50_pat", _NARROW_RESNET),
            Network("MobileNetV2", "mobilenetv2_050"),
            Network("MobileNetV2, converted", "mobilenetv2_050_pat"),
            Network("ConvNeXt-T", "convnext_tiny", _NARROW_CONVNEXT),
            Network("ConvNeXt-T, converted", "convnext_tiny_pat", _NARROW_CONVNEXT),
        ),
    ),
}


def training_config(experiment: Experiment, network: Network, epochs: int, threads: int) -> TrainConfig:
    """How a network is trained, but for the seed."""
    return load_recipe(
        experiment.recipe,
        model=network.model,
        model_args=network.args,
        img_size=experiment.img_size,
        epochs=epochs,
        threads=threads,
        workers=0 if threads == 1 else 2,
    )


def size(experiment: Experiment, network: Network) -> dict[str, float]:
    """Parameters in training form and multiply–adds of the folded network, in millions."""
    model = timm.create_model(network.model, num_classes=10, **network.args)
    complexity = measure(model, (3, experiment.img_size, experiment.img_size))
    return {
        "params_m": round(complexity.training.params_m, 3),
        "macs_m": round(1e3 * complexity.folded.macs_g, 2),
    }


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread of each network over its seeds, best first."""
    summary = []
    for label in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == label]
        accuracies = [row["accuracy"] for row in own]
        summary.append(
            {
                "network": label,
                "seeds": len(own),
                **mean_and_stdev(accuracies),
                "least": min(accuracies),
                "most": max(accuracies),
                "params_m": own[0]["params_m"],
                "macs_m": own[0]["macs_m"],
            }
        )
    return sorted(summary, key=lambda row: -row["mean"])


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("data", help="folder with train and test (or val), each with class folders")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run folders")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=0, help="training images of each class; 0 takes all")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--networks", help="comma-separated labels; all by default")
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.experiment]
    chosen = options.networks.split(",") if options.networks else [network.label for network in experiment.networks]
    networks = [network for network in experiment.networks if network.label in chosen]
    threads = threads_of_each(options.jobs)
    data = first_of_each_class(options.data, options.per_class, options.runs / f"data-{options.per_class}")
    output = result_file(options, f"accuracy_{options.experiment}.json")

    configs = {network.label: training_config(experiment, network, options.epochs, threads) for network in networks}
    order = list(configs)
    sizes = {network.label: size(experiment, network) for network in networks}
    rows: list[dict[str, Any]] = []
    for label, seed, epochs in train_with_seeds(configs, options.seeds, data, options.runs, options.jobs):
        rows.append(
            {
                "network": label,
                "seed": seed,
                "accuracy": epochs[-1]["val_accuracy"],
                "curve": [epoch["val_accuracy"] for epoch in epochs],
                "train_loss": [epoch["train_loss"] for epoch in epochs],
                "seconds": sum(epoch["seconds"] for epoch in epochs),
                **sizes[label],
            }
        )
        rows.sort(key=lambda row: (order.index(row["network"]), row["seed"]))
        content = {
            "environment": environment(),
            "experiment": experiment.title,
            "epochs": options.epochs,
            "train_images": count_images(data),
            "summary": summarize(rows),
            "rows": rows,
        }
        write_json(output, content)
    for row in summarize(rows):
        spread = "" if row["stdev"] is None else f" ± {row['stdev']:.2%}"
        print(f"{row['network']:32}{row['mean']:.2%}{spread}  {row['params_m']} M, {row['macs_m']} M MACs")


if __name__ == "__main__":
    main()
