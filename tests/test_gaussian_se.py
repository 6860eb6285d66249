"""Gaussian-SE against a plain transcription of its definition, in float64."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import timm.layers
import torch
from conftest import Randomize
from definitions import batch_norm, exactly, few_examples, leaf
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from partialnet.layers import (
    GaussianSE,
)

pytestmark = pytest.mark.usefixtures("float64")


def gaussian_se(layer: GaussianSE, x: Tensor) -> Tensor:
    """The definition, step by step; uses ``layer``'s parameters and updates its statistics."""
    positions = x.shape[2] * x.shape[3]
    mean = x.mean((2, 3))
    std = x.flatten(2).std(2, unbiased=True) if positions > 1 else torch.zeros_like(mean)
    logits = []
    for channel in range(layer.channels):
        if layer.dense:
            weight_of_mean, weight_of_std = layer.weight[channel].split(layer.channels)
            logits.append(mean @ weight_of_mean + std @ weight_of_std)
        else:
            logits.append(layer.weight[channel, 0] * mean[:, channel] + layer.weight[channel, 1] * std[:, channel])
    normalised = batch_norm(layer.gate_norm, torch.stack(logits, 1)[:, :, None, None])
    gate = torch.clamp(normalised / 6 + 1 / 2, 0, 1)
    gated = x * gate
    return gated if isinstance(layer.norm, nn.Identity) else batch_norm(layer.norm, gated)


def compare_with_definition(layer: GaussianSE, *inputs: Tensor) -> None:
    """Outputs, gradients and statistics of both after each input."""
    plain = copy.deepcopy(layer)
    for x in inputs:
        twin = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        output, expected = layer(x), gaussian_se(plain, twin)
        exactly(output, expected)
        direction = torch.randn_like(output)
        layer.zero_grad()
        plain.zero_grad()
        (output * direction).sum().backward()
        (expected * direction).sum().backward()
        # PyTorch's gradient of the hard sigmoid has its slope of 1/6 in float32 only, hence this tolerance
        closely = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
        closely(x.grad, twin.grad)
        closely(
            {name: p.grad for name, p in layer.named_parameters()}, {n: p.grad for n, p in plain.named_parameters()}
        )
        exactly(dict(layer.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("normalize", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("is_dense", [True, False], ids=["dense", "SRM"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (2, 3, 1, 9), (3, 1, 4, 4)], ids=str)
def test_gaussian_se_is_its_definition(
    shape: tuple[int, ...], training: bool, is_dense: bool, normalize: bool, randomize: Randomize
) -> None:
    layer = randomize(GaussianSE(shape[1], dense=is_dense, normalize=normalize)).train(training)
    compare_with_definition(layer, *(leaf(*shape) for _ in range(3)))


@pytest.mark.parametrize("momentum", [None, 0.01, 1.0])
def test_gaussian_se_statistics_over_several_steps(momentum: float | None, randomize: Randomize) -> None:
    layer = randomize(GaussianSE(5))
    layer.norm.momentum = layer.gate_norm.momentum = momentum
    compare_with_definition(layer, *(leaf(batch, 5, 3, 4) for batch in (2, 5, 3, 4)))
    layer.eval()
    compare_with_definition(layer, leaf(2, 5, 3, 4))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"eps": 0.3}], ids=str)
def test_gaussian_se_with_other_batch_norms(options: dict[str, Any], training: bool, randomize: Randomize) -> None:
    layer = GaussianSE(5)
    layer.norm = nn.BatchNorm2d(5, **options)
    compare_with_definition(randomize(layer).train(training), leaf(4, 5, 3, 4), leaf(4, 5, 3, 4))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gaussian_se_with_a_norm_without_bias(training: bool, randomize: Randomize) -> None:
    layer = GaussianSE(5)
    layer.norm.register_parameter("bias", None)
    compare_with_definition(randomize(layer).train(training), leaf(4, 5, 3, 4), leaf(4, 5, 3, 4))


