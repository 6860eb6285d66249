"""The form of folded layers for eager PyTorch: in place, part by part, in copies and other data types."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from conftest import Randomize
from folding import relative_error, small, trained
from torch import nn
from torch.func import functional_call, jvp, vmap

from partialnet import fold
from partialnet.layers import PATConv, SelfAttention2d
from partialnet.layers.eager import (
    CACHED_BYTES,
    EagerPATConv,
    PatchConv,
    PositionwiseLinear,
    activate_in_place,
    cached_parts,
    is_patchwise,
    pass_bias_on,
)
from partialnet.layers.gaussian_se import image_statistics


def test_eager_form_leaves_its_input_and_trains(randomize: Randomize) -> None:
    """Writing in place reaches neither the images nor the features that a user keeps."""
    model = trained(small(), randomize)
    folded = fold(model, runtime="torch").to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with torch.inference_mode():
        _, expected = model.forward_intermediates(images)
        _, features = folded.forward_intermediates(images)
    for right, ours in zip(expected, features, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)
    assert torch.equal(images, before)
    gradient = torch.autograd.grad(folded(images.requires_grad_()).square().sum(), images)[0]
    right = torch.autograd.grad(model(images).square().sum(), images)[0]
    torch.testing.assert_close(gradient, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("batch", [1, 3])
def test_eager_form_part_by_part(batch: int, randomize: Randomize, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps whose hidden features are larger than the cache; parts of unequal length, and images cut in two."""
    monkeypatch.setattr("partialnet.layers.eager.CACHED_BYTES", 10_000)
    model = trained(small(depths=(2, 1, 1, 1)), randomize)
    images = torch.randn(batch, 3, 64, 96, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    hidden = model.get_submodule("stages.0.blocks.0.mlp").fc1.out_channels
    assert len(cached_parts(torch.empty(batch * 16 * 24, 16, dtype=torch.float64), hidden)) > 2
    folded = fold(model, runtime="torch").to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("positions", [0, 1, 49, 784, 3136, 100_003])
@pytest.mark.parametrize("features", [1, 64, 512, 1 << 22])
def test_parts_are_all_positions_and_fit(positions: int, features: int) -> None:
    parts = cached_parts(torch.empty(positions, 1), features)
    at_once = CACHED_BYTES * torch.get_num_threads() // (4 * features)
    covered = [row for part in parts for row in range(positions)[part or slice(None)]]
    assert covered == list(range(positions))
    assert all(len(range(positions)[part or slice(None)]) <= max(at_once, 1) for part in parts)


@pytest.mark.parametrize("batch", [1, 2])
def test_eager_form_under_autocast(batch: int, randomize: Randomize) -> None:
    """Half precision where PyTorch chooses it; nothing is then written into tensors of another type."""
    model = trained(small(depths=(1, 1, 1, 1)), randomize, torch.float32)
    folded = fold(model, runtime="torch").to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = folded(images)
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.1 * float(expected.abs().max()))


def test_eager_form_under_transforms(randomize: Randomize) -> None:
    """Without autograd, too, nothing is written into tensors that are batched or have tangents."""
    model = trained(small(depths=(1, 0, 0, 1)), randomize)
    folded = fold(model, runtime="torch")
    images = torch.randn(2, 1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(vmap(folded)(images), vmap(model)(images))
        ours, right = (jvp(network, (images[0],), (images[1],)) for network in (folded, model))
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 2])
def test_eager_form_in_half_precision(batch: int, dtype: torch.dtype, randomize: Randomize) -> None:
    model = trained(small(depths=(1, 1, 1, 1)), randomize, torch.float32)
    folded = fold(model, runtime="torch").to(dtype, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 64, 64)
    expected = model(images).detach()
    images = images.to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images).float(), expected, rtol=0, atol=0.1 * float(expected.abs().max()))


def test_eager_form_computes_with_the_parameters_it_is_given(randomize: Randomize) -> None:
    """Its layers look parameters up in their dictionaries, which others may fill."""
    model = trained(small(depths=(1, 1, 1, 1)), randomize)
    folded = fold(model, runtime="torch").to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    other = copy.deepcopy(folded)
    with torch.inference_mode():
        for parameter in other.parameters():
            parameter.mul_(1.25)
        expected = other(images)
        assert not torch.allclose(folded(images), expected)
        torch.testing.assert_close(functional_call(folded, dict(other.named_parameters()), (images,)), expected)
    folded.load_state_dict(other.state_dict(), assign=True)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 3])
