"""What timm and its users expect of every model: our own counterparts of timm's generic model tests."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import create_feature_extractor, group_parameters, save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3, freeze, unfreeze
from torch import Tensor, nn

VARIANTS = {
    "partialnet_t0": (32, (1, 2, 6, 4)),
    "partialnet_t1": (48, (1, 2, 6, 4)),
    "partialnet_t2": (64, (2, 2, 6, 4)),
    "partialnet_s": (96, (2, 2, 9, 4)),
    "partialnet_m": (128, (2, 3, 16, 4)),
    "partialnet_l": (160, (2, 3, 20, 4)),
}
# a network of every kind of layer that is quick to build and run
SMALL: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 2, 1), "head_hidden_size": 40, "num_classes": 7}

every_variant = pytest.mark.parametrize("name", VARIANTS)


def small(randomize: Randomize | None = None, **kwargs: Any) -> nn.Module:
    model = timm.create_model("partialnet_t0", **{**SMALL, **kwargs})
    return model if randomize is None else randomize(model)


def images(size: int = 64, batch: int = 2, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_every_parameter_has_gradient(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is zero"


# -- registry and configuration ------------------------------------------------------------------------------------


def test_timm_lists_six_models() -> None:
    assert sorted(timm.list_models("partialnet*")) == sorted(VARIANTS)
    assert not timm.list_models("partialnet*", pretrained=True), "there are no weights to download"


@every_variant
def test_default_cfg(name: str) -> None:
    model = timm.create_model(name, device="meta").eval()
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    assert cfg["input_size"] == (3, 224, 224)
    assert cfg["pool_size"] == (7, 7)
    assert cfg["num_classes"] == 1000
    assert cfg["crop_pct"] == 0.9
    assert cfg["interpolation"] == "bicubic"
    assert (cfg["mean"], cfg["std"]) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    state_dict = model.state_dict()
    assert f"{cfg['classifier']}.weight" in state_dict
    assert f"{cfg['first_conv']}.weight" in state_dict
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])

    features = model.forward_features(torch.empty(1, 3, 224, 224, device="meta"))
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    model.reset_classifier(0)
    assert not any(key.startswith(cfg["classifier"] + ".") for key in model.state_dict())


@every_variant
def test_widths_and_depths_are_those_of_the_paper(name: str) -> None:
    width, depths = VARIANTS[name]
    model = timm.create_model(name, device="meta")
    assert model.num_features == 8 * width
    assert model.head_hidden_size == 1280
    assert tuple(len(stage.blocks) for stage in model.stages) == depths
    activation = nn.GELU if name in ("partialnet_t0", "partialnet_t1") else nn.ReLU
    assert isinstance(model.act, activation)
    assert isinstance(model.stages[0].blocks[0].mlp.act, activation)


def test_initialisation(randomize: Randomize) -> None:
    model = timm.create_model("partialnet_t2")
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "table" or leaf == "bias":
            assert not parameter.any(), f"{name} starts at 0"
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), f"{name} starts at 1"
        else:
            tolerance = 0.02 * 4 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(0.02, abs=tolerance), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name
    randomize(model)
    model.init_weights()
    assert model.conv_head.weight.std().item() == pytest.approx(0.02, rel=0.05)


# -- forward and backward ------------------------------------------------------------------------------------------


@every_variant
def test_forward_and_backward(name: str) -> None:
    model = timm.create_model(name, drop_path_rate=0.0)
    output = model.train()(images())
    assert output.shape == (2, 1000)
    assert output.isfinite().all()
    output.square().mean().backward()
    assert_every_parameter_has_gradient(model)
    with torch.inference_mode():
        output = model.eval()(images(batch=1))
    assert output.shape == (1, 1000)
    assert output.isfinite().all()


def test_images_of_a_batch_do_not_influence_each_other_in_eval(randomize: Randomize) -> None:
    model = small(randomize).double().eval()
    x = images(batch=3, dtype=torch.float64)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize("channels", [1, 4])
def test_in_chans(channels: int) -> None:
    model = small(in_chans=channels)
    assert model(images(channels=channels)).shape == (2, 7)
    assert model.in_chans == channels
    with pytest.raises(RuntimeError, match="channels"):
        model(images(channels=3))


def test_drop_rate_acts_in_training_only(randomize: Randomize) -> None:
    model = small(randomize, drop_rate=0.5)
    x = images()
    features = model.eval().forward_features(x)
    kept = model.forward_head(features, pre_logits=True)
    dropped = model.train().forward_head(features, pre_logits=True)
    assert ((dropped == 0) & (kept != 0)).any()
    torch.testing.assert_close(dropped[dropped != 0], 2 * kept[dropped != 0])


def test_drop_path_grows_linearly() -> None:
    model = timm.create_model("partialnet_t0", drop_path_rate=0.24, device="meta")
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert isinstance(blocks[0].drop_path, nn.Identity)
    rates = [block.drop_path.drop_prob for block in blocks[1:]]
    assert rates == pytest.approx([0.02 * index for index in range(1, 13)], abs=1e-6)


def test_drop_path_acts_in_training_only(randomize: Randomize) -> None:
    plain, dropping = small(randomize), small(drop_path_rate=1.0)
    dropping.load_state_dict(plain.state_dict())
    x = images()
    torch.testing.assert_close(dropping.eval()(x), plain.eval()(x))
    assert not torch.allclose(dropping.train()(x), plain.train()(x))


@pytest.mark.parametrize(("name", "rate"), list(zip(VARIANTS, (0.0, 0.02, 0.05, 0.1, 0.2, 0.3), strict=True)))
def test_default_drop_path_rate_is_table_8s(name: str, rate: float) -> None:
    model = timm.create_model(name, device="meta")
    last = model.stages[-1].blocks[-1].drop_path
    assert (last.drop_prob if isinstance(last, DropPath) else 0.0) == pytest.approx(rate)


def test_gradient_checkpointing_changes_neither_outputs_nor_gradients(randomize: Randomize) -> None:
    plain = small(randomize, drop_path_rate=0.3).double().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    x = images(batch=4, dtype=torch.float64)
    outputs = []
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients(checkpointed), gradients(plain))

    runs = []
    block = checkpointed.stages[2].blocks[0]
    block.register_forward_pre_hook(lambda *_: runs.append(True))
    checkpointed(x).sum().backward()
    assert len(runs) == 2, "checkpointing did not take place"
    runs.clear()
    checkpointed.set_grad_checkpointing(False)
    checkpointed(x).sum().backward()
    assert len(runs) == 1, "checkpointing was not switched off"


# -- head ----------------------------------------------------------------------------------------------------------


@every_variant
def test_reset_classifier_to_features(name: str) -> None:
    """On the meta device, where even the largest network costs nothing."""
    model = timm.create_model(name, device="meta").eval()
    x = torch.empty(2, 3, 64, 96, device="meta")
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 3)
    assert model.forward_head(features).shape == (2, 1000)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.head_hidden_size, 2, 3)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_reset_classifier_to_other_classes(pool: str, randomize: Randomize) -> None:
    model = small(randomize).double().eval()
    x = images(dtype=torch.float64)
    before = model.forward_features(x)
    model.reset_classifier(3, pool)
    assert model.num_classes == 3
    assert model.get_classifier().weight.dtype == torch.float64
    assert not model.get_classifier().training
    assert model(x).shape == (2, 3)
    torch.testing.assert_close(model.forward_features(x), before)
    reference = {
        "avg": before.mean((2, 3)),
        "max": before.amax((2, 3)),
        "avgmax": (before.mean((2, 3)) + before.amax((2, 3))) / 2,
    }[pool]
    hidden = model.act(reference @ model.conv_head.weight.flatten(1).T)
    torch.testing.assert_close(model.forward_head(before, pre_logits=True), hidden)


def test_reset_classifier_back_from_a_map(randomize: Randomize) -> None:
    model = small(randomize).eval()
    classifier, x = copy.deepcopy(model.get_classifier()), images()
    before = model(x)
    model.reset_classifier(0, "")
    model.reset_classifier(7, "avg")
    model.classifier.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(model(x), before)


def test_no_classes_and_no_pooling_at_construction() -> None:
    x = images()
    assert small(num_classes=0)(x).shape == (2, 40)
    assert small(num_classes=0, global_pool="")(x).shape == (2, 40, 2, 2)
    assert isinstance(small(num_classes=0).get_classifier(), nn.Identity)


# -- features ------------------------------------------------------------------------------------------------------


@every_variant
def test_features_only(name: str) -> None:
    width, _ = VARIANTS[name]
    model = timm.create_model(name, features_only=True, device="meta").eval()
    assert model.feature_info.channels() == [width, 2 * width, 4 * width, 8 * width]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    features = model(torch.empty(1, 3, 64, 96, device="meta"))
    assert [tuple(f.shape) for f in features] == [
        (1, channels, 64 // reduction, 96 // reduction)
        for channels, reduction in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (2,), (-1,), (-3, -2), 2], ids=str)
@pytest.mark.parametrize("out_norms", [False, True])
def test_features_only_gives_the_stages_outputs(
    out_indices: int | tuple[int, ...], out_norms: bool, randomize: Randomize
) -> None:
    model = small(randomize, out_norms=out_norms, num_classes=0).double().eval()
    x = images(dtype=torch.float64)
    _, expected = model.forward_intermediates(x, norm=out_norms)

    extractor = small(out_norms=out_norms, features_only=True, out_indices=out_indices).double().eval()
    loaded = extractor.load_state_dict(extractor_names(model, out_norms), strict=False)
    assert not loaded.missing_keys
    features = extractor(x)
    positions = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
    torch.testing.assert_close(features, [expected[position] for position in positions])
    assert extractor.feature_info.channels() == [f.shape[1] for f in features]
    assert extractor.feature_info.reduction() == [64 // f.shape[2] for f in features]


def extractor_names(model: nn.Module, getter: bool) -> dict[str, Tensor]:
    """timm's extractors hold the network as ``model``, or its stages as ``stages_0``, …"""
    if getter:
        return {f"model.{key}": value for key, value in model.state_dict().items()}
    return {key.replace("stages.", "stages_", 1): value for key, value in model.state_dict().items()}