def test_gaussian_se_with_only_the_last_norm_frozen(randomize: Randomize) -> None:
    layer = randomize(GaussianSE(5))
    layer.norm.eval()
    before = copy.deepcopy(layer.norm.state_dict())
    compare_with_definition(layer, leaf(3, 5, 4, 4))
    exactly(dict(layer.norm.state_dict()), dict(before))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e4])
def test_fused_normalisation_is_norm_of_gated(training: bool, spread: float, randomize: Randomize) -> None:
    """The layer's multiply-add against the BatchNorm module itself, which a Sequential hides from it."""
    layer = randomize(GaussianSE(6)).train(training)
    unfused = copy.deepcopy(layer)
    unfused.norm = nn.Sequential(unfused.norm)
    for _ in range(3):
        values = 3 + spread * torch.randn(4, 6, 5, 3)
        x, twin = values.clone().requires_grad_(), values.clone().requires_grad_()
        output, expected = layer(x), unfused(twin)
        exactly(output, expected)
        direction = torch.randn_like(output)
        exactly(
            torch.autograd.grad(output, [x, *layer.parameters()], direction),
            torch.autograd.grad(expected, [twin, *unfused.parameters()], direction),
            rtol=1e-8,
        )
    exactly(list(layer.buffers()), list(unfused.buffers()))


