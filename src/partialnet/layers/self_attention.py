"""Multi-head self-attention over the positions of a feature map, with a bias for their distance."""

from __future__ import annotations

import copy
import math
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from partialnet.arguments import check_count

from .affine import can_be_folded, with_fixed_weights
from .eager import PositionwiseLinear, map_of, positions_of
from .inference import MapNorm, Runtime, TokenNorm, pointwise
from .layout import is_transformed
from .partial_attention import PartialAttention, copy_kept_norm

# iRPE's piecewise index with the released network's settings: exact up to EXACT, logarithmic up to FAR, constant beyond
EXACT = 20
LIMIT = 40
FAR = 160


@torch.fx.wrap
def distance_buckets(
    height: int,
    width: int,
    device: torch.device,
    exact: int = EXACT,
    limit: int = LIMIT,
    far: int = FAR,
    dilation: int = 1,
) -> Tensor:
    """Bucket of the Euclidean distance between every two positions of a map.

    Distances, in ``dilation`` positions, are rounded to integers; up to 20 each has its own bucket, beyond they share
    buckets that widen logarithmically, up to bucket 40.

    Returns:
        (height·width, height·width), int64, values in [0, 40].

    Source: paper, Sec. 3.1 (PAT_sf) names the encoding of Wu et al. 2021 [35]; the released network uses its
    Euclidean method with these limits.
    """
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    if dilation > 1:
        rows, columns = rows / dilation, columns / dilation
    row_distance = (rows[:, None] - rows[None, :]).square()  # (H, H)
    column_distance = (columns[:, None] - columns[None, :]).square()  # (W, W)
    distance = (row_distance[:, None, :, None] + column_distance[None, :, None, :]).sqrt().round()
    distance = distance.reshape(height * width, height * width)
    slope = (limit - exact) / math.log(far / exact)
    beyond = (exact + slope * (distance.clamp(min=1.0) / exact).log()).round().clamp(max=float(limit))
    return torch.where(distance <= exact, distance, beyond).long()


