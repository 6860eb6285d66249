"""Parameters and multiply–adds against a closed form written from the paper's layer list, and against Table 9."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from timm_networks import VARIANTS
from torch import nn

from partialnet import fold
from partialnet.complexity import PAPER, Complexity, Count, measure, mixer_kind
from partialnet.errors import UserError

README = Path(__file__).resolve().parent.parent / "README.md"
HIDDEN, CLASSES, HEADS, BUCKETS = 1280, 1000, 4, 81


@dataclass
class Sum:
    """Parameters and multiply–adds, added up layer by layer."""

    params: int = 0
    macs: int = 0

    def conv(self, inputs: int, outputs: int, positions: int, kernel: int = 1, bias: bool = False) -> None:
        self.params += inputs * outputs * kernel**2 + outputs * bias
        self.macs += inputs * outputs * kernel**2 * positions

    def free(self, params: int) -> None:
        """Parameters without a multiply–add: normalisations, tables, scales and shifts."""
        self.params += params


def pat_ch(total: Sum, c: int, positions: int, folded: bool) -> None:
    conv, rest = c // 4, c - c // 4
    total.conv(conv, conv, positions, 3)
    total.conv(2 * rest, rest, 1, bias=folded)  # the gate's dense layer runs once an image
    total.free(0 if folded else 2 * rest + 2 * rest)


def pat_sf(total: Sum, c: int, positions: int, folded: bool) -> None:
    conv, rest = c // 4, c - c // 4
    total.conv(conv, conv, positions, 3)
    total.free(0 if folded else 2 * rest)  # LayerNorm
    total.conv(rest, 3 * rest, positions, bias=folded)  # qkv
    total.macs += 2 * positions**2 * rest  # query · key, and attention · value
    total.free(HEADS * BUCKETS)
    total.conv(rest, rest, positions, bias=True)


def mlp_and_pat_sp(total: Sum, c: int, positions: int, folded: bool) -> None:
    half = c // 2
    total.conv(c, 2 * c, positions, bias=folded)
    total.free(0 if folded else 2 * 2 * c)
    if folded:
        total.conv(2 * c, c, positions, bias=True)  # PAT_sp's convolution is in it
        total.conv(c, 1, positions)  # the gate's row, zero on the channels that it does not see
        total.free(2 * c)  # the gate's scale and shift
        return
    total.conv(2 * c, c, positions)
    total.conv(half, 1, positions)  # the gate
    total.free(2 * half + 2 * half)
    total.conv(half, half, positions)


def closed_form(name: str, folded: bool, size: tuple[int, int] = (224, 224)) -> dict[str, Sum]:
    """Every part of a variant."""
    width, depths = VARIANTS[name]
    parts = {}
    height, length = size[0] // 4, size[1] // 4
    stem = parts["stem"] = Sum()
    stem.conv(3, width, height * length, 4, bias=folded)
    stem.free(0 if folded else 2 * width)
    for stage, depth in enumerate(depths):
        c = width * 2**stage
        total = parts[f"stage {stage + 1}"] = Sum()
        if stage:
            height, length = height // 2, length // 2
            total.conv(c // 2, c, height * length, 2, bias=folded)
            total.free(0 if folded else 2 * c)
        for _ in range(depth):
            (pat_sf if stage == 3 else pat_ch)(total, c, height * length, folded)
            mlp_and_pat_sp(total, c, height * length, folded)
    head = parts["head"] = Sum()
    head.conv(width * 8, HIDDEN, 1)
    head.conv(HIDDEN, CLASSES, 1, bias=True)
    return parts


@pytest.fixture(scope="module")
def measured() -> dict[str, Complexity]:
    """Every variant, measured once, without memory for its weights."""
    return {name: measure(timm.create_model(name, device="meta"), (3, 224, 224)) for name in VARIANTS}


def assert_count(count: Count, expected: Sum) -> None:
    assert round(count.params_m * 1e6) == expected.params
    assert count.macs_g * 1e9 == pytest.approx(expected.macs, rel=1e-6)


@pytest.mark.parametrize("folded", [False, True], ids=["training", "folded"])
@pytest.mark.parametrize("name", VARIANTS)
def test_closed_form(name: str, folded: bool, measured: dict[str, Complexity]) -> None:
    expected = closed_form(name, folded)
    complexity = measured[name]
    assert [part.name for part in complexity.parts] == list(expected)
    for part in complexity.parts:
        assert_count(part.folded if folded else part.training, expected[part.name])
    total = Sum(sum(part.params for part in expected.values()), sum(part.macs for part in expected.values()))
    assert_count(complexity.folded if folded else complexity.training, total)


@pytest.mark.parametrize("name", VARIANTS)
def test_paper(name: str, measured: dict[str, Complexity]) -> None:
    params_m, macs_g = PAPER[name]
    assert measured[name].training.params_m == pytest.approx(params_m, rel=0.005)
    assert measured[name].folded.macs_g == pytest.approx(macs_g, rel=0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_readme(name: str, measured: dict[str, Complexity]) -> None:
    """Its figures have more digits than the paper's, which stand behind them."""
    params_m, macs_g = PAPER[name]
    cells = f"{measured[name].training.params_m:.2f} ({params_m}) | {measured[name].folded.macs_g:.3f} ({macs_g})"
    (row,) = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |")]
    assert cells in row


