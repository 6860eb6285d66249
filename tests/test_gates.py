"""What the gates of a network weigh, and where its attention looks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from conftest import Randomize
from explained_networks import image, network

from partialnet.explain import Explainer, read_gates
from partialnet.layers import GaussianSE, SelfAttention2d, SpatialGate


def test_gates_say_what_the_layers_do(randomize: Randomize) -> None:
    x = torch.randn(2, 8, 5, 6)
    spatial = randomize(SpatialGate(8)).eval()
    torch.testing.assert_close(spatial(x), spatial.norm(x * spatial.gate(x)))  # type: ignore[operator]
    channel = randomize(GaussianSE(8)).eval()
    torch.testing.assert_close(channel(x), channel.norm(x * channel.gate(x)))  # type: ignore[operator]
    attention: Any = randomize(SelfAttention2d(8, 2)).eval()
    weights = attention.weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 30))
    value = attention.qkv(attention.norm(x.flatten(2).transpose(1, 2)))[:, :, 16:]
    value = value.unflatten(2, (2, 4)).transpose(1, 2)  # (B, heads, N, C / heads)
    expected = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected.transpose(1, 2).unflatten(2, (5, 6)))


def test_gates_of_a_network_by_stage_and_block() -> None:
    explainer = Explainer(network(size=96))
    gates = read_gates(explainer, image())
    assert [(gate.stage, gate.index) for gate in gates.spatial] == [
        (stage, block + 1) for stage, depth in enumerate((1, 2, 6, 4), 1) for block in range(depth)
    ]
    assert [gate.stage for gate in gates.channel] == [1, 2, 2, *[3] * 6]
    assert [gate.stage for gate in gates.attention] == [4] * 4
    assert gates.spatial[0].values.shape == (24, 24)
    assert gates.channel[0].values.shape == (24,)
    assert gates.attention[0].values.shape == (4, 3, 3, 3, 3)
    assert all(0 <= gate.values.min() <= gate.values.max() <= 1 for gate in (*gates.spatial, *gates.channel))
    # a point in the lower right corner of what is seen, which is the middle 80 of 96 columns
    (_, weights), *_ = gates.attention_from((87, 79))
    np.testing.assert_array_equal(weights, gates.attention[0].values[:, 2, 2])
    statistics = gates.statistics()
    json.dumps(statistics)
    assert len(statistics["spatial"]) == 13
    assert all(0 <= head <= 1.001 for head in statistics["attention"][0]["entropy"])


def test_gates_of_converted_networks_and_of_others() -> None:
    gates = read_gates(Explainer(network("resnet50_pat")), image())
    assert [sum(gate.stage == stage for gate in gates.channel) for stage in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert not gates.spatial
    assert not read_gates(Explainer(network("resnet18")), image())