@few_examples
@given(
    batch=st.integers(2, 5),
    channels=st.integers(1, 7),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    is_dense=st.booleans(),
    offset=st.floats(-100, 100),
)
def test_gaussian_se_of_any_shape(
    batch: int, channels: int, height: int, width: int, is_dense: bool, offset: float
) -> None:
    layer = GaussianSE(channels, dense=is_dense)
    plain = copy.deepcopy(layer)
    x = offset + torch.randn(batch, channels, height, width)
    torch.testing.assert_close(layer(x), gaussian_se(plain, x), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(layer.eval()(x), gaussian_se(plain.eval(), x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gaussian_se_of_channels_last_features(training: bool, randomize: Randomize) -> None:
    layer = randomize(GaussianSE(6)).train(training)
    x = leaf(3, 6, 5, 4)
    twin = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    other = copy.deepcopy(layer)
    output, expected = other(twin), layer(x)
    exactly(output, expected)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()
    output.square().sum().backward()
    expected.square().sum().backward()
    exactly(twin.grad, x.grad)
    exactly(dict(other.named_buffers()), dict(layer.named_buffers()))


def test_gaussian_se_of_a_channel_slice(randomize: Randomize) -> None:
    layer = randomize(GaussianSE(6)).eval()
    x = torch.randn(3, 8, 5, 4)
    exactly(layer(x[:, 2:]), layer(x[:, 2:].clone()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", ["one position", "constant channels", "zeros"])
def test_gaussian_se_has_no_nan(case: str, training: bool, dtype: torch.dtype, randomize: Randomize) -> None:
    layer = randomize(GaussianSE(4, dtype=dtype)).train(training)
    x = {
        "one position": torch.randn(3, 4, 1, 1),
        "constant channels": torch.randn(3, 4, 1, 1).expand(-1, -1, 5, 7),
        "zeros": torch.zeros(3, 4, 5, 7),
    }[case]
    x = x.to(dtype).clone().requires_grad_()
    output = layer(x)
    assert output.dtype == dtype
    assert output.isfinite().all()
    output.float().square().sum().backward()
    for name, tensor in [("input", x), *layer.named_parameters()]:
        assert tensor.grad.isfinite().all(), f"gradient of {name}"
    assert all(buffer.isfinite().all() for buffer in layer.buffers())


def test_deviation_of_one_position_counts_as_zero(randomize: Randomize) -> None:
    layer = randomize(GaussianSE(4)).eval()
    x = torch.randn(3, 4, 1, 1)
    expected = layer(x)
    with torch.no_grad():
        layer.weight[:, 4:] = 1e9
    exactly(layer(x), expected)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_gaussian_se_in_single_precision(offset: float, randomize: Randomize) -> None:
    """A large mean must not drown the deviation."""
    layer = randomize(GaussianSE(8))
    single = copy.deepcopy(layer).float()
    x = offset + torch.randn(4, 8, 14, 14)
    torch.testing.assert_close(single(x.float()).double(), layer(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gaussian_se_statistics_of_half_precision_do_not_overflow(dtype: torch.dtype, randomize: Randomize) -> None:
    layer = randomize(GaussianSE(8)).eval()
    x = (1000 * torch.randn(2, 8, 16, 16)).to(dtype)
    half = copy.deepcopy(layer).to(dtype)
    output = half(x)
    assert output.isfinite().all()
    expected = layer.float()(x.float())
    assert (output.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_constant_channels_in_half_precision_become_the_bias_of_the_norm(dtype: torch.dtype) -> None:
    layer = GaussianSE(3)
    with torch.no_grad():
        layer.gate_norm.bias.fill_(9)  # the gates are open, so that constants stay constants
        layer.norm.bias.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    constants = torch.tensor([0.1, 3.3, -100.7])[:, None, None]
    layer.norm.momentum = 1.0  # what it is evaluated with are the statistics of the one step
    layer.to(dtype)
    x = constants.expand(2, 3, 8, 8).to(dtype).requires_grad_()
    for training in (True, False):
        output = layer.train(training)(x)
        expected = layer.norm.bias.detach()[:, None, None].expand_as(output)
        torch.testing.assert_close(output.detach(), expected, rtol=0, atol=2e-2)
    output.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_in_half_precision(autocast: bool, randomize: Randomize) -> None:
    """They are those in float32 but for rounding, and no map that is kept for them is in float32."""
    layer = randomize(GaussianSE(8)).train()
    x, towards = torch.randn(2, 4, 8, 6, 6).bfloat16()
    found = []
    for dtype, create_graph in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        features, kept = x.to(dtype).requires_grad_(), []
        keep = torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t)
        with keep, torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
            output = layer(features)
        assert output.dtype == dtype
        assert all(tensor.dtype == dtype for tensor in kept if tensor.shape == x.shape)
        inputs = [features, *layer.parameters()]
        found.append(torch.autograd.grad(output, inputs, towards.to(dtype), create_graph=create_graph))
    for exact, *rounded in zip(*found, strict=True):
        for gradient in rounded:
            assert (gradient.float() - exact).norm() <= 0.03 * exact.norm()


def test_gaussian_se_refuses_to_train_on_one_image() -> None:
    layer, x = GaussianSE(4), torch.randn(1, 4, 5, 5)
    with pytest.raises(ValueError, match=r"batch of 1 .*batch of 2"):
        layer(x)
    assert layer.eval()(x).shape == x.shape


def test_gaussian_se_with_frozen_norms_trains_on_one_image(randomize: Randomize) -> None:
    layer = randomize(GaussianSE(4))
    x = torch.randn(1, 4, 5, 5)
    expected = layer.eval()(x)
    layer.train()
    layer.gate_norm.eval()
    layer.norm.eval()
    exactly(layer(x), expected)


def test_gaussian_se_frozen_by_timm(randomize: Randomize) -> None:
    """``freeze_batch_norm_2d`` replaces the norms; detection trains so, often with one image for each device."""
    layer = randomize(GaussianSE(4))
    x = torch.randn(3, 4, 5, 5)
    expected = layer.eval()(x)
    frozen = timm.layers.freeze_batch_norm_2d(copy.deepcopy(layer)).train()
    before = copy.deepcopy(frozen.state_dict())
    exactly(frozen(x), expected)
    exactly(frozen(x[:1]), expected[:1])
    exactly(dict(frozen.state_dict()), dict(before))


def test_gaussian_se_with_only_the_last_norm_replaced_by_timms_frozen(randomize: Randomize) -> None:
    layer = randomize(GaussianSE(4))
    plain = copy.deepcopy(layer)
    plain.norm.eval()
    layer.norm = timm.layers.freeze_batch_norm_2d(layer.norm)
    x = torch.randn(3, 4, 5, 5)
    exactly(layer(x), gaussian_se(plain, x))


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.convert_sync_batchnorm])
def test_gaussian_se_with_synchronised_norms(convert: Any, randomize: Randomize) -> None:
    layer = randomize(GaussianSE(4)).eval()
    x = torch.randn(3, 4, 5, 5)
    expected = layer(x)
    converted = convert(copy.deepcopy(layer)).eval()
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    assert isinstance(converted.gate_norm, nn.SyncBatchNorm)
    exactly(converted(x), expected)


def test_synchronised_norms_allow_one_image_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """They normalise over the images of all processes; here, without processes, they do nothing."""
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(GaussianSE(4)).train()
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: x)
    assert layer(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)


def test_gaussian_se_gradient_check(randomize: Randomize) -> None:
    layer = randomize(GaussianSE(3))
    layer.gate_norm.momentum = layer.norm.momentum = 0.0
    assert torch.autograd.gradcheck(layer, (leaf(3, 3, 2, 3),))


@pytest.mark.parametrize("size", [4, 40])  # small and large images have different kernels
def test_gradient_of_the_statistics(size: int) -> None:
    layer = GaussianSE(8).double().train()
    x = torch.randn(3, 8, size, size, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    with torch.no_grad():
        above, below = (layer(x + step * direction).pow(3).sum() for step in (1e-5, -1e-5))
    torch.testing.assert_close((gradient * direction).sum(), (above - below) / 2e-5, rtol=1e-4, atol=1e-4)


def test_gaussian_se_sees_deviation_not_only_mean(randomize: Randomize) -> None:
    layer = randomize(GaussianSE(2)).eval()
    layer.norm = nn.Identity()
    flat = torch.ones(1, 2, 4, 4)
    spread = flat + torch.tensor([1.0, -1.0]).repeat(8).reshape(4, 4)
    exactly(flat.mean((2, 3)), spread.mean((2, 3)))
    assert not torch.allclose(layer(flat) / flat, torch.nan_to_num(layer(spread) / spread), atol=1e-3)


def test_gaussian_se_starts_small_and_can_be_reset(randomize: Randomize) -> None:
    layer = GaussianSE(64)
    for _ in range(2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        randomize(layer)
        layer.reset_parameters()


def test_norms_with_a_forward_of_their_own_are_called() -> None:
    layer = timm.layers.convert_splitbn_model(GaussianSE(6), 2).train()
    x = torch.randn(4, 6, 5, 5)
    x[2:] += 3
    layer(x)
    auxiliary = layer.norm.aux_bn[0]
    assert auxiliary.num_batches_tracked == 1
    assert (auxiliary.running_mean - layer.norm.running_mean).abs().max() > 0.01


def test_running_statistics_that_are_not_tracked_for_a_while_stay() -> None:
    """Virtual adversarial training, for one, turns the tracking off and on between steps."""
    layer = GaussianSE(4).train()
    layer.norm.track_running_stats = layer.gate_norm.track_running_stats = False
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(3, 4, 5, 5) + 2)
    exactly(dict(layer.state_dict()), dict(before))


def test_an_empty_batch_leaves_the_running_statistics() -> None:
    layer = GaussianSE(4).train()
    assert layer(torch.randn(0, 4, 5, 5)).shape == (0, 4, 5, 5)
    assert all(buffer.isfinite().all() for buffer in layer.buffers())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hooks_of_the_norm_are_called(training: bool, randomize: Randomize) -> None:
    """Whoever reads features there gets what the norm makes of the gated features; the outputs stay the same."""
    layer = randomize(GaussianSE(4)).train(training)
    watched = copy.deepcopy(layer)
    seen = []
    for register in (watched.norm.register_forward_pre_hook, watched.norm.register_forward_hook):
        register(lambda module, inputs, *output: seen.append((*inputs, *output)))
    x = torch.randn(3, 4, 5, 5)
    y = watched(x)
    exactly(y, layer(x))
    exactly(dict(watched.state_dict()), dict(layer.state_dict()))
    exactly(seen[0][0], x * watched.gate(x) if not training else seen[0][0])
    assert [len(values) for values in seen] == [1, 2]
    exactly(seen[1][1], y)
