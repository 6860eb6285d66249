"""PATConv and its attentions against plain transcriptions of their definitions, in float64."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from conftest import Randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from partialnet.layers import (
    ATTENTIONS,
    GaussianSE,
    PATConv,
    RelativePositionBias,
    SelfAttention2d,
    SpatialGate,
    create_attention,
    pat_ch,
    pat_sf,
    pat_sp,
)
from partialnet.layers.layout import concat_channels, dense
from partialnet.layers.pat_conv import split_channels
from partialnet.layers.self_attention import distance_buckets

exactly = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
few_examples = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


# -- Gaussian-SE ---------------------------------------------------------------------------------------------------


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


def batch_norm(norm: Any, x: Tensor) -> Tensor:
    if norm.training or norm.running_mean is None:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = norm.running_mean, norm.running_var
    if norm.training and norm.running_mean is not None:
        norm.num_batches_tracked += 1
        rate = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
        unbiased = x.detach().var((0, 2, 3), unbiased=True)
        norm.running_mean.mul_(1 - rate).add_(rate * mean.detach())
        norm.running_var.mul_(1 - rate).add_(rate * unbiased)
    x = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    return x if norm.weight is None else x * norm.weight[:, None, None] + norm.bias[:, None, None]


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


# -- spatial gate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 1, 1, 1)], ids=str)
def test_spatial_gate_is_its_definition(
    shape: tuple[int, ...], training: bool, normalize: bool, randomize: Randomize
) -> None:
    layer = randomize(SpatialGate(shape[1], normalize=normalize)).train(training)
    plain = copy.deepcopy(layer)
    x = 3 * torch.randn(shape)
    scores = torch.einsum("bchw,c->bhw", x, plain.conv.weight[0, :, 0, 0])
    expected = x * torch.clamp(scores / 6 + 1 / 2, 0, 1)[:, None]
    if normalize:
        expected = batch_norm(plain.norm, expected)
    exactly(layer(x), expected)
    exactly(dict(layer.named_buffers()), dict(plain.named_buffers()))
    assert layer.conv.bias is None


# -- self-attention ------------------------------------------------------------------------------------------------


def attention_by_loops(layer: SelfAttention2d, x: Tensor) -> Tensor:
    """Softmax attention for each image and head, with the bias of each pair looked up one by one."""
    batch, channels, height, width = x.shape
    heads, size = layer.num_heads, channels // layer.num_heads
    output = torch.empty_like(x)
    for image in range(batch):
        tokens = x[image].flatten(1).T  # (N, C)
        if isinstance(layer.norm, nn.LayerNorm):
            centred = tokens - tokens.mean(1, keepdim=True)
            tokens = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
            tokens = tokens * layer.norm.weight + layer.norm.bias
        query, key, value = (tokens @ weight.T for weight in layer.qkv.weight.split(channels))
        attended = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = query[:, part] @ key[:, part].T / math.sqrt(size)
            if layer.position_bias is not None:
                logits = logits + bias_by_loops(layer.position_bias.table[head], height, width)
            weights = logits.exp() / logits.exp().sum(1, keepdim=True)
            attended.append(weights @ value[:, part])
        tokens = torch.cat(attended, 1) @ layer.proj.weight.T + layer.proj.bias
        output[image] = tokens.T.reshape(channels, height, width)
    return output


def bucket(rows: int, columns: int) -> int:
    """DESIGN's formula in Python's own arithmetic."""
    distance = round(math.sqrt(rows**2 + columns**2))
    return distance if distance <= 20 else min(40, round(20 + 20 * math.log(distance / 20) / math.log(160 / 20)))


def bias_by_loops(table: Tensor, height: int, width: int) -> Tensor:
    positions = [(row, column) for row in range(height) for column in range(width)]
    indices = [[40 + bucket(r1 - r2, c1 - c2) for r2, c2 in positions] for r1, c1 in positions]
    return table[torch.tensor(indices)]


@pytest.mark.parametrize("relative_position", [True, False], ids=["position", "no position"])
@pytest.mark.parametrize("normalize", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize(
    ("channels", "heads", "size"), [(8, 4, (3, 5)), (9, 3, (4, 2)), (5, 1, (1, 1)), (6, 6, (2, 2))]
)
def test_self_attention_is_its_definition(
    channels: int, heads: int, size: tuple[int, int], normalize: bool, relative_position: bool, randomize: Randomize
) -> None:
    layer = randomize(SelfAttention2d(channels, heads, normalize=normalize, relative_position=relative_position))
    x = torch.randn(2, channels, *size)
    exactly(layer(x), attention_by_loops(layer, x))


def test_self_attention_has_four_heads_a_projection_bias_and_no_qkv_bias() -> None:
    layer = SelfAttention2d(16)
    assert layer.num_heads == 4
    assert layer.qkv.bias is None
    assert layer.proj.bias is not None
    assert layer.norm.eps == 1e-6


def test_self_attention_gradients(randomize: Randomize) -> None:
    layer = randomize(SelfAttention2d(4, 2))
    x = leaf(2, 4, 3, 2)
    parameters = [x, *layer.parameters()]
    direction = torch.randn(2, 4, 3, 2)
    exactly(
        torch.autograd.grad(layer(x), parameters, direction),
        torch.autograd.grad(attention_by_loops(layer, x), parameters, direction),
    )


def test_self_attention_of_channels_last_features(randomize: Randomize) -> None:
    layer = randomize(SelfAttention2d(8))
    x = torch.randn(2, 8, 3, 5)
    exactly(layer(x.to(memory_format=torch.channels_last)), layer(x))


def test_self_attention_keeps_large_logits_finite(randomize: Randomize) -> None:
    layer = randomize(SelfAttention2d(8)).float()
    nn.init.constant_(layer.norm.weight, 1000)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float32, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("channels", "heads"), [(10, 4), (8, 0), (8, -1), (8, 3), (4, 8)])
def test_self_attention_refuses_heads_that_do_not_divide(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=rf"num_heads={heads} .*{channels} .*Choose one of \[1, "):
        SelfAttention2d(channels, heads)


# distance, bucket: hand-computed, 20 + 20 · ln(distance / 20) / ln 8, rounded
FAR_BUCKETS = {
    0: 0,
    1: 1,
    7: 7,
    20: 20,
    21: 20,  # 20.47
    22: 21,  # 20.92
    25: 22,  # 22.15
    40: 27,  # 26.67
    80: 33,  # 33.33
    100: 35,  # 35.48
    150: 39,  # 39.38
    160: 40,
    161: 40,
    500: 40,
}


@pytest.mark.parametrize("vertical", [True, False])
def test_buckets_of_far_positions(vertical: bool) -> None:
    buckets = distance_buckets(*((501, 1) if vertical else (1, 501)), torch.device("cpu"))
    assert {distance: buckets[0, distance].item() for distance in FAR_BUCKETS} == FAR_BUCKETS
    assert {distance: buckets[500, 500 - distance].item() for distance in FAR_BUCKETS} == FAR_BUCKETS


def test_buckets_of_a_map_that_is_not_square() -> None:
    """Distances from the top left corner of 3 rows and 5 columns, and from the middle of the bottom row."""
    buckets = distance_buckets(3, 5, torch.device("cpu"))
    assert buckets.shape == (15, 15)
    assert buckets.dtype == torch.int64
    assert buckets[0].reshape(3, 5).tolist() == [
        [0, 1, 2, 3, 4],
        [1, 1, 2, 3, 4],  # √2 = 1.41, √5 = 2.24, √10 = 3.16, √17 = 4.12
        [2, 2, 3, 4, 4],  # √5 = 2.24, √8 = 2.83, √13 = 3.61, √20 = 4.47
    ]
    assert buckets[12].reshape(3, 5).tolist() == [[3, 2, 2, 2, 3], [2, 1, 1, 1, 2], [2, 1, 0, 1, 2]]


@pytest.mark.parametrize("size", [(4, 45), (30, 7), (1, 1), (2, 170)], ids=str)
def test_bias_of_every_pair(size: tuple[int, int]) -> None:
    bias = RelativePositionBias(2)
    nn.init.normal_(bias.table)
    expected = torch.stack([bias_by_loops(row, *size) for row in bias.table])
    assert torch.equal(bias(*size), expected)


def test_bias_starts_at_zero_and_uses_distances_only() -> None:
    bias = RelativePositionBias(3)
    assert bias.table.shape == (3, 81)
    assert not bias(4, 4).any()
    nn.init.normal_(bias.table)
    values = bias(5, 7)
    assert torch.equal(values, values.transpose(1, 2))
    assert torch.equal(bias(7, 5), values.reshape(3, 5, 7, 5, 7).permute(0, 2, 1, 4, 3).reshape(3, 35, 35))
    values.sum().backward()
    assert not bias.table.grad[:, :40].any()


# -- PATConv -------------------------------------------------------------------------------------------------------


def patconv_by_parts(layer: PATConv, x: Tensor, stride: int, dilation: int) -> Tensor:
    """Eq. 1 with the layer's own weights; for partial scope without a norm before the convolution."""
    c = layer.conv_channels
    to_convolve, to_attend = (x[:, :c], x[:, c:]) if layer.conv_first else (x[:, -c:], x[:, :-c])
    padding = dilation * (layer.conv.kernel_size[0] // 2)
    convolved = F.conv2d(to_convolve, layer.conv.weight, layer.conv.bias, stride, padding, dilation)
    parts = [convolved]
    if to_attend.shape[1]:
        rows = to_attend.split(stride, 2)
        pooled = torch.stack([torch.stack([cell.mean((2, 3)) for cell in row.split(stride, 3)], 2) for row in rows], 2)
        weights = list(layer.attn_proj.parameters())
        if weights:
            pooled = torch.einsum("bchw,oc->bohw", pooled, weights[0][:, :, 0, 0])
        parts.append(layer.attn(pooled))
    return torch.cat(parts if layer.conv_first else parts[::-1], 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    in_channels=st.integers(4, 9),
    out_channels=st.one_of(st.none(), st.integers(4, 12)),
    kernel_size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    split_ratio=st.sampled_from([1 / 4, 1 / 3, 1 / 2, 0.6, 3 / 4]),
    attention=st.sampled_from([None, "gaussian_se", "spatial_gate", "srm", "eca"]),
    conv_first=st.booleans(),
    bias=st.booleans(),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_patconv_of_any_geometry(
    in_channels: int,
    out_channels: int | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    split_ratio: float,
    attention: str | None,
    conv_first: bool,
    bias: bool,
    size: tuple[int, int],
) -> None:
    layer = PATConv(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        dilation,
        split_ratio=split_ratio,
        attention=attention,
        conv_first=conv_first,
        bias=bias,
    ).eval()
    x = torch.randn(2, in_channels, *size)
    output = layer(x)
    out = in_channels if out_channels is None else out_channels
    assert output.shape == (2, out, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    assert layer.conv.out_channels == math.floor(out * split_ratio + 1e-6)
    exactly(output, patconv_by_parts(layer, x, stride, dilation))


def test_patconv_of_equal_channels_and_stride_1_adds_nothing_to_the_attended_part() -> None:
    layer = PATConv(8, attention=None)
    assert [name for name, _ in layer.named_parameters()] == ["conv.weight"]
    assert layer.conv.weight.shape == (2, 2, 3, 3)
    assert layer.split_ratio == 1 / 4


@pytest.mark.parametrize("conv_first", [True, False])
@pytest.mark.parametrize("attention", [None, "gaussian_se", "spatial_gate", "self_attention", "se"])
def test_the_two_parts_are_independent(attention: str | None, conv_first: bool, randomize: Randomize) -> None:
    layer = randomize(PATConv(16, attention=attention, conv_first=conv_first)).eval()
    x = torch.randn(2, 16, 5, 5)
    before = layer(x)
    for channel in range(16):
        changed = x.clone()
        changed[:, channel] += torch.randn(5, 5)
        moved = {int(c) for c in (layer(changed) != before).any(3).any(2).any(0).nonzero().flatten()}
        convolved = set(range(4)) if conv_first else set(range(12, 16))
        attended = set(range(16)) - convolved
        if channel in convolved:
            assert moved == convolved
        else:
            assert moved == ({channel} if attention is None else attended)


def test_without_attention_the_channels_pass_through() -> None:
    layer = PATConv(8, attention=None, split_ratio=1 / 2)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(layer(x)[:, 4:], x[:, 4:])
    assert torch.equal(PATConv(8, attention=None, conv_first=False, split_ratio=1 / 2)(x)[:, :4], x[:, :4])


@pytest.mark.parametrize("conv_first", [True, False])
@pytest.mark.parametrize("attention", ["gaussian_se", "spatial_gate", "self_attention"])
def test_full_scope_attends_over_all_channels(attention: str, conv_first: bool, randomize: Randomize) -> None:
    layer = randomize(PATConv(16, attention=attention, attention_scope="full", conv_first=conv_first)).eval()
    x = torch.randn(2, 16, 5, 5)
    passing = copy.deepcopy(layer)
    passing.attn = nn.Identity()
    exactly(layer(x), layer.attn(passing(x)))
    changed = x.clone()
    changed[:, 0 if conv_first else 15] += 1
    attended = slice(4, 16) if conv_first else slice(0, 12)
    assert not torch.equal(passing(changed), passing(x))
    assert torch.equal(passing(changed)[:, attended], passing(x)[:, attended])
    assert (layer(changed) != layer(x))[:, attended].any(3).any(2).all()


@pytest.mark.parametrize("options", [{"attention": None}, {"attention_scope": "full"}], ids=str)
@pytest.mark.parametrize("conv_first", [True, False])
def test_a_ratio_of_1_convolves_all_channels(options: dict[str, Any], conv_first: bool) -> None:
    layer = PATConv(8, 12, stride=2, split_ratio=1, conv_first=conv_first, **options).eval()
    x = torch.randn(2, 8, 5, 7)
    assert layer.split_ratio == 1
    exactly(layer(x), layer.attn(F.conv2d(x, layer.conv.weight, stride=2, padding=1)))
    assert not list(layer.attn_proj.parameters())


@few_examples
@given(channels=st.integers(2, 400), data=st.data())
def test_every_whole_split_can_be_asked_for(channels: int, data: st.DataObject) -> None:
    convolved = data.draw(st.integers(1, channels - 1))
    assert split_channels(channels, convolved / channels) == convolved
    assert PATConv(channels, split_ratio=convolved / channels, attention=None, device="meta").split_ratio == (
        convolved / channels
    )


def test_a_ratio_is_rounded_down_to_whole_channels() -> None:
    layer = PATConv(10, split_ratio=0.39)
    assert (layer.conv_channels, layer.attn_channels) == (3, 7)
    assert layer.split_ratio == pytest.approx(0.3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_conv_norm_normalises_the_convolved_part_only(training: bool, randomize: Randomize) -> None:
    layer = randomize(PATConv(8, attention=None, conv_norm=nn.BatchNorm2d, kernel_size=1, conv_first=False))
    layer.train(training)
    plain = copy.deepcopy(layer)
    x = torch.randn(3, 8, 4, 5)
    expected = F.conv2d(batch_norm(plain.conv_norm, x[:, 6:]), plain.conv.weight)
    exactly(layer(x), torch.cat((x[:, :6], expected), 1))
    exactly(dict(layer.named_buffers()), dict(plain.named_buffers()))


class Doubled(nn.Module):
    def __init__(self, channels: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels, 1, 1), 2.0, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize("attention", [Doubled, Doubled(6), lambda channels, **kwargs: Doubled(channels, **kwargs)])
def test_attention_from_a_class_a_module_or_a_function(attention: Any) -> None:
    x = torch.randn(2, 8, 3, 3)
    exactly(PATConv(8, attention=attention)(x)[:, 2:], 2 * x[:, 2:])


@pytest.mark.parametrize("name", [*ATTENTIONS, "se", "ese", "eca", "cbam", "gc"])
def test_attention_by_name(name: str) -> None:
    attention = create_attention(name, 12)
    if name in ATTENTIONS:
        assert isinstance(attention, {"srm": GaussianSE}.get(name, ATTENTIONS[name]))
    layer = PATConv(16, attention=name)
    assert type(layer.attn) is type(attention)
    x = leaf(2, 16, 6, 6)
    output = layer(x)
    assert output.shape == x.shape
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_every_attention_that_the_message_proposes_works() -> None:
    with pytest.raises(ValueError, match="Unknown attention 'none'") as error:
        create_attention("none", 12)
    own, others = re.search(r"one of (.+), a name of .* such as (.+), a module", str(error.value)).groups()
    assert own.split(", ") == list(ATTENTIONS)
    for name in re.split(r", | or ", others):
        assert create_attention(name, 16)(torch.randn(2, 16, 4, 4)).shape == (2, 16, 4, 4), name


def test_srm_has_two_weights_for_each_channel() -> None:
    assert create_attention("srm", 12).weight.shape == (12, 2)
    assert create_attention("gaussian_se", 12).weight.shape == (12, 24)


@pytest.mark.parametrize("name", ["gaussian_se", "self_attention", "spatial_gate", "srm", "se", Doubled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_device_and_dtype_reach_every_part(name: Any, dtype: torch.dtype) -> None:
    layer = PATConv(16, 32, stride=2, attention=name, conv_norm=nn.BatchNorm2d, device="meta", dtype=dtype)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}


def test_the_three_blocks_of_the_paper() -> None:
    channel, spatial, full = pat_ch(16), pat_sp(16), pat_sf(16)
    assert isinstance(channel.attn, GaussianSE)
    assert isinstance(spatial.attn, SpatialGate)
    assert isinstance(full.attn, SelfAttention2d)
    assert [layer.split_ratio for layer in (channel, spatial, full)] == [1 / 4, 1 / 2, 1 / 4]
    assert [layer.conv.kernel_size for layer in (channel, spatial, full)] == [(3, 3), (1, 1), (3, 3)]
    assert [layer.conv_first for layer in (channel, spatial, full)] == [True, False, True]
    assert [isinstance(layer.conv_norm, nn.BatchNorm2d) for layer in (channel, spatial, full)] == [False, True, False]
    assert all(layer.conv.bias is None for layer in (channel, spatial, full))


def test_pat_sp_gates_the_first_half_and_convolves_the_last(randomize: Randomize) -> None:
    layer = randomize(pat_sp(6)).eval()
    x = torch.randn(2, 6, 3, 4)
    scores = torch.einsum("bchw,c->bhw", x[:, :3], layer.attn.conv.weight[0, :, 0, 0])
    first = batch_norm(layer.attn.norm, x[:, :3] * torch.clamp(scores / 6 + 1 / 2, 0, 1)[:, None])
    last = torch.einsum("bchw,oc->bohw", batch_norm(layer.conv_norm, x[:, 3:]), layer.conv.weight[:, :, 0, 0])
    exactly(layer(x), torch.cat((first, last), 1))


@pytest.mark.parametrize("arguments", [{}, {"conv_norm": nn.BatchNorm2d}, {"stride": 2}, {"attention": "spatial_gate"}])
def test_patconv_keeps_channels_last(arguments: dict[str, Any], randomize: Randomize) -> None:
    layer = randomize(PATConv(16, **arguments)).eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 5)
    output = layer(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    exactly(output, layer(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 2}, r"kernel_size=2 must be odd"),
        ({"kernel_size": 0}, r"kernel_size=0 must be odd and positive"),
        ({"kernel_size": -3}, r"kernel_size=-3 must be odd and positive"),
        ({"attention_scope": "half"}, r"attention_scope='half' must be 'partial' or 'full'"),
        ({"split_ratio": 0.1}, r"split_ratio=0\.1 of 8 .*no convolved .*between 0\.125 and 0\.875"),
        ({"split_ratio": 0.0}, r"split_ratio=0\.0 of 8 .*no convolved .*between 0\.125 and 0\.875"),
        ({"split_ratio": -1}, r"split_ratio=-1 of 8 .*no convolved .*between 0\.125 and 0\.875"),
        ({"split_ratio": 1}, r"split_ratio=1 of 8 .*no attended .*between 0\.125 and 0\.875, or attention=None"),
        ({"split_ratio": 1.5, "attention": None}, r"split_ratio=1\.5 of 8 .*between 0\.125 and 1"),
        ({"out_channels": 3}, r"split_ratio=0\.25 of 3 .*no convolved .*between 0\.3333 and 0\.6667"),
        ({"attention": "sea"}, r"'sea'.*gaussian_se, srm, spatial_gate, self_attention.*eca"),
        ({"attention": "self_attention", "split_ratio": 3 / 8}, r"num_heads=4 .*5 .*Choose one of \[1, 5\]"),
    ],
    ids=str,
)
def test_patconv_explains_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PATConv(8, **arguments)


@pytest.mark.parametrize("attention", ["gaussian_se", "self_attention", "spatial_gate", None])
def test_patconv_compiles_into_one_graph(attention: str | None, randomize: Randomize) -> None:
    torch.compiler.reset()
    layer = randomize(PATConv(16, 32, stride=2, attention=attention, conv_norm=nn.BatchNorm2d)).train()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="eager")
    x = torch.randn(2, 16, 6, 5)
    exactly(compiled(x), layer(x))


# -- memory layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_concat_channels_has_right_gradients(memory_format: torch.memory_format) -> None:
    parts = [torch.randn(2, c, 3, 2).to(memory_format=memory_format).requires_grad_() for c in (1, 4)]
    assert torch.equal(concat_channels(*parts), torch.cat(parts, 1))
    assert torch.autograd.gradcheck(concat_channels, parts)
    assert torch.autograd.gradgradcheck(concat_channels, parts)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_concat_channels_gives_dense_gradients(memory_format: torch.memory_format) -> None:
    first, second = (torch.randn(2, c, 4, 5).to(memory_format=memory_format).requires_grad_() for c in (3, 5))
    output = concat_channels(first, second)
    assert output.is_contiguous(memory_format=memory_format)
    seen = []
    for part in (first, second):
        part.register_hook(seen.append)
    direction = torch.randn_like(output)
    output.backward(direction)
    exactly(first.grad, direction[:, :3])
    exactly(second.grad, direction[:, 3:])
    assert len(seen) == 2
    assert all(gradient.is_contiguous(memory_format=memory_format) for gradient in seen)


def test_concat_channels_where_only_one_part_needs_a_gradient() -> None:
    first, second = torch.randn(2, 3, 4, 5), leaf(2, 2, 4, 5)
    concat_channels(first, second).sum().backward()
    assert first.grad is None
    assert (second.grad == 1).all()
    with torch.no_grad():
        assert not concat_channels(first, second).requires_grad


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dense_copies_a_slice_into_its_own_layout(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 7, 4, 5).to(memory_format=memory_format)
    part = x[:, 2:5]
    assert not part.is_contiguous(memory_format=memory_format)
    copied = dense(part)
    assert copied.is_contiguous(memory_format=memory_format)
    assert torch.equal(copied, part)
    assert dense(x) is x, "what is dense already is not copied"


@pytest.mark.parametrize(("channels", "ratio"), [(0, 0.25), (8, float("nan"))])
def test_patconv_refuses_no_channels_and_no_number(channels: int, ratio: float) -> None:
    with pytest.raises(ValueError, match=r"split_ratio=.*channels: give a ratio"):
        PATConv(channels, split_ratio=ratio)
