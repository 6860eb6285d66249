"""A small checkpoint, and what tests of stored networks look at."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Randomize
from torch import Tensor, nn

from partialnet.checkpoint import Checkpoint, create_checkpoint, load
from partialnet.errors import UserError

#: A PartialNet of a tenth of a million parameters
TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 2, 1], "head_hidden_size": 24, "num_classes": 3}
NAMES = ("Straße", "猫 🐈", 'a "quoted" name')


def tiny(randomize: Randomize, **model_args: Any) -> Checkpoint:
    checkpoint = create_checkpoint("partialnet_t0", NAMES, **{**TINY, **model_args})
    randomize(checkpoint.model)
    checkpoint.input_config |= {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    checkpoint.input_config |= {"crop_pct": 0.95, "interpolation": "bilinear"}
    return checkpoint


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(torch.arange(2 * 3 * 64 * 64).reshape(2, 3, 64, 64).mul(0.37).sin())


def assert_bitwise_equal(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the configuration in a file's header."""
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["partialnet"])
    changed = change(config)
    text = json.dumps(config if changed is None else changed)
    path.write_bytes(safetensors.torch.save(safetensors.torch.load_file(path), {"format": "pt", "partialnet": text}))


def assert_one_sentence(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message


def assert_refused(source: str | Path, *parts: str) -> None:
    """``load`` says in one sentence what is wrong."""
    with pytest.raises(UserError) as error:
        load(source)
    assert_one_sentence(error, *parts)


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def released_name(name: str) -> str:
    """The authors' name of one of our tensors, written down independently of the converter's tables."""
    rules = [
        (r"stages\.(\d+)\.downsample\.", lambda m: f"stages.{2 * int(m[1]) - 1}."),
        (r"stages\.(\d+)\.blocks\.", lambda m: f"stages.{2 * int(m[1])}.blocks."),
        (r"out_norms\.(\d+)\.", lambda m: f"norm{2 * int(m[1])}."),
        (r"mlp_attention\.attn\.conv\.", "mlp.4.conv_attn."),
        (r"mlp_attention\.attn\.norm\.", "mlp.4.norm."),
        (r"mlp_attention\.conv_norm\.", "mlp.4.norm2."),
        (r"mlp_attention\.conv\.", "mlp.4.conv."),
        (r"mlp\.fc1\.", "mlp.0."),
        (r"mlp\.norm\.", "mlp.1."),
        (r"mlp\.fc2\.", "mlp.3."),
        (r"mixer\.conv\.", "spatial_mixing.partial_conv3."),
        (r"mixer\.attn\.gate_norm\.", "spatial_mixing.attn.bn."),
        (r"mixer\.attn\.norm\.", "spatial_mixing.norm."),
        (r"mixer\.attn\.position_bias\.table", "spatial_mixing.attn.rpe_k.lookup_table_bias"),
        (r"mixer\.attn\.weight", "spatial_mixing.attn.cfc1.weight"),
        (r"mixer\.attn\.(qkv|proj)\.", r"spatial_mixing.attn.\1."),
        (r"^conv_head\.", "avgpool_pre_head.1."),
        (r"^classifier\.", "head."),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def released_layout(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """What the authors' code would have saved: the inverse of what we load.

    Their gate is a convolution over [mean, std], (C, C or 1, 1, 2).
    """
    result = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("mixer.attn.weight"):
            channels = tensor.shape[0]
            if tensor.shape[1] == 2 * channels:
                tensor = torch.stack((tensor[:, :channels], tensor[:, channels:]), 2)[:, :, None]
            else:
                tensor = tensor[:, None, None]
        result[prefix + released_name(name)] = tensor
    return result


def released_backbone(model: nn.Module) -> dict[str, Tensor]:
    """What they would have saved of a detection backbone, which has no head."""
    return {name: tensor for name, tensor in released_layout(model).items() if not name.startswith(("avgpool", "head"))}
