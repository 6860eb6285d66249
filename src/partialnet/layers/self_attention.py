"""Multi-head self-attention over the positions of a feature map, with a bias for their distance."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# iRPE's piecewise index with the released network's settings: exact up to EXACT, logarithmic up to FAR, constant beyond
EXACT = 20
LIMIT = 40
FAR = 160


def distance_buckets(height: int, width: int, device: torch.device) -> Tensor:
    """Bucket of the Euclidean distance between every two positions of a map.

    Distances are rounded to integers; up to 20 each has its own bucket, beyond they share buckets that widen
    logarithmically, up to bucket 40.

    Returns:
        (height·width, height·width), int64, values in [0, 40].

    Source: paper, Sec. 3.1 (PAT_sf) names the encoding of Wu et al. 2021 [35]; the released network uses its
    Euclidean method with these limits.
    """
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    row_distance = (rows[:, None] - rows[None, :]).square()  # (H, H)
    column_distance = (columns[:, None] - columns[None, :]).square()  # (W, W)
    distance = (row_distance[:, None, :, None] + column_distance[None, :, None, :]).sqrt().round()
    distance = distance.reshape(height * width, height * width)
    slope = (LIMIT - EXACT) / math.log(FAR / EXACT)
    far = (EXACT + slope * (distance.clamp(min=1.0) / EXACT).log()).round().clamp(max=float(LIMIT))
    return torch.where(distance <= EXACT, distance, far).long()


class RelativePositionBias(nn.Module):
    """A learned bias per head and distance, added to the attention logits.

    Args:
        num_heads: Number of attention heads.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        forward(height, width) → (num_heads, height·width, height·width), for any height and width.

    The table has 81 entries per head as in the released checkpoints. Distances are never negative, so only entries
    40 to 80 are used.
    """

    def __init__(self, num_heads: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_heads, 2 * LIMIT + 1, device=device, dtype=dtype))

    def forward(self, height: int, width: int) -> Tensor:
        buckets = distance_buckets(height, width, self.table.device)
        # index_select has a faster forward and backward pass than an embedding or fancy indexing
        bias = self.table.index_select(1, buckets.flatten() + LIMIT)
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
        if (height, width) != self.size:
            raise ValueError(
                f"The network was folded for a {self.size[0]}×{self.size[1]} map but got {height}×{width}. "
                "Fold it without img_size to use images of any size."
            )
        return self.bias


class SelfAttention2d(nn.Module):
    """Layer-normalised multi-head self-attention over all positions, the attention of PAT_sf.

    Args:
        channels: Number of channels C, a multiple of ``num_heads``.
        num_heads: Number of heads. The logits are scaled by (C / num_heads)^-½.
        normalize: Apply the LayerNorm over channels (eps 1e-6) first.
        relative_position: Add a learned bias for the distance of the two positions to the logits.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, C, H, W) → (B, C, H, W), any H and W. Memory grows with (H·W)².

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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            divisors = [heads for heads in range(1, min(channels, 16) + 1) if channels % heads == 0]
            raise ValueError(
                f"num_heads={num_heads} does not divide the {channels} attended channels. Choose one of {divisors}."
            )
        self.num_heads = num_heads
        self.norm: nn.Module = (
            nn.LayerNorm(channels, eps=1e-6, device=device, dtype=dtype) if normalize else nn.Identity()
        )
        self.qkv = nn.Linear(channels, 3 * channels, bias=False, device=device, dtype=dtype)
        self.position_bias: nn.Module | None = (
            RelativePositionBias(num_heads, device=device, dtype=dtype) if relative_position else None
        )
        self.proj = nn.Linear(channels, channels, device=device, dtype=dtype)

        self.scale = (channels // num_heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B, N, C)
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, C / heads) each
        bias: Tensor | None = None
        if self.position_bias is not None:
            bias = self.position_bias(height, width)[None].to(query.dtype)
        tokens = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        tokens = self.proj(tokens.transpose(1, 2).flatten(2))
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    @torch.jit.ignore
    def fuse(self) -> SelfAttention2d:
        """The same function with LayerNorm's affine and the scale of the logits folded into qkv."""
        folded = copy.deepcopy(self)
        if isinstance(self.norm, nn.LayerNorm) and self.norm.elementwise_affine:
            channels = self.norm.normalized_shape[0]
            weight, shift = self.qkv.weight.detach(), self.norm.bias.detach()
            dd: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
            folded.norm = nn.LayerNorm(channels, eps=self.norm.eps, elementwise_affine=False, **dd)
            folded.qkv = nn.Linear(channels, 3 * channels, **dd)
            folded.qkv.weight.data.copy_(weight * self.norm.weight.detach())
            folded.qkv.bias.data.copy_(weight @ shift if self.qkv.bias is None else self.qkv.bias + weight @ shift)
            folded.qkv.weight.data[:channels] *= self.scale
            folded.qkv.bias.data[:channels] *= self.scale
            folded.scale = 1.0
        return folded.eval()