def test_features_only_can_be_trained() -> None:
    model = small(features_only=True)
    sum(f.square().mean() for f in model(images())).backward()
    assert_every_parameter_has_gradient(model)


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ([-4, 1], [0, 1])], ids=str
)
def test_forward_intermediates(indices: Any, taken: list[int], randomize: Randomize) -> None:
    model = small(randomize, out_norms=True).eval()
    x = images()
    stages = [model.patch_embed(x)]
    for stage in model.stages:
        stages.append(stage(stages[-1]))
    expected = [stages[index + 1] for index in taken]

    final, intermediates = model.forward_intermediates(x, indices=indices)
    torch.testing.assert_close(intermediates, expected)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(model.forward_head(final), model(x))

    only = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    torch.testing.assert_close(only, expected)

    normed = model.forward_intermediates(x, indices=indices, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed, [model.out_norms[i](e) for i, e in zip(taken, expected, strict=True)])

    early, intermediates = model.forward_intermediates(x, indices=indices, stop_early=True)
    torch.testing.assert_close(intermediates, expected)
    torch.testing.assert_close(early, stages[max(taken) + 1])


def test_stopping_early_does_not_run_later_stages() -> None:
    model = small()
    model.stages[2].register_forward_hook(lambda *_: pytest.fail("stage 2 ran"))
    model.forward_intermediates(images(), indices=[0, 1], stop_early=True)