def test_paper_prints_other_depths_than_it_counts() -> None:
    """Depths 1,2,8,2, which Table 9 prints for T0 and T1, do not give its parameter counts; see docs/model.md."""
    for name, params_m in (("partialnet_t0", 3.56), ("partialnet_t1", 6.14)):
        model = timm.create_model(name, depths=(1, 2, 8, 2), device="meta")
        assert measure(model, (3, 224, 224)).training.params_m == pytest.approx(params_m, abs=0.005)


def test_counts_are_those_of_the_modules() -> None:
    """Against a plain sum over the parameters of a network with real weights."""
    model = timm.create_model("partialnet_t0").eval()
    complexity = measure(model, (3, 64, 64))
    assert round(complexity.training.params_m * 1e6) == sum(p.numel() for p in model.parameters())
    assert round(complexity.folded.params_m * 1e6) == sum(p.numel() for p in fold(model).parameters())


def test_description_of_the_parts(measured: dict[str, Complexity]) -> None:
    complexity = measured["partialnet_t2"]
    assert complexity.input_size == (3, 224, 224)
    stem, *stages, head = complexity.parts
    assert (stem.kind, stem.blocks, stem.resolution, stem.channels) == ("conv 4×4", 0, (56, 56), 64)
    assert [part.blocks for part in stages] == [2, 2, 6, 4]
    assert [part.resolution for part in stages] == [(56, 56), (28, 28), (14, 14), (7, 7)]
    assert [part.channels for part in stages] == [64, 128, 256, 512]
    assert [part.kind for part in stages] == ["PAT_ch + PAT_sp"] * 3 + ["PAT_sf + PAT_sp"]
    assert head.resolution == (1, 1)


def test_plain_data(measured: dict[str, Complexity]) -> None:
    complexity = measured["partialnet_t0"]
    data = json.loads(json.dumps(complexity.as_dict()))
    assert data["training"]["params_m"] == complexity.training.params_m
    assert data["folded"]["macs_g"] == complexity.folded.macs_g
    assert [part["name"] for part in data["parts"]] == [part.name for part in complexity.parts]


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (250, 190)])
def test_image_size(size: tuple[int, int]) -> None:
    """Sizes that are not multiples of 32 too: the closed form drops incomplete windows as the network does."""
    complexity = measure(timm.create_model("partialnet_t0", device="meta"), (3, *size))
    for folded in (False, True):
        expected = closed_form("partialnet_t0", folded, size)
        for part in complexity.parts:
            assert_count(part.folded if folded else part.training, expected[part.name])


def test_measuring_leaves_the_network_alone() -> None:
    model = timm.create_model("partialnet_t0", drop_path_rate=0.1).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure(model, (3, 64, 64))
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert next(model.parameters()).device.type == "cpu"


def test_without_classifier() -> None:
    complexity = measure(timm.create_model("partialnet_t0", num_classes=0, device="meta"), (3, 224, 224))
    expected = closed_form("partialnet_t0", folded=False)
    assert round(complexity.training.params_m * 1e6) == sum(p.params for p in expected.values()) - HIDDEN * 1000 - 1000


def test_other_network_has_totals_only() -> None:
    complexity = measure(timm.create_model("resnet18", device="meta"), (3, 224, 224))
    assert complexity.parts == ()
    assert complexity.training.macs_g == complexity.folded.macs_g
    # a BatchNorm's scale and shift become one bias; resnet18's BatchNorms have 4800 channels
    assert complexity.training.params_m - complexity.folded.params_m == pytest.approx(0.0048, abs=1e-9)
    assert complexity.training.params_m == pytest.approx(11.69, abs=0.01)
    assert complexity.training.macs_g == pytest.approx(1.814, abs=0.001)


def test_folded_network_has_totals_only() -> None:
    model = timm.create_model("partialnet_t0").eval()
    complexity = measure(fold(model), (3, 224, 224))
    assert complexity.parts == ()
    assert complexity.training == complexity.folded == measure(model, (3, 224, 224)).folded


