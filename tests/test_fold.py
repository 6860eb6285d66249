"""Folding changes no output, leaves the original alone, and gives a network that compiles, exports and saves."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from folding import (
    SETTINGS,
    SmallCnn,
    assert_no_batch_norm,
    outputs,
    relative_error,
    small,
    snapshot,
    trained,
)
from stored_networks import assert_bitwise_equal
from timm.layers import BatchNormAct2d, freeze_batch_norm_2d
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import l1_unstructured

from partialnet import fold
from partialnet.layers import (
    GaussianSE,
    PATConv,
    SelfAttention2d,
    SpatialGate,
    pat_ch,
    pat_sp,
)
from partialnet.layers.inference import RUNTIMES, Runtime
from partialnet.surgery.inverted_bottleneck import MixedExpansion

VARIANTS = ("partialnet_t0", "partialnet_t1", "partialnet_t2", "partialnet_s", "partialnet_m", "partialnet_l")


def wild_statistics(model: nn.Module) -> nn.Module:
    """Channels that hardly vary, or vary hugely, far from 0."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.copy_(10 ** torch.empty_like(module.running_var).uniform_(-4, 4))
            module.running_mean.copy_(10 * torch.randn_like(module.running_mean))
    return model


# -- the outputs stay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_in_double_precision(name: str, randomize: Randomize) -> None:
    """Widths and activations of all six; whole networks are folded in the tests below."""
    model = trained(timm.create_model(name, depths=(1, 1, 1, 1)), randomize)
    folded = fold(model)
    assert_no_batch_norm(folded)
    assert relative_error(model, folded, torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


@pytest.mark.parametrize("name", ["partialnet_t0", "partialnet_t2"])
def test_variant_with_timms_tool(name: str, randomize: Randomize) -> None:
    model = trained(timm.create_model(name), randomize)
    folded = reparameterize_model(model)
    assert_no_batch_norm(folded)
    assert relative_error(model, folded, torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


def test_timms_tool_in_place(randomize: Randomize) -> None:
    model = trained(small(), randomize)
    original = copy.deepcopy(model)
    assert reparameterize_model(model, inplace=True) is model
    assert_no_batch_norm(model)
    assert relative_error(original, model, torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_in_double_precision(setting: str, randomize: Randomize) -> None:
    arguments = SETTINGS[setting]
    model = trained(small(**arguments), randomize)
    folded = fold(model)
    if setting != "CBAM":  # timm's CBAM has a BatchNorm of its own
        assert_no_batch_norm(folded)
    images = torch.randn(2, arguments.get("in_chans", 3), 64, 64, dtype=torch.float64)
    assert relative_error(model, folded, images) < 1e-9
    if setting in ("SE", "all full", "conv", "PAT_ch in stage 4", "no PAT_sp"):
        assert_bitwise_equal(reparameterize_model(model).state_dict(), folded.state_dict())


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (47, 93)])
def test_image_sizes(size: tuple[int, int], randomize: Randomize) -> None:
    """One folded network for any size, down to a single position in stage 4."""
    model = trained(timm.create_model("partialnet_t0"), randomize)
    folded = fold(model)
    for batch in (2, 3):
        assert relative_error(model, folded, torch.randn(batch, 3, *size, dtype=torch.float64)) < 1e-9


def test_wild_statistics(randomize: Randomize) -> None:
    model = wild_statistics(trained(timm.create_model("partialnet_t0"), randomize))
    assert relative_error(model, fold(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


@pytest.mark.parametrize("name", ["partialnet_t0", "partialnet_t2", "partialnet_s"])
def test_single_precision(name: str, randomize: Randomize) -> None:
    model = randomize(timm.create_model(name)).eval()
    assert relative_error(model, fold(model), torch.randn(2, 3, 64, 64)) < 1e-5


@pytest.mark.parametrize("setting", ["PAT_ch full", "PAT_sp full", "SRM", "conv", "no PAT_sp"])
def test_setting_in_single_precision(setting: str, randomize: Randomize) -> None:
    model = randomize(small(**SETTINGS[setting])).eval()
    assert relative_error(model, fold(model), torch.randn(2, 3, 64, 64)) < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"out_norms": True},
        {"out_indices": (1, 3)},
        {"out_norms": True, "out_indices": (0, 2)},
        {"feature_cls": "hook"},
    ],
    ids=lambda arguments: ",".join(arguments) or "plain",
)
def test_features(arguments: dict[str, Any], randomize: Randomize) -> None:
    model = trained(small(features_only=True, **arguments), randomize)
    folded = fold(model)
    assert_no_batch_norm(folded)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert len(outputs(folded, images)) == len(arguments.get("out_indices", range(4)))
    assert relative_error(model, folded, images) < 1e-9
    assert relative_error(model, reparameterize_model(model), images) < 1e-9


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates(norm: bool, randomize: Randomize) -> None:
    model = trained(small(out_norms=True), randomize)
    folded = fold(model)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        last, features = model.forward_intermediates(images, norm=norm)
        folded_last, folded_features = folded.forward_intermediates(images, norm=norm)
    for right, ours in zip([last, *features], [folded_last, *folded_features], strict=True):
        assert (ours - right).abs().max() < 1e-9 * right.abs().max()