def test_intermediates_without_norms_are_the_same_with_norm() -> None:
    model = small().eval()
    x = images()
    torch.testing.assert_close(
        model.forward_intermediates(x, norm=True, intermediates_only=True),
        model.forward_intermediates(x, norm=False, intermediates_only=True),
    )


def test_forward_intermediates_refuses_other_formats() -> None:
    with pytest.raises(ValueError, match=r"'NLC'.*NCHW"):
        small().forward_intermediates(images(), output_fmt="NLC")


@pytest.mark.parametrize("indices", [1, 3, [0], [1], [0, 2], [-1]], ids=str)
def test_prune_intermediate_layers(indices: Any, randomize: Randomize) -> None:
    model = small(randomize, out_norms=True).eval()
    x = images()
    expected = model.forward_intermediates(x, indices=indices, norm=True, stop_early=True)
    names = {name for name, _ in model.named_parameters()}

    taken = model.prune_intermediate_layers(indices)
    assert len(model.stages) == max(taken) + 1
    torch.testing.assert_close(model.forward_intermediates(x, indices=taken, norm=True), expected)
    pruned = {name for name, _ in model.named_parameters()}
    assert pruned < names
    assert not any(name.startswith(("conv_head", "classifier")) for name in pruned)
    torch.testing.assert_close(model(x), expected[0])
    assert model(x).shape[1] == model.num_features == model.head_hidden_size


def test_prune_keeps_what_it_is_told_to(randomize: Randomize) -> None:
    model = small(randomize, out_norms=True).eval()
    x = images()
    before = model(x)
    assert model.prune_intermediate_layers([1, 3], prune_norm=True, prune_head=False) == [1, 3]
    torch.testing.assert_close(model(x), before)
    assert not any(name.startswith("out_norms") for name, _ in model.named_parameters())


def test_a_pruned_network_can_be_trained() -> None:
    model = small()
    model.prune_intermediate_layers([1])
    model(images()).square().mean().backward()
    assert_every_parameter_has_gradient(model)


# -- scripting, tracing, copying -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_torchscript(training: bool, randomize: Randomize) -> None:
    model = small(randomize).double().train(training)
    scripted = torch.jit.script(copy.deepcopy(model))
    for x in (images(dtype=torch.float64), torch.randn(3, 3, 96, 32, dtype=torch.float64)):
        torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_torchscript_of_features_only(randomize: Randomize) -> None:
    model = small(randomize, features_only=True).eval()
    scripted = torch.jit.script(model)
    x = images()
    torch.testing.assert_close(scripted(x), model(x))