def test_statistics_by_batch_norms_kernel(batch: int, layout: torch.memory_format) -> None:
    """Of each image on its own; a mean far from 0 costs no digits, and a constant has no deviation."""
    x = 0.1 * torch.randn(batch, 24, 9, 14) + 1000 * torch.randn(1, 24, 1, 1)
    x[:, 0] = 0.0
    expected = torch.var_mean(x.double(), dim=(2, 3), correction=0)[::-1]
    for ours, right in zip(image_statistics(x.contiguous(memory_format=layout)), expected, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=0)
    assert (image_statistics(torch.randn(batch, 5, 1, 1))[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("attention", ["gaussian_se", "srm", None, SelfAttention2d])
@pytest.mark.parametrize("conv_first", [True, False])
def test_eager_form_of_a_layer(
    conv_first: bool, attention: Any, layout: torch.memory_format, dtype: torch.dtype, randomize: Randomize
) -> None:
    """With and without autograd, one image and several; its input stays as it was."""
    layer = trained(PATConv(16, conv_first=conv_first, attention=attention), randomize, dtype)
    folded = fold(layer, runtime="torch")
    assert any(isinstance(module, EagerPATConv) for module in folded.modules())
    for batch in (0, 1, 2):
        x = torch.randn(batch, 16, 9, 14, dtype=dtype).contiguous(memory_format=layout)
        before = x.clone()
        expected = layer(x)
        torch.testing.assert_close(folded(x), expected)
        with torch.inference_mode():
            torch.testing.assert_close(folded(x), expected)
        assert torch.equal(x, before)


def test_rows_of_weights_stay_spread(randomize: Randomize) -> None:
    """An odd number of cache lines apart, in copies and other data types too; files hold the weights alone."""
    linear = PositionwiseLinear(torch.randn(64, 48), torch.randn(64))
    assert linear.weight.shape == (48, 64)
    for like in (linear, copy.deepcopy(linear), copy.deepcopy(linear).double(), copy.deepcopy(linear).bfloat16()):
        gap = like.weight.stride(0) * like.weight.element_size()
        assert gap > 64 * like.weight.element_size()
        assert gap % 64 == 0
        assert gap // 64 % 2 == 1
        torch.testing.assert_close(like.weight.float(), linear.weight, rtol=1e-2, atol=0)
    saved = safetensors.torch.save(linear.state_dict())
    other = PositionwiseLinear(torch.zeros(64, 48), torch.zeros(64))
    other.load_state_dict(safetensors.torch.load(saved))
    assert torch.equal(other.weight, linear.weight)
    assert not other.weight.is_contiguous()


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True)])
def test_biases_pass_a_relu(biases: tuple[bool, bool]) -> None:
    first, second = (
        nn.Linear(*sizes, bias=bias).double() for sizes, bias in zip(((6, 9), (9, 4)), biases, strict=True)
    )
    layers = [PositionwiseLinear(layer.weight, layer.bias) for layer in (first, second)]
    fc1, act, fc2 = pass_bias_on(*layers)
    assert fc1.bias is None
    x = torch.randn(50, 6, dtype=torch.float64)
    expected = second(first(x).relu())
    torch.testing.assert_close(fc2(act(fc1(x))), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        hidden = fc1(x)
        assert activate_in_place(act, hidden) is hidden
        torch.testing.assert_close(fc2(hidden), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 2, (4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_without_overlap_is_a_matrix_product(kernel: int | tuple[int, int], bias: bool) -> None:
    conv = nn.Conv2d(9, 8, kernel, kernel, bias=bias).double().eval()
    assert is_patchwise(conv)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 9, 11, 13, dtype=torch.float64).contiguous(memory_format=layout)
        torch.testing.assert_close(PatchConv(conv)(x), conv(x), rtol=1e-12, atol=1e-12)
    for other in (nn.Conv2d(8, 8, 2, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, padding=1), nn.Linear(8, 8)):
        assert not is_patchwise(other)


def test_other_networks_get_matrix_products(randomize: Randomize) -> None:
    model = trained(timm.create_model("fasternet_t0", num_classes=10), randomize)
    folded = fold(model, runtime="torch")
    assert not any(is_patchwise(module) for module in folded.modules())
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = folded.to(memory_format=layout)
        assert relative_error(model, laid_out, images.contiguous(memory_format=layout)) < 1e-9


def test_traced_for_any_batch() -> None:
    """The parts that a map goes in belong to a batch, so none may be recorded."""
    model = fold(small().eval(), 64, "torch")
    x = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, x[:2], check_trace=False)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)
