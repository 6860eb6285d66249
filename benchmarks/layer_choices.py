"""Why the layers are written as they are: each choice against the obvious alternative, in one run.

    python benchmarks/layer_choices.py

writes benchmarks/results/layer_choices.json: operations on the feature map of T0's first stage at batch 32, the
position bias of 7×7 positions, and a training step of T0 against the same network transcribed block by block without
these choices. Two threads, float32, channels_last.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import timm
import torch
import torch.nn.functional as F
from result_file import result_file, result_parser
from torch import Tensor, nn
from training_step import random_batch, training_step

import partialnet  # noqa: F401 - registers the models
from partialnet.bench import Timing, environment, interleave
from partialnet.files import write_json
from partialnet.layers import PATConv, SpatialGate
from partialnet.layers.gaussian_se import GaussianSE, channel_statistics
from partialnet.layers.self_attention import distance_buckets


class PlainGaussianSE(nn.Module):
    """Gaussian-SE as its definition reads."""

    def __init__(self, layer: GaussianSE) -> None:
        super().__init__()
        self.weight, self.gate_norm, self.norm = layer.weight, layer.gate_norm, layer.norm

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=(2, 3))
        logits = F.linear(torch.cat((mean, std), 1), self.weight)[:, :, None, None]
        return self.norm(x * F.hardsigmoid(self.gate_norm(logits)))


class PlainPATConv(nn.Module):
    """Split, convolve, attend, concatenate, without care for the memory layout."""

    def __init__(self, layer: PATConv) -> None:
        super().__init__()
        self.conv_norm, self.conv, self.conv_first = layer.conv_norm, layer.conv, layer.conv_first
        self.attn = PlainGaussianSE(layer.attn) if isinstance(layer.attn, GaussianSE) else layer.attn
        self.sizes = [layer.conv_channels, layer.attn_channels]

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_first:
            convolved, attended = torch.split(x, self.sizes, 1)
            return torch.cat((self.conv(self.conv_norm(convolved)), self.attn(attended)), 1)
        attended, convolved = torch.split(x, self.sizes[::-1], 1)
        return torch.cat((self.attn(attended), self.conv(self.conv_norm(convolved))), 1)


def transcribed() -> nn.Module:
    """PartialNet-T0 with every PATConv written plainly."""
    model = timm.create_model("partialnet_t0")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, PATConv):
                setattr(module, name, PlainPATConv(child))
    return model


def t0_step(model: nn.Module):
    model = model.train().to(memory_format=torch.channels_last)
    return partial(training_step(model), *random_batch(32, 224))


def norm_step(x: Tensor, gradient: Tensor):
    weight = torch.ones(x.shape[1])
    _, mean, rstd = torch.native_batch_norm(x, weight, weight, None, None, True, 0.1, 1e-5)
    arguments = (x, weight, None, None, mean, rstd, True, 1e-5, [True] * 3)
    return lambda: torch.ops.aten.native_batch_norm_backward(gradient, *arguments)


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="time for each choice (2); for the step, four times it"
    )
    options = parser.parse_args()
    path = result_file(options, "layer_choices.json")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    features = torch.randn(32, 32, 56, 56).to(memory_format=torch.channels_last)
    part = features[:, 8:]
    half = torch.randn(32, 64, 28, 28).to(memory_format=torch.channels_last)[:, :32]
    half_dense = half.contiguous(memory_format=torch.channels_last)
    buckets = distance_buckets(7, 7, torch.device("cpu")).flatten() + 40
    table = torch.randn(4, 81)
    comparisons: dict[str, tuple[str, dict]] = {
        "mean and variance of each channel": (
            "torch.var_mean",
            {"torch.var_mean": lambda: torch.var_mean(part, dim=(2, 3)), "two means": lambda: channel_statistics(part)},
        ),
        "BatchNorm's backward pass": (
            "gradient is a channel slice",
            {
                "gradient is a channel slice": norm_step(half_dense, half),
                "gradient is dense": norm_step(half_dense, half_dense),
            },
        ),
        "making a channel slice dense": (
            "copy",
            {"copy": lambda: half.contiguous(memory_format=torch.channels_last)},
        ),
        "position bias": (
            "embedding",
            {
                "embedding": lambda: F.embedding(buckets, table.t()),
                "index_select": lambda: table.index_select(1, buckets),
            },
        ),
        "training step of T0": (
            "transcribed",
            {
                "transcribed": t0_step(transcribed()),
                "partialnet_t0": t0_step(timm.create_model("partialnet_t0")),
            },
        ),
    }
    assert any(isinstance(module, SpatialGate) for module in transcribed().modules())
    results: dict[str, dict[str, Timing]] = {}
    for name, (against, contestants) in comparisons.items():
        seconds = options.seconds * (4 if "step" in name else 1)
        results[name] = interleave(contestants, against, seconds=seconds, description=name)
        for contestant, timing in results[name].items():
            print(f"{name:36} {contestant:30} {timing.median_ms:9.3f} ms   ratio {timing.ratio:.2f}", flush=True)
    rows = {name: {key: asdict(value) for key, value in timings.items()} for name, timings in results.items()}
    write_json(path, {"environment": environment(), "results": rows})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