def test_pruned_backbone(randomize: Randomize) -> None:
    model = small(out_norms=True)
    model.prune_intermediate_layers(2)
    model = trained(model, randomize)
    assert relative_error(model, fold(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


def test_frozen_norms(randomize: Randomize) -> None:
    """timm's frozen BatchNorm, the usual choice in detection; timm makes it in training mode, where it is the same."""
    model = freeze_batch_norm_2d(trained(small(out_norms=True), randomize))
    folded = fold(model)
    assert not any(module.training for module in folded.modules())
    assert relative_error(model, folded, torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


def test_synchronised_norms(randomize: Randomize) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(trained(small(), randomize)).eval()
    folded = fold(model)
    assert_no_batch_norm(folded)
    assert relative_error(model, folded, torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


def test_after_training_steps() -> None:
    """Statistics, weights and .grad as a few real steps leave them."""
    model = small(drop_path_rate=0.2, drop_rate=0.1).train()
    model.set_grad_checkpointing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 64, 64)).square().sum().backward()
        optimizer.step()
    model.double().eval()
    assert relative_error(model, fold(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


# -- a user's own network --------------------------------------------------------------------------------------------


def test_users_own_network(randomize: Randomize) -> None:
    model = trained(SmallCnn(), randomize)
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    for folded in (fold(model), reparameterize_model(model), fold(fold(model))):
        assert relative_error(model, folded, images) < 1e-9
    assert_no_batch_norm(fold(model))


@pytest.mark.parametrize("index", range(13))
def test_layer_alone(index: int, randomize: Randomize) -> None:
    """A layer that is itself the network."""
    layer = trained(SmallCnn().listed[index], randomize)
    x = torch.randn(2, 32, 9, 7, dtype=torch.float64)
    folded = fold(layer)
    assert_no_batch_norm(folded)
    assert relative_error(layer, folded, x) < 1e-9
    assert relative_error(layer, fold(folded), x) < 1e-9


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("conv_norm", [BatchNormAct2d, partial(nn.GroupNorm, 2), nn.SyncBatchNorm])
def test_any_norm_before_the_convolution(
    conv_norm: Callable[..., nn.Module], kernel_size: int, randomize: Randomize
) -> None:
    """Only a BatchNorm that does nothing else goes into the convolution behind it."""
    layer = PATConv(16, kernel_size=kernel_size, split_ratio=1 / 2, conv_norm=conv_norm)
    model = trained(nn.Sequential(layer, nn.BatchNorm2d(16)), randomize)
    assert relative_error(model, fold(model), torch.randn(2, 16, 6, 5, dtype=torch.float64)) < 1e-9


def test_layer_used_twice(randomize: Randomize) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = pat_ch(16)
            self.second = self.first
            self.steps = nn.Sequential(self.first, nn.ReLU(), self.first)

        def forward(self, x: Tensor) -> Tensor:
            return self.steps(self.second(self.first(x)))

    model = trained(Shared(), randomize)
    assert relative_error(model, fold(model), torch.randn(2, 16, 9, 7, dtype=torch.float64)) < 1e-9


@pytest.mark.parametrize("runtime", [None, *RUNTIMES])
def test_shared_block_stays_shared(runtime: Runtime | None, randomize: Randomize) -> None:
    block = small(mixers=("pat_sf",), depths=(1,), embed_dim=32).stages[0].blocks[0]
    model = trained(nn.Sequential(nn.Conv2d(3, 32, 1), block, block), randomize)
    folded = fold(model, img_size=8, runtime=runtime)
    assert type(folded[1]) is not type(block)
    assert folded[2] is folded[1]
    once = fold(nn.Sequential(model[0], model[1]).eval(), img_size=8, runtime=runtime)
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in once.parameters())
    assert relative_error(model, folded, torch.randn(2, 3, 8, 8, dtype=torch.float64)) < 1e-9


# -- the original stays, a second time does nothing, training is refused ---------------------------------------------


@pytest.mark.parametrize("convert", [fold, reparameterize_model])
def test_original_is_untouched(convert: Callable[[nn.Module], nn.Module], randomize: Randomize) -> None:
    model = trained(small(out_norms=True), randomize)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name or "qkv" in name)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    state, flags = snapshot(model), {name: p.requires_grad for name, p in model.named_parameters()}
    modules, before = [type(module) for module in model.modules()], outputs(model, images)[0]

    folded = convert(model)
    with torch.no_grad():
        for tensor in [*folded.parameters(), *folded.buffers()]:
            tensor.zero_()  # nothing is shared

    assert_bitwise_equal(model.state_dict(), state)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [type(module) for module in model.modules()] == modules
    assert not any(module.training for module in model.modules())
    assert torch.equal(outputs(model, images)[0], before)


@pytest.mark.parametrize("runtime", [None, "torch"])
def test_network_of_parametrised_weights(runtime: Runtime | None, randomize: Randomize) -> None:
    """Parametrised layers share their class with their copies, so a copy must not lose its weight from the class."""
    model = trained(small(), randomize)
    for layer in [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]:
        weight_norm(layer)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = outputs(model, images)[0]
    folded = fold(model, runtime=runtime)
    with torch.inference_mode():
        assert (folded(images) - before).abs().max() < 1e-9 * before.abs().max()
    assert torch.equal(outputs(model, images)[0], before)


@pytest.mark.parametrize("computed_by", [partial(l1_unstructured, name="weight", amount=0.5), spectral_norm])
def test_network_whose_weights_are_computed_by_hooks(
    computed_by: Callable[[nn.Module], object], randomize: Randomize
) -> None:
    model = trained(small(depths=(1, 1, 1, 1)), randomize)
    for layer in [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]:
        computed_by(layer)
    model.load_state_dict({name: 1.1 * tensor for name, tensor in model.eval().state_dict().items()})
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = fold(model)  # the hooks have not yet seen the weights that were loaded
    assert relative_error(model, folded, images) < 1e-9
    model(images)  # leaves weights with a history
    assert relative_error(model, fold(model), images) < 1e-9


@pytest.mark.parametrize("runtime", [None, "torch", "onnxruntime"])
@pytest.mark.parametrize("computed_by", [partial(l1_unstructured, name="weight", amount=0.5), spectral_norm])
@pytest.mark.parametrize(
    "build",
    [
        partial(PATConv, 16),
        partial(PATConv, 16, kernel_size=1, conv_norm=nn.BatchNorm2d),
        partial(PATConv, 16, attention="spatial_gate"),
        lambda: MixedExpansion(PATConv(16), nn.Conv2d(16, 32, 1)),
        partial(GaussianSE, 16),
        partial(SelfAttention2d, 16),
    ],
)
def test_layer_whose_weights_are_computed_by_hooks(
    build: Callable[[], nn.Module],
    computed_by: Callable[[nn.Module], object],
    runtime: Runtime | None,
    randomize: Randomize,
) -> None:
    model = trained(build(), randomize)
    for layer in [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear, GaussianSE))]:
        computed_by(layer)
    model.load_state_dict({name: 1.1 * tensor for name, tensor in model.eval().state_dict().items()})
    images = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    folded = fold(model, runtime=runtime)  # the hooks have not yet seen the weights that were loaded
    assert relative_error(model, folded, images) < 1e-9