class RelativePositionBias(nn.Module):
    """A learned bias per head and distance, added to the attention logits.

    Args:
        num_heads: Number of attention heads.
        dilation: Positions of the map that make a distance of 1.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        forward(height, width) → (num_heads, height·width, height·width), for any height and width.

    The table has 81 entries per head as in the released checkpoints. Distances are never negative, so only entries
    40 to 80 are used.
    """

    def __init__(
        self,
        num_heads: int,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("num_heads", num_heads)
        self.dilation = dilation
        self.table = nn.Parameter(torch.empty(num_heads, 2 * LIMIT + 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No distance is preferred: all entries are 0."""
        nn.init.zeros_(self.table)

    def forward(self, height: int, width: int) -> Tensor:
        buckets = distance_buckets(height, width, self.table.device, dilation=self.dilation)
        # index_select has a faster forward and backward pass than an embedding or fancy indexing
        bias = self.table.index_select(1, buckets.flatten() + self.table.shape[1] // 2)
        return bias.unflatten(1, (height * width, height * width))


class FixedPositionBias(nn.Module):
    """A relative position bias as a constant for maps of one size, which saves its look-up at every call.

    Args:
        bias: The bias of a map of ``size``, (num_heads, height·width, height·width).
        size: (height, width).
    """

    def __init__(self, bias: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, height: int, width: int) -> Tensor:
        _check_map_size(height, width, self.size)
        return self.bias


@torch.fx.wrap
def _check_map_size(height: int, width: int, size: tuple[int, int]) -> None:
    if (height, width) != size:
        raise ValueError(
            f"The network was folded for a {size[0]}×{size[1]} map but got {height}×{width}. "
            "Fold it without img_size to use images of any size."
        )


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention of queries, keys and values, (B, heads, N, C / heads), with a bias for the logits."""
    written_out = False
    if not torch.jit.is_scripting():
        # PyTorch's kernel does not notice that the biases of several networks, stacked for torch.func, need a gradient
        written_out = not torch.compiler.is_compiling() and is_transformed()
    if written_out:
        logits = scale * (query @ key.transpose(-2, -1))
        return (logits if bias is None else logits + bias).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


@register_notrace_module
class SelfAttention2d(PartialAttention):
    """Layer-normalised multi-head self-attention over all positions, the attention of PAT_sf.

    Args:
        channels: Number of channels C, a multiple of ``num_heads``.
        num_heads: Number of heads. The logits are scaled by (C / num_heads)^-½.
        normalize: Apply the LayerNorm over channels (eps 1e-6) first.
        relative_position: Add a learned bias for the distance of the two positions to the logits.
        dilation: Positions that make a distance of 1, for maps of a higher resolution than the bias was learned on.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, C, H, W) → (B, C, H, W), any H and W. Memory grows with (H·W)². ``forward(x, keep)`` with ``keep``, (C,), of
        zeros and ones attends over the channels at 1 alone, an equal number for each head.

    Raises:
        ValueError: ``channels`` is not a multiple of ``num_heads``.

    Source: paper, Sec. 3.1 (PAT_sf), Figs. 3e and 8. qkv has no bias, the projection has one.

    Example:
        >>> SelfAttention2d(192)(torch.rand(2, 192, 7, 7)).shape
        torch.Size([2, 192, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        normalize: bool = True,
        relative_position: bool = True,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        given: Any = num_heads
        if not isinstance(given, Integral) or num_heads < 1 or channels % num_heads:
            divisors = [heads for heads in range(1, min(channels, 16) + 1) if channels % heads == 0]
            raise ValueError(
                f"num_heads={num_heads!r} does not divide the {channels} attended channels. Choose one of {divisors}."
            )
        self.num_heads = num_heads
        self.dilation = dilation
        self.norm: nn.Module = (
            nn.LayerNorm(channels, eps=1e-6, device=device, dtype=dtype) if normalize else nn.Identity()
        )
        self.qkv = nn.Linear(channels, 3 * channels, bias=False, device=device, dtype=dtype)
        self.position_bias: nn.Module | None = (
            RelativePositionBias(num_heads, dilation, device=device, dtype=dtype) if relative_position else None
        )
        self.proj = nn.Linear(channels, channels, device=device, dtype=dtype)

        self.scale = (channels // num_heads) ** -0.5

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is not None and not torch.jit.is_scripting():  # searched layers, which keep channels, are not scripted
            return self._attend_kept(x, keep)
        height, width = x.shape[2:]
        query, key, value = self._query_key_value(x)
        bias: Tensor | None = None
        if self.position_bias is not None:
            bias = self.position_bias(height, width)[None].to(query.dtype)
        tokens = _attend(query, key, value, bias, self.scale)
        tokens = self.proj(tokens.transpose(1, 2).flatten(2))
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    @torch.jit.ignore
    def weights(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """How much each position takes from every other, (B, heads, N, N) with N = H·W; rows sum to 1."""
        query, key, _ = self._query_key_value(x) if keep is None else self._kept_query_key_value(x, keep)
        logits = (self.scale if keep is None else 1.0) * (query @ key.transpose(-2, -1))
        if self.position_bias is not None:
            logits = logits + self.position_bias(*x.shape[2:])
        return logits.softmax(-1)

    def _query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, heads, N, C / heads)."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B, N, C)
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    # Over some of the channels, heads take turns: channel i belongs to head i mod heads, so that any number of kept
    # channels is spread evenly over them, whereas heads are ranges of channels otherwise. Which channels of q, k and v
    # form a head has no meaning outside, so the cut-out layer has its rows sorted by head.

    @property
    @torch.jit.unused
    def subset_step(self) -> int:
        """The number of heads, as they share the kept channels equally."""
        return self.num_heads

    @torch.jit.unused
    def _attend_kept(self, x: Tensor, keep: Tensor) -> Tensor:
        height, width = x.shape[2:]
        query, key, value = self._kept_query_key_value(x, keep)
        bias: Tensor | None = None
        if self.position_bias is not None:
            bias = self.position_bias(height, width)[None].to(query.dtype)
        tokens = _attend(query, key, value, bias, 1.0)
        tokens = self.proj(tokens.permute(0, 2, 3, 1).flatten(2))  # channel i is again i // heads, i mod heads
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    @torch.jit.unused
    def _kept_query_key_value(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, heads, N, C / heads), the query with the scale of the logits."""
        channels, heads = x.shape[1], self.num_heads
        count = keep.sum().clamp(min=1)  # no channel at all attends over nothing
        tokens = x.flatten(2).transpose(1, 2)
        if isinstance(self.norm, nn.LayerNorm):
            mean = (tokens * keep).sum(-1, keepdim=True) / count
            centred = (tokens - mean) * keep
            variance = centred.square().sum(-1, keepdim=True) / count
            tokens = centred * torch.rsqrt(variance + self.norm.eps) * self.norm.weight + self.norm.bias
        tokens = tokens * keep
        masked = self.qkv.weight * keep.repeat(3)[:, None]
        qkv = F.linear(tokens, masked.to(tokens.dtype)).unflatten(2, (3, channels // heads, heads))
        query, key, value = qkv.permute(2, 0, 4, 1, 3).unbind(0)
        return query * (count / heads).rsqrt(), key, value

    @torch.jit.ignore
    def settings(self) -> dict[str, Any]:
        return {
            "num_heads": self.num_heads,
            "normalize": not isinstance(self.norm, nn.Identity),
            "relative_position": self.position_bias is not None,
            "dilation": self.dilation,
        }

    def _copy_kept(self, selected: SelfAttention2d, kept: Tensor) -> None:
        weight, heads = self.qkv.weight, self.num_heads
        by_head = torch.cat([kept[kept % heads == head] for head in range(heads)])
        rows = torch.cat([by_head + part * weight.shape[1] for part in range(3)])
        selected.qkv.weight.copy_(weight[rows][:, kept])
        selected.proj.weight.copy_(self.proj.weight[kept][:, by_head])
        selected.proj.bias.copy_(self.proj.bias[kept])
        copy_kept_norm(self.norm, selected.norm, kept)
        if self.position_bias is not None and selected.position_bias is not None:
            selected.position_bias.load_state_dict(self.position_bias.state_dict())

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The same function with LayerNorm's affine and the scale of the logits folded into qkv.

        The layer itself if one of its parts was replaced, for example by an adapter.
        """
        if not can_be_folded(self.qkv, self.proj) or not isinstance(self.norm, (nn.LayerNorm, nn.Identity)):
            return self
        return FoldedSelfAttention2d(with_fixed_weights(copy.deepcopy(self)))


@register_notrace_module
class FoldedSelfAttention2d(nn.Module):
    """``SelfAttention2d`` at inference, (B, C, H, W) → (B, C, H, W).

    The attention is written out as two matrix products, which every runtime knows; the scale of its logits and
    LayerNorm's affine are folded into qkv.
    """

    def __init__(self, attention: SelfAttention2d) -> None:
        super().__init__()
        weight = attention.qkv.weight.detach()
        channels = weight.shape[1]
        bias = weight.new_zeros(3 * channels) if attention.qkv.bias is None else attention.qkv.bias.detach()
        self.num_heads = attention.num_heads
        self.norm: nn.Module = nn.Identity()
        if isinstance(attention.norm, nn.LayerNorm):
            self.norm = nn.LayerNorm(channels, eps=attention.norm.eps, elementwise_affine=False)
            if attention.norm.elementwise_affine:
                given: Tensor | None = attention.norm.bias
                bias = bias if given is None else bias + weight @ given.detach()
                weight = weight * attention.norm.weight.detach()
        scale = weight.new_ones(3 * channels)
        scale[:channels] = attention.scale
        self.qkv = nn.Linear(channels, 3 * channels, device=weight.device, dtype=weight.dtype)
        self.qkv.weight.data.copy_(weight * scale[:, None])
        self.qkv.bias.data.copy_(bias * scale)
        self.proj = copy.deepcopy(attention.proj)
        self.position_bias = copy.deepcopy(attention.position_bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B, N, C)
        # three parts, each transposed: OpenVINO 2026.4 mixes up one five-dimensional transpose where N equals heads
        query, key, value = self.qkv(tokens).chunk(3, dim=2)
        logits = self._heads(query) @ self._heads(key).transpose(-2, -1)
        if self.position_bias is not None:
            logits = logits + self.position_bias(height, width)
        tokens = self.proj((logits.softmax(-1) @ self._heads(value)).transpose(1, 2).flatten(2))
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    @torch.jit.ignore
    def for_runtime(self, runtime: Runtime) -> nn.Module:
        """The form that suits a runtime."""
        if runtime == "torch":
            return TokenSelfAttention(self)
        norm: nn.Module = TokenNorm(self.norm)
        if not isinstance(self.norm, nn.LayerNorm):
            norm = self.norm
        elif runtime in ("openvino", "litert"):
            norm = MapNorm(self.norm.eps)
        return MapSelfAttention(self, norm)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class MapSelfAttention(nn.Module):
    """Self-attention whose dense layers are 1×1 convolutions on the map, (B, C, H, W) → (B, C, H, W).

    For onnxruntime and OpenVINO: their convolutions are faster than their dense layers on few tokens, and heads are
    then cut out of the map without transposing. Three separate convolutions save the split of one. For LiteRT, which
    transposes tokens more often.

    Args:
        attention: Folded self-attention.
        norm: Its normalisation on the map.
    """

    def __init__(self, attention: FoldedSelfAttention2d, norm: nn.Module) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.norm = norm
        weights, biases = attention.qkv.weight.detach().chunk(3), attention.qkv.bias.detach().chunk(3)
        self.query, self.key, self.value = (
            pointwise(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.position_bias = attention.position_bias
        proj = attention.proj
        self.proj = pointwise(proj.weight.detach(), None if proj.bias is None else proj.bias.detach())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.norm(x)
        query, key, value = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        logits = query.transpose(-2, -1) @ key
        if self.position_bias is not None:
            logits = logits + self.position_bias(*size)
        x = value @ logits.softmax(-1).transpose(-2, -1)
        return self.proj(x.flatten(1, 2).unflatten(2, size))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, heads, C / heads, N)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1))


class TokenSelfAttention(nn.Module):
    """Self-attention on tokens for eager PyTorch, (B, C, H, W) → (B, C, H, W).

    Args:
        attention: Folded self-attention.
    """

    def __init__(self, attention: FoldedSelfAttention2d) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.norm = attention.norm
        self.qkv = PositionwiseLinear(attention.qkv.weight, attention.qkv.bias)
        self.position_bias = attention.position_bias
        self.proj = PositionwiseLinear(attention.proj.weight, attention.proj.bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        # taken from _modules and called without hooks for speed; ``eager`` says why
        norm: Any = self._modules["norm"]
        position_bias: Any = self._modules.get("position_bias")
        qkv: Any = self._modules["qkv"]
        proj: Any = self._modules["proj"]
        batch, channels, height, width = x.shape
        heads, positions, width_of_head = self.num_heads, height * width, channels // self.num_heads
        tokens = qkv.product(norm.forward(positions_of(x)))
        tokens = tokens.view(batch, positions, 3, heads, width_of_head).permute(2, 0, 3, 1, 4)
        query, key, value = tokens.flatten(1, 2).unbind(0)  # (B · heads, N, C / heads) each
        key = key.transpose(1, 2)
        if position_bias is None:
            logits = torch.bmm(query, key)
        else:
            bias = position_bias.forward(height, width)
            logits = torch.baddbmm(bias if batch == 1 else bias.repeat(batch, 1, 1), query, key)
        tokens = torch.bmm(logits.softmax(-1), value).view(batch, heads, positions, width_of_head)
        return map_of(proj.product(tokens.transpose(1, 2).reshape(batch * positions, channels)), x)
