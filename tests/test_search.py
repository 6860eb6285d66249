"""Search of split ratios: networks made dynamic and settled, the objective, and plans."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from torch import nn

import partialnet
from partialnet.checkpoint import create_checkpoint
from partialnet.errors import UserError
from partialnet.layers import DPConv, PATConv
from partialnet.layers.partial_attention import PartialAttention
from partialnet.search import Objective, Plan, dynamic_layers, load_plan, make_dynamic, settle
from partialnet.search.network import with_ratios
from partialnet.search.plan import planned_network

TINY = {"embed_dim": 32, "depths": [1, 1, 2, 1], "head_hidden_size": 24, "num_classes": 3}


def tiny(**arguments: object) -> nn.Module:
    return timm.create_model("partialnet_t0", **{**TINY, **arguments})


def put_in_order(model: nn.Module, ones: int) -> None:
    for layer in dynamic_layers(model).values():
        with torch.no_grad():
            free = len(layer.gates)
            layer.gates.copy_(torch.tensor([-0.5] * (free - min(ones, free)) + [0.5] * min(ones, free)))


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("ones", [0, 1, 3])
def test_settled_network_gives_the_same_outputs(attention: bool, ones: int, randomize: Randomize) -> None:
    model = randomize(make_dynamic(tiny(), attention=attention)).double().eval()
    put_in_order(model, ones)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    static = settle(model)
    assert not dynamic_layers(static)
    torch.testing.assert_close(static(images), model(images), rtol=1e-9, atol=1e-9)
    # folding reaches through the searched form too
    torch.testing.assert_close(partialnet.fold(model)(images), model(images), rtol=1e-9, atol=1e-9)


def test_found_ratios_build_the_same_network(randomize: Randomize) -> None:
    """The settled network's weights load into the network that its ratios build from scratch."""
    model = randomize(make_dynamic(tiny())).eval()
    for number, layer in enumerate(dynamic_layers(model).values()):
        with torch.no_grad():
            free = len(layer.gates)
            ones = (0, 2, 4, 1, free)[number]
            layer.gates.copy_(torch.tensor([-0.5] * (free - ones) + [0.5] * ones))
    ratios = [layer.split_ratio for layer in dynamic_layers(model).values()]
    assert ratios[-1] == 1
    built = tiny(split_ratio=ratios).eval()
    built.load_state_dict(settle(model).state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(built(images), model(images), rtol=1e-4, atol=1e-5)


def test_ratios_of_a_mixers_own_make_way_for_those_found() -> None:
    """A stage may be given its ratio within its mixer; the plan's ratios count all the same."""
    mixers = ["pat_ch", {"name": "pat_ch", "split_ratio": 1 / 2, "attention": "srm"}, "pat_ch", "pat_sf"]
    start = create_checkpoint(
        "partialnet_t0", embed_dim=16, depths=(1, 1, 1, 1), mixers=mixers, num_classes=3, head_hidden_size=24
    )
    searched = make_dynamic(start.model)
    put_in_order(searched, 1)
    settled = settle(searched)
    architecture, arguments = planned_network(start, settled)
    built = create_checkpoint(architecture, **arguments).model
    built.load_state_dict(settled.state_dict())
    assert arguments["mixers"][1] == {"name": "pat_ch", "attention": "srm"}


@pytest.mark.parametrize("size", ["t0", "t1", "t2", "s", "m", "l"])
def test_every_variant_can_be_searched(size: str) -> None:
    static = timm.create_model(f"partialnet_{size}", device="meta")
    blocks = [module for module in static.modules() if isinstance(module, PATConv) and module.conv.kernel_size[0] > 1]
    with torch.device("meta"):
        layers = dynamic_layers(make_dynamic(static))
    assert len(layers) == len(blocks)
    assert [layer.channels for layer in layers.values()] == [block.out_channels for block in blocks]


def test_convolved_block_keeps_its_weights() -> None:
    model = tiny()
    dynamic = make_dynamic(model)
    layer = dynamic_layers(dynamic)["stages.0.blocks.0.mixer"]
    assert layer.split_ratio == 1 / 4
    before = model.stages[0].blocks[0].mixer.conv.weight
    torch.testing.assert_close(layer.conv.weight[:8, :8], before)
    assert not any(isinstance(module, DPConv) for module in model.modules())


def test_scope_selects_layers() -> None:
    names = list(dynamic_layers(make_dynamic(tiny(), scope=r"stages\.2")))
    assert names == ["stages.2.blocks.0.mixer", "stages.2.blocks.1.mixer"]


def test_networks_of_others_can_be_searched(randomize: Randomize) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), PATConv(16), nn.ReLU(), PATConv(16, 32), PATConv(32, attention=None))
    dynamic = randomize(make_dynamic(network)).eval()
    assert list(dynamic_layers(dynamic)) == ["1", "4"]
    put_in_order(dynamic, 1)
    images = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(settle(dynamic)(images), dynamic(images), rtol=1e-4, atol=1e-5)


