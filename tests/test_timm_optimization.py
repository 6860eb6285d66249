"""What timm's optimisers, layer decay, freezing and weight averaging find in our networks."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from conftest import Randomize
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3, freeze, unfreeze
from timm_networks import VARIANTS, assert_every_parameter_has_gradient, every_variant, images, small
from torch import nn


@every_variant
def test_group_matcher(name: str) -> None:
    _, depths = VARIANTS[name]
    model = timm.create_model(name, device="meta")
    groups = group_parameters(model, model.group_matcher())
    layer_of = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layer_of) == {parameter for parameter, _ in model.named_parameters()}

    assert all(parameter.startswith("patch_embed.") for parameter in groups[0])
    blocks = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    assert len(groups) == 1 + len(blocks) + 1, "stem, every block, classifier"
    for layer, (stage, block) in enumerate(blocks, start=1):
        prefixes = {f"stages.{stage}.blocks.{block}."}
        if block == 0:
            prefixes.add(f"stages.{stage}.downsample.")
        if (stage, block) == blocks[-1]:
            prefixes.add("conv_head.")
        foreign = [parameter for parameter in groups[layer] if not parameter.startswith(tuple(prefixes))]
        assert not foreign, f"group {layer} of block {stage}.{block}"
        assert any(parameter.startswith(f"stages.{stage}.blocks.{block}.") for parameter in groups[layer])
    assert groups[len(blocks) + 1] == ["classifier.weight", "classifier.bias"]


def test_group_matcher_coarse() -> None:
    model = small()
    groups = group_parameters(model, model.group_matcher(coarse=True))
    assert len(groups) == 6, "stem, four stages, head"
    assert all(parameter.startswith("patch_embed.") for parameter in groups[0])
    for stage in range(4):
        assert groups[stage + 1] == [p for p, _ in model.named_parameters() if p.startswith(f"stages.{stage}.")]
    assert set(groups[5]) == {"conv_head.weight", "classifier.weight", "classifier.bias"}


def test_group_matcher_with_output_norms() -> None:
    model = small(out_norms=True)
    layer_of = group_parameters(model, model.group_matcher(), reverse=True)
    head = max(layer_of.values())
    assert {name for name, layer in layer_of.items() if layer == head} == {"classifier.weight", "classifier.bias"}


def test_layer_decay() -> None:
    model = small()
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    depth = 5
    for name, parameter in model.named_parameters():
        if name.startswith("patch_embed"):
            assert scale[id(parameter)] == 0.5 ** (depth + 1)
        elif name.startswith("classifier"):
            assert scale[id(parameter)] == 1.0
        elif name.startswith("stages.2.blocks.1"):
            assert scale[id(parameter)] == 0.5**2
        table = name.endswith("position_bias.table")
        assert decay[id(parameter)] == (0.0 if parameter.ndim <= 1 or table else 0.1), name
    assert len(scale) == len(list(model.parameters()))


def test_no_weight_decay_names_the_position_tables() -> None:
    model = timm.create_model("partialnet_t0", device="meta")
    assert model.no_weight_decay() == {f"stages.3.blocks.{i}.mixer.attn.position_bias.table" for i in range(4)}
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("layer_decay", [None, 0.8])
def test_timm_optimizer_lowers_the_loss(layer_decay: float | None) -> None:
    model = small()
    optimizer = create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05, layer_decay=layer_decay)
    x, target = images(32, 8), torch.arange(8) % 7
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_freezing_stops_parameters_and_statistics(randomize: Randomize) -> None:
    model = small(randomize)
    before, x = copy.deepcopy(model.state_dict()), images()
    expected = model.eval()(x)
    freeze(model, ["patch_embed", "stages.0", "stages.1", "stages.2", "stages.3"])
    torch.testing.assert_close(model(x), expected)

    model.train()(x).square().mean().backward()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "conv_head.weight",
        "classifier.weight",
        "classifier.bias",
    }
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not moved, "statistics of frozen layers moved"


def test_unfreezing_restores_training(randomize: Randomize) -> None:
    model = small(randomize)
    expected, x = copy.deepcopy(model), images()
    freeze(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    unfreeze(model)
    torch.testing.assert_close(model.train()(x), expected.train()(x))
    model(x).square().mean().backward()
    assert_every_parameter_has_gradient(model)


def test_exponential_moving_average(randomize: Randomize) -> None:
    model = small(randomize).train()
    ema = ModelEmaV3(model, decay=0.75)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(images())
    ema.update(model)
    for name, value in ema.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, start[name].lerp(model.state_dict()[name], 0.25))
    assert ema(images()).shape == (2, 7)
