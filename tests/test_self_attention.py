"""Self-attention against a plain transcription of its definition, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Randomize
from definitions import exactly, leaf
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from partialnet.layers import (
    RelativePositionBias,
    SelfAttention2d,
)
from partialnet.layers.self_attention import distance_buckets

pytestmark = pytest.mark.usefixtures("float64")


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


def test_several_layers_at_once_by_torch_func(randomize: Randomize) -> None:
    """An ensemble, as PyTorch's tutorial builds it: stacked parameters that require gradients."""
    layers = [randomize(SelfAttention2d(8)) for _ in range(2)]
    x = torch.randn(2, 8, 3, 5)
    stacked, _ = stack_module_state(layers)
    outputs = vmap(lambda parameters: functional_call(layers[0], parameters, (x,)))(stacked)
    direction = torch.randn_like(outputs)
    gradients = torch.autograd.grad(outputs, list(stacked.values()), direction)
    for index, layer in enumerate(layers):
        exactly(outputs[index], layer(x))
        expected = torch.autograd.grad(layer(x), list(layer.parameters()), direction[index])
        exactly([gradient[index] for gradient in gradients], list(expected))


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


def test_attention_over_some_channels_weighs_positions_as_the_cut_out_layer_does() -> None:
    attention = SelfAttention2d(16, num_heads=2, dtype=torch.float64)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    keep = (torch.arange(16) >= 6).double()
    kept = keep.nonzero().flatten()
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    selected = attention.select(kept)
    torch.testing.assert_close(attention.weights(x, keep), selected.weights(x[:, kept]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(attention(x, keep)[:, kept], selected(x[:, kept]), rtol=1e-9, atol=1e-12)