class Adapter(nn.Module):
    """A layer with another one beside it, as low-rank adaptation has it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.beside = layer, copy.deepcopy(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.5 * self.beside(x)


class AdaptedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean()


def adapted_conv(conv: nn.Conv2d) -> nn.Module:
    adapted = copy.copy(conv)
    adapted.__class__ = AdaptedConv
    return adapted


def other_conv(conv: nn.Conv2d, **settings: Any) -> nn.Conv2d:
    """A convolution with the channels and geometry of ``conv`` except for ``settings``."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return nn.Conv2d(**{**{name: getattr(conv, name) for name in names}, **settings})


def wide_conv(conv: nn.Conv2d) -> nn.Conv2d:
    return other_conv(conv, kernel_size=3, padding=1) if conv.kernel_size == (1, 1) else conv


def grouped_conv(conv: nn.Conv2d) -> nn.Conv2d:
    return other_conv(conv, groups=math.gcd(conv.in_channels, conv.out_channels, 2))


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (nn.Conv2d, Adapter),
        (nn.Linear, Adapter),
        (nn.Conv2d, adapted_conv),
        (nn.Conv2d, partial(other_conv, bias=True)),
        (nn.Conv2d, partial(other_conv, padding_mode="circular")),
        (nn.Conv2d, wide_conv),
        (nn.Conv2d, grouped_conv),
        (nn.BatchNorm2d, lambda norm: BatchNormAct2d(norm.num_features)),
        (nn.BatchNorm2d, lambda norm: nn.GroupNorm(1, norm.num_features)),
        (nn.LayerNorm, lambda norm: nn.RMSNorm(norm.normalized_shape)),
        (nn.LayerNorm, lambda norm: nn.LayerNorm(norm.normalized_shape, bias=False)),
    ],
    ids=[
        *("adapted convolutions", "adapted dense layers", "subclass", "bias", "circular padding", "3×3", "groups"),
        *("activation", "GroupNorm", "RMSNorm", "LayerNorm without bias"),
    ],
)
@pytest.mark.parametrize("build", [partial(small, depths=(1, 1, 1, 1), num_classes=3), SmallCnn])
def test_network_whose_layers_were_exchanged(
    build: Callable[[], nn.Module], kind: type[nn.Module], other: Callable[[Any], nn.Module], randomize: Randomize
) -> None:
    """What our layers fold is read off their parts, which a user may have exchanged for something else."""
    model = build()
    layers = {module: other(module) for module in model.modules() if type(module) is kind}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            setattr(parent, name, layers.get(child, child))
    trained(model, randomize)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert (
        max(relative_error(model, fold(model, runtime=runtime), images) for runtime in (None, "torch", "onnxruntime"))
        < 1e-9
    )


