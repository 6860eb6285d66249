"""Sizes, data types, compilers and configurations other than the usual ones."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

from partialnet import PartialNet
from partialnet.layers import GaussianSE, PATConv, SelfAttention2d, SpatialGate

SMALL: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 2, 1), "head_hidden_size": 40, "num_classes": 7}


def small(**kwargs: Any) -> PartialNet:
    return PartialNet(**{**SMALL, **kwargs})


# -- image sizes ---------------------------------------------------------------------------------------------------

SIZES = [(32, 32), (33, 47), (47, 33), (95, 64), (64, 95), (35, 131), (63, 63), (32, 200)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_beyond_the_last_whole_patch_are_dropped_and_no_others(
    size: tuple[int, int], randomize: Randomize
) -> None:
    """Rows from 4·⌊H/4⌋ on and columns from 4·⌊W/4⌋ on change no logit; every other pixel does.

    The mergings drop a last odd row or column of patches, but not before Gaussian-SE has seen it.
    """
    model = randomize(small()).double().eval()
    x = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    logits = model(x)
    assert logits.shape == (1, 7)
    rows, columns = 4 * (size[0] // 4), 4 * (size[1] // 4)
    (logits * torch.randn_like(logits)).sum().backward()
    influence = x.grad.abs().amax((0, 1))  # (H, W)
    assert (influence[:rows, :columns] > 0).all()
    assert not influence[rows:].any()
    assert not influence[:, columns:].any()

    changed = x.detach().clone()
    changed[:, :, rows:] = 1e6
    changed[:, :, :, columns:] = -1e6
    assert torch.equal(model(changed), logits)
    torch.testing.assert_close(model(changed[:, :, :rows, :columns]), logits)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(height=st.integers(32, 110), width=st.integers(32, 110), training=st.booleans())
def test_every_size_from_32_on(height: int, width: int, training: bool) -> None:
    model = small().train(training)
    x = torch.randn(2, 3, height, width)
    features, maps = model.forward_intermediates(x)
    for stage, output in enumerate(maps):
        expected = [side // 4 >> stage for side in (height, width)]
        assert list(output.shape) == [2, 16 << stage, *expected]
    assert model.forward_head(features).isfinite().all()


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (16, 16), (1, 1)], ids=str)
@pytest.mark.parametrize("how", ["logits", "features", "intermediates", "features_only"])
def test_images_that_are_too_small(how: str, size: tuple[int, int]) -> None:
    model: Any = timm.create_model("partialnet_t0", **SMALL, features_only=how == "features_only").eval()
    call = {"features": "forward_features", "intermediates": "forward_intermediates"}.get(how, "forward")
    with pytest.raises(ValueError, match=rf"{size[0]}×{size[1]} pixels are too small.*at least 32×32"):
        getattr(model, call)(torch.randn(1, 3, *size))


def test_the_smallest_size_follows_the_stages() -> None:
    three = small(depths=(1, 1, 1), mixers=("pat_ch", "pat_ch", "pat_sf")).eval()
    assert three(torch.randn(1, 3, 16, 16)).shape == (1, 7)
    with pytest.raises(ValueError, match="at least 16×16"):
        three(torch.randn(1, 3, 15, 16))
    fine = small(patch_size=2).eval()
    assert fine(torch.randn(1, 3, 16, 16)).shape == (1, 7)
    assert [info["reduction"] for info in fine.feature_info] == [2, 4, 8, 16]


def test_a_pruned_network_takes_smaller_images(randomize: Randomize) -> None:
    model = randomize(small()).eval()
    model.prune_intermediate_layers([1])
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 32, 1, 1)


# -- data types ----------------------------------------------------------------------------------------------------


def assert_finite(model: nn.Module, output: Tensor, training: bool) -> None:
    assert output.isfinite().all()
    if training:
        output.float().square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), f"gradient of {name}"
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "random"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_nan_where_the_last_map_has_one_position(
    dtype: torch.dtype, training: bool, fresh: bool, randomize: Randomize
) -> None:
    model = small() if fresh else randomize(small())
    model = model.to(dtype).train(training)
    output = model(torch.randn(2, 3, 32, 32).to(dtype))
    assert output.dtype == dtype
    assert_finite(model, output, training)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_bfloat16_autocast(training: bool, randomize: Randomize) -> None:
    model = randomize(small()).train(training)
    x = torch.randn(2, 3, 32, 32)
    exact = copy.deepcopy(model)(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    assert_finite(model, output, training)
    if not training:  # in training, a BatchNorm over two values magnifies every rounding
        assert (output.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close_to_single(dtype: torch.dtype, randomize: Randomize) -> None:
    model = randomize(small()).eval()
    x = torch.randn(2, 3, 64, 64)
    exact = model(x)
    assert (copy.deepcopy(model).to(dtype)(x.to(dtype)).float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_constant_images_have_finite_gradients(training: bool) -> None:
    model = small().train(training)
    x = torch.zeros(2, 3, 64, 64, requires_grad=True)
    assert_finite(model, model(x), True)
    assert x.grad.isfinite().all()


def test_a_whole_network_refuses_to_train_on_one_image() -> None:
    with pytest.raises(ValueError, match=r"batch of 1 .*batch of 2"):
        small()(torch.randn(1, 3, 64, 64))


# -- compilers and exporters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_into_one_graph(training: bool, randomize: Randomize) -> None:
    torch.compiler.reset()
    model = randomize(small(out_norms=True)).double().train(training)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for _ in range(2):
        output, expected = compiled(x), model(x)
        torch.testing.assert_close(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
    for (name, parameter), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()))


def test_compiles_once_for_many_sizes(randomize: Randomize) -> None:
    torch.compiler.reset()
    model = randomize(small()).double().eval()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for size in ((2, 64, 96), (3, 96, 64), (4, 75, 131), (2, 130, 66)):
        x = torch.randn(size[0], 3, *size[1:], dtype=torch.float64)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1


@pytest.mark.slow  # 20 s where inductor has no cached kernels, 3 s where it has
def test_inductor_compiles_a_short_t0(randomize: Randomize) -> None:
    torch.compiler.reset()
    model = randomize(timm.create_model("partialnet_t0", depths=(1, 1, 1, 1))).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(torch.__version__.startswith("2.8."), reason="torch 2.8 exports no merging for all sizes")
def test_exports_with_dynamic_batch_and_size(randomize: Randomize) -> None:
    model = randomize(small()).double().eval()
    batch, height, width = (
        torch.export.Dim("batch", max=64),
        torch.export.Dim("height", min=64, max=1024),
        torch.export.Dim("width", min=64, max=1024),
    )
    x = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch, 2: height, 3: width},)).module()
    for size in ((1, 64, 64), (2, 96, 128), (5, 64, 160), (3, 75, 131), (1, 224, 97)):
        x = torch.randn(size[0], 3, *size[1:], dtype=torch.float64)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.filterwarnings("ignore")
def test_traces(randomize: Randomize) -> None:
    model = randomize(small()).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    traced = torch.jit.trace(model, x)
    other = torch.randn_like(x)
    torch.testing.assert_close(traced(other), model(other))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"mixers": ["pat_ch"] * 4}, {"mixers": ["dwconv"] * 4}, {"out_norms": True}])
def test_channels_last_stays_channels_last(options: dict[str, Any], training: bool, randomize: Randomize) -> None:
    model = randomize(small(**options)).train(training).to(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    x = torch.randn(2, 3, 96, 64)
    maps = model.forward_intermediates(x.to(memory_format=torch.channels_last), norm=True, intermediates_only=True)
    assert [output.is_contiguous(memory_format=torch.channels_last) for output in maps] == [True] * 4
    expected = contiguous.forward_intermediates(x, norm=True, intermediates_only=True)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-3)


# -- configurations ------------------------------------------------------------------------------------------------

FULL = {"attention_scope": "full"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "regular convolutions": {"mixers": ["conv"] * 4},
    "depthwise convolutions": {"mixers": ["dwconv"] * 4},
    "PAT_ch in all stages": {"mixers": ["pat_ch"] * 4},
    "PAT_sf in two stages": {"mixers": ["pat_ch", "pat_ch", "pat_sf", "pat_sf"]},
    "no PAT_sp": {"mlp_attention": False},
    "nothing but partial convolutions": {"mixers": [{"name": "pat_ch", "attention": None}] * 4, "mlp_attention": False},
    "full PAT_ch": {"mixers": [{"name": "pat_ch", **FULL}] * 3 + ["pat_sf"]},
    "full PAT_sf": {"mixers": ["pat_ch"] * 3 + [{"name": "pat_sf", **FULL}]},
    "full PAT_sp": {"mlp_attention": FULL},
    "SRM": {"mixers": [{"name": "pat_ch", "attention": "srm"}] * 3 + ["pat_sf"]},
    "timm's attention": {"mixers": [{"name": "pat_ch", "attention": "eca"}] * 3 + ["pat_sf"]},
    "heads": {"mixers": ["pat_ch"] * 3 + [{"name": "pat_sf", "num_heads": 6}]},
    "a quarter for PAT_sp": {"mlp_attention": {"split_ratio": 1 / 4}},
    "ratio for a stage": {"mixers": [{"name": "pat_ch", "split_ratio": 1 / 2}] + ["pat_ch"] * 2 + ["pat_sf"]},
    "wide MLP": {"mlp_ratio": 3},
    "two stages": {"depths": (1, 2), "mixers": ("pat_ch", "pat_sf")},
    "activation": {"act_layer": nn.SiLU},
    "activation by timm's name": {"act_layer": "hard_swish"},
    "odd width": {"embed_dim": 20},
    "output stride": {"output_stride": 8, "mixers": ("conv", "dwconv", "pat_ch", "pat_sf")},
}


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_configuration_trains_and_evaluates(options: dict[str, Any], randomize: Randomize) -> None:
    model = randomize(small(**options)).train()
    x = torch.randn(2, 3, 64, 96)
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    output = model.eval()(x)
    assert output.shape == (2, 7)
    assert output.isfinite().all()
    again = small(**options).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), output)


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_blocks_are_arranged_as_in_figure_3(options: dict[str, Any], randomize: Randomize) -> None:
    """v1: one residual connection around everything; v2, with self-attention: a second one around the mixer."""
    model = randomize(small(**options)).double().eval()
    for stage in model.stages:
        block = stage.blocks[0]
        x = torch.randn(2, block.mlp.fc1.in_channels, 5, 4, dtype=torch.float64)
        output, mixed, skipped = block(x), block.mixer(x), x
        if isinstance(getattr(block.mixer, "attn", None), SelfAttention2d):
            mixed = skipped = x + mixed
        hidden = block.mlp.act(block.mlp.norm(block.mlp.fc1(mixed)))
        torch.testing.assert_close(output, skipped + block.mlp_attention(block.mlp.fc2(hidden)))


def attentions(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_mixers_are_what_their_names_say() -> None:
    blocks = [stage.blocks[0] for stage in small(mixers=("conv", "dwconv", "pat_ch", "pat_sf")).stages]
    conv, dwconv, channel, full = (block.mixer for block in blocks)
    assert (conv.kernel_size, conv.groups, conv.in_channels) == ((3, 3), 1, 16)
    assert (dwconv.kernel_size, dwconv.groups, dwconv.in_channels) == ((3, 3), 32, 32)
    assert conv.bias is dwconv.bias is None
    assert isinstance(channel.attn, GaussianSE)
    assert isinstance(full.attn, SelfAttention2d)
    assert all(isinstance(block.mlp_attention.attn, SpatialGate) for block in blocks)


def test_scope_full_widens_the_attention_not_the_convolution() -> None:
    model = small(
        mixers=[{"name": "pat_ch", **FULL}] * 3 + [{"name": "pat_sf", **FULL}],
        mlp_attention=FULL,
    )
    for index, stage in enumerate(model.stages):
        channels = 16 << index
        block = stage.blocks[0]
        assert block.mixer.conv.in_channels == channels // 4
        assert block.mlp_attention.conv.in_channels == channels // 2
        assert block.mlp_attention.attn.conv.in_channels == channels
        attn = block.mixer.attn
        assert channels == (attn.channels if isinstance(attn, GaussianSE) else attn.qkv.in_features)


def test_split_ratio_of_every_block() -> None:
    ratios = (1 / 2, 1 / 4, 1 / 8, 3 / 8, 1 / 4)
    model = small(split_ratio=ratios)
    mixers = [block.mixer for stage in model.stages for block in stage.blocks]
    assert [mixer.split_ratio for mixer in mixers] == list(ratios)
    assert [mixer.conv.in_channels for mixer in mixers] == [8, 8, 8, 24, 32]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert all(module.split_ratio == 1 / 2 for module in attentions(model, PATConv) if module not in mixers)


def test_arguments_are_not_changed() -> None:
    mixers = [{"name": "pat_ch", "attention": "srm"}, "pat_ch", "pat_ch", {"name": "pat_sf", "num_heads": 2}]
    mlp_attention = {"split_ratio": 1 / 4}
    before = copy.deepcopy((mixers, mlp_attention))
    small(mixers=mixers, mlp_attention=mlp_attention)
    assert (mixers, mlp_attention) == before


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"mixers": ("pat_ch", "pat_sf")}, "mixers names 2 stages, depths 4.*one mixer for each"),
    ({"mixers": ("pat_ch", "pat_ch", "pat_ch", "pat_ssf")}, "'pat_ssf'.*pat_ch, pat_sf, conv, dwconv"),
    ({"mixers": ({"attention": "srm"}, "pat_ch", "pat_ch", "pat_sf")}, "None.*pat_ch, pat_sf, conv, dwconv"),
    ({"mixers": ({"name": "pat_ch", "attention": "sea"}, "pat_ch", "pat_ch", "pat_sf")}, "'sea'.*gaussian_se"),
    ({"mixers": ("pat_ch", "pat_ch", "pat_ch", {"name": "pat_sf", "num_heads": 7})}, "num_heads=7.*96"),
    ({"split_ratio": (1 / 4, 1 / 2)}, "split_ratio has 2 entries for 5 blocks"),
    ({"split_ratio": 0.01}, r"split_ratio=0\.01 of 16 channels"),
    ({"split_ratio": (1 / 4, 1 / 4, 2, 1 / 4, 1 / 4)}, "split_ratio=2 of 64 channels"),
    ({"embed_dim": 3}, r"split_ratio=0\.25 of 3 channels"),
    ({"embed_dim": 0}, "embed_dim=0 must be a whole number of at least 1"),
    ({"embed_dim": 16.5}, "embed_dim=16.5 must be a whole number"),
    ({"in_chans": 0}, "in_chans=0"),
    ({"patch_size": 0}, "patch_size=0"),
    ({"output_stride": 12}, r"output_stride=12 must be one of \[4, 8, 16, 32\], or None"),
    ({"head_hidden_size": 0}, "head_hidden_size=0"),
    ({"depths": (1, 1, 1, -1)}, r"depths=\(1, 1, 1, -1\) must be whole numbers of at least 0"),
    ({"mlp_ratio": 0.01}, "mlp_ratio=0.01 of 16 channels"),
    ({"drop_rate": 1.5}, "drop_rate=1.5 must be between 0 and 1"),
    ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1 must be between 0 and 1"),
    ({"mlp_attention": {"attention_scope": "most"}}, "attention_scope='most'.*partial.*full"),
    ({"act_layer": "sine"}, "'sine'.*gelu, relu"),
    ({"global_pool": ""}, "num_classes=0"),
    ({"global_pool": "catavgmax"}, "'catavgmax'.*avg, max"),
    ({"global_pool": "median"}, "'median'.*avg, max"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[str(arguments) for arguments, _ in WRONG])
def test_wrong_arguments_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message)):
        small(**arguments)


def test_wrong_pooling_is_explained_by_reset_classifier() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"'median'.*avg, max"):
        model.reset_classifier(3, "median")
    assert model.num_classes == 7, "a refused change leaves the network as it was"


# -- torch.func ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_images_one_by_one_by_torch_func(layout: torch.memory_format, randomize: Randomize) -> None:
    """Maps of one position, as the last stage's are here, are in both layouts."""
    model = randomize(small()).double().eval().to(memory_format=layout)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64).to(memory_format=layout)
    outputs = vmap(lambda image: model(image[None])[0])(images)
    torch.testing.assert_close(outputs, model(images))


def test_gradients_for_each_image_by_torch_func(randomize: Randomize) -> None:
    model = randomize(small()).double().eval()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (image[None],)).square().sum()

    of_each_image = vmap(grad(loss), (None, 0))(parameters, images)
    model(images[1:]).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(of_each_image[name][1], parameter.grad, rtol=1e-8, atol=1e-10)


def test_forward_mode_is_the_transpose_of_backward(randomize: Randomize) -> None:
    model = randomize(small()).double().eval()
    images, direction = (torch.randn(2, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    weights = torch.randn(2, 7, dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(images, direction))).tangent
    images.requires_grad_()
    (gradient,) = torch.autograd.grad((model(images) * weights).sum(), images)
    torch.testing.assert_close((tangent * weights).sum(), (gradient * direction).sum(), rtol=1e-7, atol=1e-9)