def test_shared_layer_stays_shared() -> None:
    layer = PATConv(16)
    dynamic = make_dynamic(nn.Sequential(layer, layer))
    assert isinstance(dynamic[0], DPConv)
    assert dynamic[1] is dynamic[0]
    static = settle(dynamic)
    assert isinstance(static[0], PATConv)
    assert static[1] is static[0]
    chosen = with_ratios(static, {"0": 1 / 2})
    assert chosen[0].conv_channels == 8
    assert chosen[1] is chosen[0]


class MeanGate(PartialAttention):
    """Weights each channel by a learned multiple of the mean of all kept channels."""

    def __init__(self, channels: int, device: object = None, dtype: object = None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(channels, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        keep = torch.ones_like(self.factor) if keep is None else keep
        mean = (x * keep[:, None, None]).sum((1, 2, 3), keepdim=True) / (keep.sum() * x[0, 0].numel())
        return x * mean * self.factor[:, None, None]

    def settings(self) -> dict[str, object]:
        return {}

    def _copy_kept(self, selected: "MeanGate", kept: torch.Tensor) -> None:
        selected.factor.copy_(self.factor[kept])


def test_further_attention_is_searched_by_its_own_methods() -> None:
    dynamic = make_dynamic(nn.Sequential(PATConv(16, attention=MeanGate))).double().eval()
    assert isinstance(dynamic[0].attn, MeanGate)
    put_in_order(dynamic, 2)
    images = torch.randn(2, 16, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(settle(dynamic)(images), dynamic(images), rtol=1e-9, atol=1e-9)


def test_a_layer_alone_can_be_searched() -> None:
    assert isinstance(settle(make_dynamic(PATConv(16))), PATConv)


def test_nothing_to_search() -> None:
    with pytest.raises(ValueError, match="no partial convolution"):
        make_dynamic(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(ValueError, match="'nowhere'"):
        make_dynamic(tiny(), scope="nowhere")
    with pytest.raises(ValueError, match=r"scope='\(' is not a regular expression"):
        make_dynamic(tiny(), scope="(")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"theta": 0}, "theta=0 must be a number of at least 1"),
        ({"theta": float("nan")}, "theta=nan must be a number"),
        ({"count": "flops"}, "count='flops' must be 'grouped' or 'partial'"),
        ({"kappa_exponent": 3}, "kappa_exponent=3 must be 1 or 2"),
    ],
    ids=str,
)
def test_objectives_that_are_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**arguments)