def test_original_trains_on_after_folding(randomize: Randomize) -> None:
    model = randomize(small()).eval()
    fold(model)
    model.train()(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("first", [fold, reparameterize_model])
@pytest.mark.parametrize("second", [fold, reparameterize_model])
def test_folding_twice_changes_nothing(
    first: Callable[[nn.Module], nn.Module], second: Callable[[nn.Module], nn.Module], randomize: Randomize
) -> None:
    model = trained(small(out_norms=True), randomize)
    once = first(model)
    twice = second(once)
    assert_bitwise_equal(twice.state_dict(), once.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(outputs(twice, images)[0], outputs(once, images)[0])


@pytest.mark.parametrize("convert", [fold, reparameterize_model])
@pytest.mark.parametrize(
    "build",
    [small, lambda: small(features_only=True), lambda: nn.Sequential(SmallCnn()), lambda: nn.Sequential(pat_ch(16))],
    ids=["network", "features", "own network", "layer"],
)
def test_training_mode_is_refused(convert: Callable[[nn.Module], nn.Module], build: Callable[[], nn.Module]) -> None:
    model = build().train()
    state = snapshot(model)
    with pytest.raises(ValueError, match=r"training mode cannot be folded.*\.eval\(\) first"):
        convert(model)
    assert_bitwise_equal(model.state_dict(), state)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "layer",
    [
        SpatialGate(8),
        pat_ch(8, attention="cbam"),
        pat_ch(8, attention=None),
        pat_sp(8),
        small(mlp_attention={"attention": "cbam"}, mixers=("conv",) * 4).stages[0].blocks[0],
    ],
)
def test_fusing_a_layer_changes_no_mode_of_its_own(layer: nn.Module) -> None:
    """``fuse`` is called by other tools, too; BatchNorms may be frozen while the rest trains."""
    for module in layer.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    modes = {name: module.training for name, module in layer.named_modules()}
    assert True in modes.values()
    folded = layer.fuse()
    assert {name: module.training for name, module in layer.named_modules()} == modes
    assert not any(module.training for module in folded.modules())


@pytest.mark.parametrize("layer", [GaussianSE(8), SpatialGate(8), SelfAttention2d(8), pat_sp(8)])
def test_training_layer_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"training mode cannot be folded.*\.eval\(\) first"):
        fold(layer.train())


