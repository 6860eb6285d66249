"""The state-dict layout of the authors' released code, read into ours.

Their stages alternate with the mergings (``stages.0``, ``stages.1.reduction``, ``stages.2``, …) and the layers carry
other names. Everything about the architecture that shows in the tensors is inferred from them: width, depths, split
ratios, attention heads, presence of each PAT block, number of classes. The activation leaves no trace; it follows the
width, as in the paper's Table 9.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from partialnet.errors import UserError

# widths of T0 and T1, whose activation is GELU; wider networks use ReLU
_WIDEST_WITH_GELU = 48

_BLOCK_LAYERS = {
    "spatial_mixing.partial_conv3": "mixer.conv",
    "spatial_mixing.attn.cfc1": "mixer.attn",
    "spatial_mixing.attn.bn": "mixer.attn.gate_norm",
    "spatial_mixing.attn.qkv": "mixer.attn.qkv",
    "spatial_mixing.attn.proj": "mixer.attn.proj",
    "spatial_mixing.norm": "mixer.attn.norm",
    "mlp.0": "mlp.fc1",
    "mlp.1": "mlp.norm",
    "mlp.3": "mlp.fc2",
    "mlp.4.conv": "mlp_attention.conv",
    "mlp.4.conv_attn": "mlp_attention.attn.conv",
    "mlp.4.norm": "mlp_attention.attn.norm",
    "mlp.4.norm2": "mlp_attention.conv_norm",
}
_NETWORK_LAYERS = {
    "patch_embed.proj": "patch_embed.proj",
    "patch_embed.norm": "patch_embed.norm",
    "avgpool_pre_head.1": "conv_head",
    "head": "classifier",
}
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class ReleasedNetwork:
    """A released checkpoint in our layout.

    Attributes:
        state_dict: Tensors under our names.
        arguments: Arguments for ``PartialNet`` that build the network they belong to.
        renamed: The authors' name of each tensor and ours; tensors that kept their name included.
        left: Names that do not belong to the network, such as a loss's or a metric's.
    """

    state_dict: dict[str, Tensor]
    arguments: dict[str, Any]
    renamed: dict[str, str] = field(repr=False)
    left: tuple[str, ...] = ()

    @property
    def report(self) -> str:
        """What was loaded, renamed and left out, for people."""
        moved = sum(old != new for old, new in self.renamed.items())
        text = f"{len(self.renamed)} tensors loaded, {moved} of them under a new name, {len(self.left)} left out"
        return f"{text}: {', '.join(self.left)}" if self.left else text


def is_released(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state dict has the authors' layout, with or without Lightning's ``model.`` before each name."""
    return any(name.endswith(".spatial_mixing.partial_conv3.weight") for name in state_dict)


def convert_released(state_dict: Mapping[str, Tensor], act_layer: str | None = None) -> ReleasedNetwork:
    """Rename the tensors of a released network and infer its architecture.

    Args:
        state_dict: The authors' layout, optionally with ``model.`` or ``module.`` before each name.
        act_layer: "gelu" or "relu"; None chooses by the width.

    Raises:
        UserError: The tensors do not describe a PartialNet; the message names the first that does not fit.
    """
    renamed: dict[str, str] = {}
    left: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        new_name = _rename(name)
        if new_name is None:
            if re.search(r"(^|\.)(stages|patch_embed)\.", name):
                raise UserError(
                    f"Tensor {name!r} belongs to no PartialNet block, so this checkpoint is of another network."
                )
            left.append(name)
            continue
        renamed[name] = new_name
        tensors[new_name] = _reshape(new_name, tensor)
    try:
        arguments = _infer_arguments(tensors, act_layer)
    except UserError:
        raise
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError("The shapes of the checkpoint's tensors do not describe a PartialNet.") from error
    return ReleasedNetwork(tensors, arguments, renamed, tuple(left))


def _rename(name: str) -> str | None:
    """Our name of one tensor, None if it belongs to no layer of the network."""
    name = re.sub(r"^((model|module|_orig_mod)\.)+", "", name)
    if match := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        stage, block, rest = int(match[1]), match[2], match[3]
        prefix = f"stages.{stage // 2}.blocks.{block}"
        if stage % 2 or not rest:
            return None
        if rest == "spatial_mixing.attn.rpe_k.lookup_table_bias":
            return f"{prefix}.mixer.attn.position_bias.table"
        layer, _, leaf = rest.rpartition(".")
        if leaf not in _LEAVES or layer not in _BLOCK_LAYERS:
            return None
        return f"{prefix}.{_BLOCK_LAYERS[layer]}.{leaf}"
    if match := re.fullmatch(r"stages\.(\d*[13579])\.(reduction|norm)\.(\w+)", name):
        return f"stages.{(int(match[1]) + 1) // 2}.downsample.{match[2]}.{match[3]}"
    if match := re.fullmatch(r"norm(\d*[02468])\.(\w+)", name):
        return f"out_norms.{int(match[1]) // 2}.{match[2]}"
    layer, _, leaf = name.rpartition(".")
    if leaf in _LEAVES and layer in _NETWORK_LAYERS:
        return f"{_NETWORK_LAYERS[layer]}.{leaf}"
    return None