def test_fx_feature_extractor(randomize: Randomize) -> None:
    model = small(randomize).double()
    extractor = create_feature_extractor(model, ["patch_embed", "stages.1", "classifier"])
    x = images(96, dtype=torch.float64)
    for training in (False, True):
        model.train(training)
        extractor.train(training)
        output = extractor(x)
        torch.testing.assert_close(output["patch_embed"], model.patch_embed(x))
        torch.testing.assert_close(output["stages.1"], model.forward_intermediates(x, indices=[1])[1][0])
        torch.testing.assert_close(output["classifier"], model(x))


def test_fx_graph_passes_gradients() -> None:
    extractor = create_feature_extractor(small(), ["classifier"]).train()
    extractor(images())["classifier"].square().mean().backward()
    assert_every_parameter_has_gradient(extractor)


def test_fx_features_only(randomize: Randomize) -> None:
    extractor = small(features_only=True, feature_cls="fx", out_indices=(0, 2)).eval()
    randomize(extractor)
    x = images()
    reference = small().eval()
    state_dict = {key.removeprefix("graph_module."): value for key, value in extractor.state_dict().items()}
    reference.load_state_dict(state_dict, strict=False)
    torch.testing.assert_close(extractor(x), reference.forward_intermediates(x, [0, 2], intermediates_only=True))


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_equal_and_independent(how: Any, randomize: Randomize) -> None:
    model = small(randomize).eval()
    twin = how(model)
    x = images()
    expected = model(x)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    randomize(model)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("out_norms", [False, True])
def test_state_dict_round_trip(out_norms: bool, randomize: Randomize) -> None:
    model, other = small(randomize, out_norms=out_norms).eval(), small(out_norms=out_norms).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = images()
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


# -- devices and data types ----------------------------------------------------------------------------------------


@every_variant
def test_meta_device(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    model.reset_classifier(5)
    assert model.get_classifier().weight.is_meta
    assert model.train()(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_meta_network_takes_real_weights(randomize: Randomize) -> None:
    model = small(randomize).eval()
    other = small(device="meta").eval()
    other.load_state_dict(model.state_dict(), assign=True)
    x = images()
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kwargs", [{}, {"out_norms": True}, {"mixers": [{"name": "pat_ch", "attention": "se"}] * 4}])
def test_dtype_at_construction(dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
    model = small(dtype=dtype, **kwargs)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    assert not {name: t.dtype for name, t in tensors.items() if t.is_floating_point() and t.dtype != dtype}
    assert model.eval()(images(dtype=dtype)).dtype == dtype
    model.reset_classifier(3)
    assert model(images(dtype=dtype)).dtype == dtype


# -- optimisation --------------------------------------------------------------------------------------------------


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


# -- saving for others ---------------------------------------------------------------------------------------------

SAVED = {
    "default": {},
    "depths": {"depths": (1, 2, 1, 2)},
    "ratios": {"split_ratio": 0.5},
    "ratio per block": {"split_ratio": (0.25, 0.5, 0.125, 0.25, 0.5)},
    "mixers": {
        "mixers": ("pat_ch", "conv", {"name": "pat_ch", "attention": "srm"}, {"name": "pat_sf", "num_heads": 3})
    },
    "no PAT_sp": {"mlp_attention": False},
    "norms": {"out_norms": True},
    "activation": {"act_layer": "relu"},
    "channels": {"in_chans": 1},
}


@pytest.mark.parametrize("arguments", SAVED.values(), ids=SAVED.keys())
def test_saved_for_the_hub_and_read_from_a_folder(
    arguments: dict[str, Any], tmp_path: Path, randomize: Randomize
) -> None:
    model = small(randomize, **arguments).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert (tmp_path / "model.safetensors").is_file()
    assert "model_args" in json.loads((tmp_path / "config.json").read_text()), "this timm records no arguments"

    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(channels=model.in_chans)
    torch.testing.assert_close(read(x), model(x), rtol=0, atol=0)


def test_a_saved_network_adapts_to_other_classes_and_channels(tmp_path: Path, randomize: Randomize) -> None:
    model = small(randomize).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1).eval()
    grey = images(channels=1)
    torch.testing.assert_close(read.forward_features(grey), model.forward_features(grey.expand(-1, 3, -1, -1)))
    assert read(grey).shape == (2, 3)


def test_a_saved_network_gives_features(tmp_path: Path, randomize: Randomize) -> None:
    model = small(randomize).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    x = images()
    torch.testing.assert_close(read(x), model.forward_intermediates(x, intermediates_only=True))