@pytest.mark.parametrize("part", ["patch_embed", "stages.1.downsample", "stages.2.blocks.3", "out_norms.3"])
def test_one_part_in_training_mode_is_refused(part: str) -> None:
    model = small(out_norms=True).eval()
    model.get_submodule(part).train()
    with pytest.raises(ValueError, match="training mode"):
        fold(model)


def test_norm_without_statistics_is_refused() -> None:
    layer = SpatialGate(8).eval()
    layer.norm = nn.BatchNorm2d(8, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="BatchNorm2d has no running statistics"):
        fold(layer)


# -- what one does with a folded network -----------------------------------------------------------------------------


def test_state_dict_fits_another_folded_network(randomize: Randomize) -> None:
    folded = fold(trained(small(out_norms=True), randomize, torch.float32))
    buffer = io.BytesIO()
    torch.save(folded.state_dict(), buffer)
    buffer.seek(0)
    other = fold(small(out_norms=True).eval())
    images = torch.randn(2, 3, 64, 64)
    assert not torch.equal(outputs(other, images)[0], outputs(folded, images)[0])
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(outputs(other, images)[0], outputs(folded, images)[0])
    assert_bitwise_equal(other.state_dict(), folded.state_dict())


def test_new_classifier_after_folding(randomize: Randomize) -> None:
    folded = fold(trained(small(), randomize))
    folded.reset_classifier(3)
    assert outputs(folded, torch.randn(2, 3, 64, 64, dtype=torch.float64))[0].shape == (2, 3)


@pytest.mark.parametrize(("img_size", "runtime"), [(None, None), (64, None), (64, "torch")])
def test_compile(img_size: int | None, runtime: Runtime | None, randomize: Randomize) -> None:
    model = trained(small(depths=(1, 1, 2, 2)), randomize, torch.float32)
    folded = fold(model, img_size, runtime)
    compiled = torch.compile(folded, fullgraph=True, backend="eager")
    for batch in (2, 3):
        images = torch.randn(batch, 3, 64, 64)
        torch.testing.assert_close(outputs(compiled, images)[0], outputs(folded, images)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("img_size", [None, 64])
def test_export_with_any_batch_size(img_size: int | None, randomize: Randomize) -> None:
    folded = fold(trained(small(), randomize, torch.float32), img_size)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(folded, (torch.randn(2, 3, 64, 64),), dynamic_shapes={"x": {0: batch}}).module()
    for size in (1, 2, 7):
        images = torch.randn(size, 3, 64, 64)
        torch.testing.assert_close(outputs(exported, images)[0], outputs(folded, images)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_the_smallest_size(dtype: torch.dtype, randomize: Randomize) -> None:
    """Stage 4 has a single position there, whose deviation must be 0, not NaN."""
    model = randomize(timm.create_model("partialnet_t0", mixers=("pat_ch",) * 4)).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = outputs(model, images)[0]
    for half in (fold(model).to(dtype), fold(model.to(dtype))):
        logits = outputs(half, images.to(dtype))[0]
        assert logits.isfinite().all()
        assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_constant_image_in_half_precision(dtype: torch.dtype) -> None:
    folded = fold(timm.create_model("partialnet_t0").eval()).to(dtype)
    for value in (0.0, 1.0, -1.0):
        assert outputs(folded, torch.full((2, 3, 32, 32), value, dtype=dtype))[0].isfinite().all()


def test_channels_last(randomize: Randomize) -> None:
    model = trained(small(), randomize)
    folded = fold(model).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(
        outputs(folded, images.contiguous(memory_format=torch.channels_last))[0],
        outputs(model, images)[0],
        rtol=1e-9,
        atol=1e-9,
    )