def _reshape(name: str, tensor: Tensor) -> Tensor:
    """The gate's layer is a (C, C, 1, 2) convolution over [mean, std] there, a (C, 2C) matrix here; (C, 2) for SRM."""
    if not name.endswith(".mixer.attn.weight"):
        return tensor
    if tensor.ndim != 4 or tensor.shape[2:] != (1, 2):
        raise UserError(f"Tensor {name!r} has shape {tuple(tensor.shape)}; a released gate has (C, C, 1, 2).")
    channels, mixed = tensor.shape[:2]
    return tensor.reshape(channels, 2) if mixed == 1 else tensor[:, :, 0].transpose(1, 2).reshape(channels, 2 * mixed)


def _infer_arguments(tensors: Mapping[str, Tensor], act_layer: str | None) -> dict[str, Any]:
    stem = _require(tensors, "patch_embed.proj.weight")
    embed_dim, in_chans, patch_size = (int(size) for size in stem.shape[:3])
    depths = _depths(tensors)
    blocks = [[f"stages.{stage}.blocks.{block}" for block in range(depth)] for stage, depth in enumerate(depths)]
    convs = [_require(tensors, f"{block}.mixer.conv.weight") for stage in blocks for block in stage]
    widths = [embed_dim * 2**stage for stage, depth in enumerate(depths) for _ in range(depth)]
    ratios = [conv.shape[0] / width for conv, width in zip(convs, widths, strict=True)]
    head = tensors.get("conv_head.weight")
    classifier = tensors.get("classifier.weight")
    return {
        "in_chans": in_chans,
        "num_classes": 0 if classifier is None else int(classifier.shape[0]),
        "embed_dim": embed_dim,
        "depths": depths,
        "split_ratio": ratios[0] if len(set(ratios)) == 1 else tuple(ratios),
        "mixers": tuple(_mixer(tensors, stage) for stage in blocks),
        "mlp_attention": f"{blocks[0][0]}.mlp_attention.conv.weight" in tensors,
        "mlp_ratio": _require(tensors, f"{blocks[0][0]}.mlp.fc1.weight").shape[0] / embed_dim,
        "patch_size": patch_size,
        "head_hidden_size": 1280 if head is None else int(head.shape[0]),
        "out_norms": "out_norms.0.weight" in tensors,
        "act_layer": act_layer or ("gelu" if embed_dim <= _WIDEST_WITH_GELU else "relu"),
    }


def _depths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    found: dict[int, set[int]] = {}
    for name in tensors:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    for expected, (stage, blocks) in enumerate(sorted(found.items())):
        if stage != expected or blocks != set(range(len(blocks))):
            raise UserError("The checkpoint lacks whole blocks or stages; it is incomplete.")
    return tuple(len(blocks) for _, blocks in sorted(found.items()))


def _mixer(tensors: Mapping[str, Tensor], blocks: list[str]) -> str | dict[str, Any]:
    """The mixer of a stage, which must be the same in all its blocks."""
    kinds = [_block_mixer(tensors, block) for block in blocks]
    if any(kind != kinds[0] for kind in kinds):
        raise UserError(f"The blocks of {blocks[0].partition('.blocks')[0]} differ in their attention.")
    return kinds[0]


def _block_mixer(tensors: Mapping[str, Tensor], block: str) -> str | dict[str, Any]:
    """A block's mixer: its name where it is the paper's, otherwise a mapping."""
    if f"{block}.mixer.attn.qkv.weight" in tensors:
        num_heads = int(_require(tensors, f"{block}.mixer.attn.position_bias.table").shape[0])
        return "pat_sf" if num_heads == 4 else {"name": "pat_sf", "num_heads": num_heads}
    gate = tensors.get(f"{block}.mixer.attn.weight")
    if gate is None:
        return {"name": "pat_ch", "attention": None}
    return "pat_ch" if gate.shape[1] == 2 * gate.shape[0] else {"name": "pat_ch", "attention": "srm"}


def _require(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"The checkpoint has no {name!r} (in our names); it is incomplete or of another network.")
    return tensors[name]