def test_objective_by_hand() -> None:
    layers = [DPConv(16, attention=None, split_ratio=1 / 2), DPConv(24, attention=None, split_ratio=1 / 4)]
    grouped, partial = 16 * 8 + 24 * 6, 8 * 8 + 6 * 6
    loss = torch.tensor(2.0)
    strict = Objective(theta=4, kappa_exponent=2)
    kappa = (16**2 + 24**2) / 16
    assert strict.kappa(layers) == kappa
    assert strict.zeta(layers).item() == grouped
    assert strict(loss, layers).item() == pytest.approx(2 * (kappa / grouped) ** -0.01)
    assert Objective(theta=4, count="partial").zeta(layers).item() == partial
    # a constraint that is met changes nothing
    assert Objective(theta=1.5, kappa_exponent=1)(loss, layers).item() == 2.0
    with torch.no_grad():
        layers[0].gates.copy_(torch.tensor([0.25, -0.5, 0.5, 0.5]))
    assert Objective(theta=1)(loss, layers).item() == pytest.approx(2 + 0.9 * 0.75)


def test_objective_pushes_gates_down_only_above_the_constraint() -> None:
    layer = DPConv(16, attention=None, split_ratio=1 / 2)
    loss = torch.tensor(2.0)
    Objective(theta=4)(loss, [layer]).backward()
    assert (layer.gates.grad[layer.gates > 0] > 0).all()
    layer.zero_grad()
    Objective(theta=1)(loss, [layer]).backward()
    assert not layer.gates.grad.any()


@pytest.mark.parametrize("theta", [1.0, 2.0, 4.0, 8.5])
@pytest.mark.parametrize("count", ["grouped", "partial"])
def test_some_gates_meet_every_constraint(theta: float, count: str) -> None:
    layers = list(dynamic_layers(make_dynamic(tiny())).values())
    for layer in layers:
        with torch.no_grad():
            layer.gates.fill_(-0.5)
    objective = Objective(theta=theta, count=count)
    assert objective.zeta(layers).item() <= objective.kappa(layers)


def example_plan() -> Plan:
    return Plan(
        "partialnet_t0",
        {"split_ratio": [0.25, 0.5]},
        {"stages.0.blocks.0.mixer": 0.25, "stages.1.blocks.0.mixer": 0.5},
        theta=4.0,
        zeta=100.0,
        kappa=120.0,
        params_m=4.2,
        macs_g=0.25,
        input_size=(3, 224, 224),
        search={"epoch": 3},
    )


def test_plan_survives_its_file(tmp_path: Path) -> None:
    plan = example_plan()
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == load_plan(tmp_path) == plan
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["constraint_met"] is True
    assert not math.isnan(content["zeta"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no plan"),
        ("{", "cannot be read as a plan"),
        ("[1]", "is not a plan"),
        ('{"format": "other"}', "is not a plan"),
        ('{"format": "partialnet plan 1"}', "is not valid"),
    ],
)
def test_wrong_plans(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_plan(path)


def test_a_sweep_is_no_plan_but_holds_some(tmp_path: Path) -> None:
    for theta in (2, 4):
        (tmp_path / f"theta-{theta}").mkdir()
        example_plan().save(tmp_path / f"theta-{theta}" / "plan.json")
    with pytest.raises(UserError) as error:
        load_plan(tmp_path)
    assert str(error.value).endswith(f"Give one of {tmp_path / 'theta-2'}, {tmp_path / 'theta-4'}.")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("split_ratios", {"stages.0.blocks.0.mixer": 1.5}, "1.5, outside"),
        ("split_ratios", {"stages.0.blocks.0.mixer": "half"}, "'half', outside"),
        ("split_ratios", {}, "no split ratios"),
        ("model", 5, "its model is 5"),
        ("model_args", [0.25], "its model_args is"),
        ("search", None, "its search is None"),
        ("kappa", 0, "its kappa is 0"),
        ("macs_g", "few", "its macs_g is 'few'"),
        ("input_size", [32, 32], "not channels, height and width"),
        ("input_size", 32, "not valid"),
        ("surprise", 1, "surprise"),
    ],
)
def test_plans_that_no_search_writes(name: str, value: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    example_plan().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(UserError, match=message):
        load_plan(path)