def test_features_have_totals_only() -> None:
    model = timm.create_model("partialnet_t0", features_only=True, device="meta")
    complexity = measure(model, (3, 224, 224))
    expected = closed_form("partialnet_t0", folded=False)
    assert (
        round(complexity.training.params_m * 1e6) == sum(p.params for p in expected.values()) - expected["head"].params
    )
    assert complexity.parts == ()


@pytest.mark.parametrize(
    ("mixer", "kind"),
    [
        ("pat_ch", "PAT_ch"),
        ("pat_sf", "PAT_sf"),
        ("conv", "conv"),
        ("dwconv", "depthwise conv"),
        ({"name": "pat_ch", "attention": None}, "PConv"),
        ({"name": "pat_ch", "attention": "se"}, "PAT_ch (SEModule)"),
        ({"name": "pat_ch", "attention_scope": "full"}, "PAT_ch, full"),
        ({"name": "pat_sf", "attention_scope": "full"}, "PAT_sf, full"),
    ],
)
def test_kind_of_mixer(mixer: object, kind: str) -> None:
    model = timm.create_model("partialnet_t0", mixers=(mixer,) * 4, depths=(1, 1, 1, 1), device="meta")
    assert mixer_kind(model.stages[0].blocks[0].mixer) == kind
    assert measure(model, (3, 64, 64)).parts[1].kind == f"{kind} + PAT_sp"


def test_kinds_of_a_stage_whose_blocks_differ() -> None:
    """A search may find that a block convolves all channels; that is not what the others of its stage do."""
    ratios = (1, 1 / 4, 1, 1, 1 / 8)
    model = timm.create_model("partialnet_t0", split_ratio=ratios, depths=(2, 1, 1, 1), device="meta")
    kinds = [part.kind.removesuffix(" + PAT_sp") for part in measure(model, (3, 64, 64)).parts[1:5]]
    assert kinds == ["conv, PAT_ch", "conv", "conv", "PAT_sf"]


def test_stage_without_blocks() -> None:
    model = timm.create_model("partialnet_t0", depths=(1, 0, 1, 1), device="meta")
    part = measure(model, (3, 64, 64)).parts[2]
    assert (part.kind, part.blocks, part.channels, part.resolution) == ("no blocks", 0, 64, (8, 8))
    assert part.training.macs_g == pytest.approx(32 * 64 * 4 * 8 * 8 / 1e9)  # the merging


def test_kind_without_pat_sp() -> None:
    model = timm.create_model("partialnet_t0", mlp_attention=False, depths=(1, 1, 1, 1), device="meta")
    assert [part.kind for part in measure(model, (3, 64, 64)).parts[1:5]] == ["PAT_ch"] * 3 + ["PAT_sf"]


def test_multiply_adds_of_known_layers() -> None:
    """Counted by hand: a 3×3 convolution of 8 to 4 channels at 6×5 positions, and a dense layer of 4 to 10."""
    model = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    complexity = measure(model, (8, 6, 5))
    assert complexity.training.macs_g * 1e9 == pytest.approx(8 * 4 * 9 * 6 * 5 + 4 * 10)
    assert round(complexity.training.params_m * 1e6) == 8 * 4 * 9 + 4 + 4 * 10 + 10


@pytest.mark.parametrize(("name", "macs_g"), [("pit_ti_224", 0.70), ("cait_xxs24_224", 2.53)])
def test_networks_with_expanded_parameters(name: str, macs_g: float) -> None:
    """Their class tokens are views of parameters; figures of timm's result tables, rounded."""
    network = measure(timm.create_model(name).eval(), (3, 224, 224))
    assert network.training.macs_g == pytest.approx(macs_g, rel=0.02)


class Branching(nn.Module):
    """Looks at values: a network that shapes alone do not lead through, around any other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model(images)
        return features - 1000 if features.mean() > 1000 else features


@pytest.mark.parametrize("name", ["partialnet_t0", "vit_tiny_patch16_224"])
def test_network_that_looks_at_values_is_counted_as_any_other(name: str) -> None:
    model = timm.create_model(name)
    found, expected = (measure(network, (3, 224, 224)) for network in (Branching(model), model))
    assert (found.training, found.folded) == (expected.training, expected.folded)


def test_network_that_does_not_run_is_told() -> None:
    with pytest.raises(UserError, match=r"does not run on one image of 4×32×32: .*channels"):
        measure(nn.Sequential(nn.Conv2d(3, 8, 3)), (4, 32, 32))
