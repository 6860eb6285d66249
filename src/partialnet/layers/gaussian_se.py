"""Gaussian-SE: a channel gate computed from each channel's mean and standard deviation."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from partialnet.arguments import check_count

from .affine import ChannelAffine, batch_norm_affine, is_affine, with_fixed_weights
from .inference import Runtime, clipped_sigmoid, pointwise
from .layout import is_recorded, takes_plain_operations
from .partial_attention import PartialAttention, copy_kept_norm


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each channel of each image.

    On the CPU two vectorised means take 1/10 of the time of ``torch.var_mean``, which has no vectorised kernel there.
    Half-precision input is reduced in float32, because squares of half-precision values overflow.

    Args:
        x: Features, (B, C, H, W), floating point.

    Returns:
        Mean and variance, both (B, C), in at least float32. The variance of a single position is 0.
    """
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        x = x.float()
    if x.is_cuda:
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
        return mean, variance
    mean = x.mean((2, 3))
    variance = (x - mean[:, :, None, None]).square().mean((2, 3))
    return mean, variance


def image_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """``channel_statistics`` without autograd, by the one vectorised kernel that PyTorch has for both on the CPU.

    It is BatchNorm's, which takes a third of the time of two means. It reduces over the batch, too, so each image is
    passed alone. In the channels_last layout it sums one value after the other, so that the variance of a 512×512 map
    whose mean is 10⁴ times its deviation is not reliable, as in BatchNorm itself.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.shape[0] == 0:
        return channel_statistics(x)
    x = x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
    # momentum has no meaning without running statistics
    if x.shape[0] == 1:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        return mean.unsqueeze(0), variance.unsqueeze(0)
    images = [torch.batch_norm_update_stats(image, None, None, 0.0) for image in x.split(1)]
    return torch.stack([mean for mean, _ in images]), torch.stack([variance for _, variance in images])


class _Statistics(torch.autograd.Function):
    """``channel_statistics`` whose backward is one multiply–add over the map, a fifth of the time of autograd's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # the faster kernel is called once for each image, which small images do not repay
        mean, variance = image_statistics(x) if x.shape[1:].numel() >= 8192 else channel_statistics(x)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.shape[2] * x.shape[3]
        slope = grads[1] * (2 / count)  # of the variance: 2 · (x − mean) / count
        shift = grads[0] / count - slope * mean
        return _multiply_add(x, slope[:, :, None, None], shift[:, :, None, None])


class _MultiplyAdd(torch.autograd.Function):
    """``x · scale + shift`` of a map in half precision with factors in float32, on a GPU without any map in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return _multiply_add(x, scale, shift)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,), (x, scale) = grads, ctx.saved_tensors
        into_scale = (grad * x).sum((2, 3), keepdim=True, dtype=scale.dtype)
        into_shift = grad.sum((0, 2, 3), keepdim=True, dtype=scale.dtype)
        return _multiply_add(grad, scale, torch.zeros_like(scale)), into_scale, into_shift


def _multiply_add(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x · scale + shift`` in the data type of ``x``."""
    # an output that is given has the right type at once, but no gradient
    return torch.addcmul(shift, x, scale, out=None if torch.is_grad_enabled() else torch.empty_like(x)).to(x.dtype)


def standard_deviation(variance: Tensor, count: int) -> Tensor:
    """Unbiased deviation from the population variance of ``count`` values, of any shape; a constant's is 0, with
    gradient 0.
    """
    variance = variance * (count / max(count - 1, 1))
    # sqrt has an infinite slope at 0. Clamping at float32's smallest normal number (TorchScript knows no finfo) stops
    # the gradient of constant channels.
    return variance.clamp(min=1.1754943508222875e-38).sqrt()


def deviation_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased deviation and mean of each channel at inference, both (B, C), in the data type of ``x``.

    On a GPU one kernel, which computes in float32 whatever it reads and writes, so that half precision needs no copy.
    """
    count = x.shape[2] * x.shape[3]
    return torch.std_mean(x, dim=(2, 3), correction=min(1, count - 1))


@torch.fx.wrap
def mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation of each channel at inference, both (B, C, 1, 1), in at least float32.

    Two means, which runtimes compute faster than a Euclidean norm.
    """
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        x = x.float()
    mean = x.mean((2, 3), keepdim=True)
    centred = x - mean
    count = x.shape[2] * x.shape[3]
    return mean, ((centred * centred).mean((2, 3), keepdim=True) * (count / max(count - 1, 1))).sqrt()


@register_notrace_module
class GaussianSE(PartialAttention):
    """Gate every channel by a function of all channels' means and standard deviations, then normalise.

    The squeeze of SE-Net extended by the standard deviation ("enhanced Gaussian-SE"), the attention of PAT_ch.
    ``x · hard_sigmoid(BN(W [mean; std]))``, followed by a BatchNorm of the gated features.

    In training, the statistics for that last BatchNorm follow from the per-image ones by the law of total variance,
    so that gate and normalisation are a single multiply-add over the feature map.

    Args:
        channels: Number of channels C.
        dense: Mix all channels' statistics (a 2C → C layer). False gives each channel a weight for its own mean and
            its own deviation only, the style-based recalibration (SRM) of the paper's Table 12.
        normalize: Apply the BatchNorm after the gate.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        (B, C, H, W) → (B, C, H, W), any H and W from 1. ``forward(x, keep)`` with ``keep``, (C,), of zeros and ones
        gates by the statistics of the channels at 1 alone, and their outputs are those of a layer without the others.

    Raises:
        ValueError: In training mode with a batch of one image: its gate would be normalised over a single value.

    Source: paper, Sec. 3.1 (PAT_ch), Figs. 3b and 8. The text does not say that the layer is dense; the printed
    parameter counts do.

    Example:
        >>> GaussianSE(48).eval()(torch.rand(2, 48, 7, 7)).shape
        torch.Size([2, 48, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        dense: bool = True,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        self.channels = channels
        self.dense = dense
        weight = (channels, 2 * channels) if dense else (channels, 2)
        self.weight = nn.Parameter(torch.empty(weight, device=device, dtype=dtype))
        # 2d, because timm's freezing and others' tools know no other BatchNorm
        self.gate_norm: nn.Module = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        self.norm: nn.Module = nn.BatchNorm2d(channels, device=device, dtype=dtype) if normalize else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from a normal distribution of deviation 0.02, truncated at 6 deviations."""
        # older versions of torch draw a bound, ±2 by default, once in 2^24 times
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.12, b=0.12)

    def extra_repr(self) -> str:
        return f"{self.channels}, dense={self.dense}"

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():
            mean, variance = channel_statistics(x)
            std = standard_deviation(variance, x.shape[2] * x.shape[3])
            return self.norm(x * self._gate(mean, std, keep)[:, :, None, None].to(x.dtype))
        else:
            return _gate_and_normalize(self, x, keep)

    def _gate(self, mean: Tensor, std: Tensor, keep: Tensor | None) -> Tensor:
        if keep is not None:
            mean, std = mean * keep, std * keep
        logits = _mix(mean, std, self.weight, self.dense)[:, :, None, None]
        return F.hardsigmoid(self.gate_norm(logits)).flatten(1)

    @torch.jit.ignore
    def gate(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Weight of each channel, (B, C, 1, 1), in [0, 1]."""
        mean, variance = channel_statistics(x)
        std = standard_deviation(variance, x.shape[2] * x.shape[3])
        return self._gate(mean, std, keep)[:, :, None, None].to(x.dtype)

    @torch.jit.ignore
    def settings(self) -> dict[str, Any]:
        return {"dense": self.dense, "normalize": not isinstance(self.norm, nn.Identity)}

    def _copy_kept(self, selected: GaussianSE, kept: Tensor) -> None:
        columns = torch.cat((kept, kept + self.channels)) if self.dense else slice(None)
        selected.weight.copy_(self.weight[kept][:, columns])
        copy_kept_norm(self.gate_norm, selected.gate_norm, kept)
        copy_kept_norm(self.norm, selected.norm, kept)

    @torch.jit.ignore
    def can_be_folded(self) -> bool:
        """Whether its norms are still BatchNorms, of any kind."""
        return is_affine(self.gate_norm) and is_affine(self.norm)

    @torch.jit.ignore
    def fuse_up_to_affine(self) -> tuple[GaussianGate, Tensor, Tensor]:
        """The gate with its BatchNorm folded, and scale and shift, (C,), of the BatchNorm behind it."""
        scale, shift = batch_norm_affine(self.gate_norm, self.weight[:, 0])
        gate = GaussianGate(self.weight.detach() * scale[:, None], shift)
        return gate.eval(), *batch_norm_affine(self.norm, self.weight[:, 0])

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """The same function at inference without BatchNorm; the layer itself if one of its norms was replaced."""
        if not self.can_be_folded():
            return self
        gate, scale, shift = with_fixed_weights(copy.deepcopy(self)).fuse_up_to_affine()
        if isinstance(self.norm, nn.Identity):
            return gate
        return nn.Sequential(gate, ChannelAffine(scale, shift)).eval()


@torch.fx.wrap
def _gate_and_normalize(layer: GaussianSE, x: Tensor, keep: Tensor | None) -> Tensor:
    """Gaussian-SE outside TorchScript; a function, which symbolic tracing can leave as it is."""
    if x.shape[0] == 1 and isinstance(layer.gate_norm, nn.BatchNorm2d) and layer.gate_norm.training:
        raise ValueError(
            "Gaussian-SE cannot train on a batch of 1 image: its gate is batch-normalised, one value per image. "
            "Use a batch of 2 or more (drop_last=True drops a last batch of 1), or freeze the BatchNorms with "
            ".eval()."
        )
    count = x.shape[2] * x.shape[3]
    mean, variance = channel_statistics(x) if takes_plain_operations() else _Statistics.apply(x)
    gate = layer._gate(mean, standard_deviation(variance, count), keep)
    if not _can_be_derived(layer.norm) or x.shape[0] == 0:
        # none, frozen, split, synchronised over processes or watched: the layer itself knows what to do; and what
        # statistics no image has
        return layer.norm(x * gate[:, :, None, None].to(x.dtype))
    scale, shift = _gated_batch_norm(layer.norm, gate.to(mean.dtype), mean, variance, count)
    # rounded once, at the end: of a channel that hardly varies, scale and shift are large and cancel each other
    if x.dtype == scale.dtype or takes_plain_operations():
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).to(x.dtype)
    return _MultiplyAdd.apply(x, scale[:, :, None, None], shift[:, :, None, None])


@torch.fx.wrap
def _folded_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation of each channel at inference, both (B, C), as the device computes them fastest."""
    if not torch.jit.is_scripting() and x.is_cuda and not is_recorded():
        std, mean = deviation_and_mean(x)
        return mean, std
    mean, std = mean_and_deviation(x)
    return mean.flatten(1), std.flatten(1)


@register_notrace_module
class GaussianGate(nn.Module):
    """Folded Gaussian-SE: ``x · hard_sigmoid(W [mean; std] + b)``, (B, C, H, W) → (B, C, H, W).

    Args:
        weight: (C, 2C), or (C, 2) where each channel sees its own statistics only.
        bias: (C,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.dense = weight.shape[1] == 2 * weight.shape[0]
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """Weight of each channel, (B, C, 1, 1)."""
        mean, std = _folded_statistics(x)
        return self._gate(mean, std).to(x.dtype)

    @torch.jit.ignore
    def for_runtime(self, runtime: Runtime) -> nn.Module:
        """The form that suits a runtime."""
        return MapGaussianGate(self) if runtime in ("openvino", "litert") and self.dense else self

    def _gate(self, mean: Tensor, std: Tensor) -> Tensor:
        mean, std = mean.to(self.weight.dtype), std.to(self.weight.dtype)
        if self.dense:
            # with the bias inside, runtimes fuse layer and gate
            logits = F.linear(torch.cat((mean, std), 1), self.weight, self.bias)
        else:
            logits = mean * self.weight[:, 0] + std * self.weight[:, 1] + self.bias
        return F.hardsigmoid(logits)[:, :, None, None]


class MapGaussianGate(nn.Module):
    """Folded Gaussian-SE on maps of one position, (B, C, H, W) → (B, C, H, W).

    For OpenVINO, where a convolution with its gate is one layer, and a dense layer on one row of values an expensive
    one; for LiteRT, which transposes the whole map to compute statistics without positions.

    Args:
        gate: Gate whose statistics are mixed by a dense layer.
    """

    def __init__(self, gate: GaussianGate) -> None:
        super().__init__()
        self.conv = pointwise(gate.weight.detach(), gate.bias.detach())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        mean, std = mean_and_deviation(x)
        return x * clipped_sigmoid(self.conv(torch.cat((mean, std), 1).to(x.dtype)))


class EagerGaussianGate(nn.Module):
    """Folded Gaussian-SE's gate from a map of which it gates some channels, (B, all, H, W) → (B, C, 1, 1).

    For eager PyTorch: on the CPU BatchNorm's kernel takes less time for the statistics of a dense map than a copy of
    the channels that are gated. The others have weights of 0. A GPU reads the gated channels alone.

    Args:
        gate: Gate whose statistics are mixed by a dense layer.
        before: Number of channels before those that are gated.
        behind: Number of channels behind them.
    """

    def __init__(self, gate: GaussianGate, before: int, behind: int) -> None:
        super().__init__()
        self.before = before
        for_mean, for_std = (F.pad(weight, (before, behind)) for weight in gate.weight.detach().chunk(2, 1))
        self.for_mean = nn.Parameter(for_mean.contiguous())  # (C, all)
        self.for_std = nn.Parameter(for_std.contiguous())  # (C, all)
        self.bias = nn.Parameter(gate.bias.detach().clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[2] * x.shape[3]
        mean, variance = channel_statistics(x)
        mean, std = mean.to(self.bias.dtype), standard_deviation(variance, count).to(self.bias.dtype)
        gate = F.hardsigmoid(self.bias + mean @ self.for_mean.t() + std @ self.for_std.t())
        return gate.to(x.dtype)[:, :, None, None]

    def in_place(self, x: Tensor) -> Tensor:
        """The same without autograd."""
        parameters: dict[str, Any] = self._parameters  # for speed; ``eager`` says why
        bias, for_mean, for_std = parameters["bias"], parameters["for_mean"], parameters["for_std"]
        if x.is_cuda:
            gated = self.before, bias.shape[0]
            std, mean = deviation_and_mean(x.narrow(1, *gated))
            logits = torch.addmm(bias, mean, for_mean.narrow(1, *gated).t())
            logits.addmm_(std, for_std.narrow(1, *gated).t())
            return F.hardsigmoid(logits, inplace=True).view(x.shape[0], bias.shape[0], 1, 1)
        count = x.shape[2] * x.shape[3]
        factor = math.sqrt(count / max(count - 1, 1))
        if x.shape[0] == 1 and x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last):
            # one image: without image_statistics' cases, and with products of a matrix and a vector
            mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
            logits = torch.addmv(bias, for_mean, mean).addmv_(for_std, variance.sqrt_(), alpha=factor)
        else:
            mean, variance = (value.to(bias.dtype) for value in image_statistics(x))
            logits = torch.addmm(bias, mean, for_mean.t()).addmm_(variance.sqrt_(), for_std.t(), alpha=factor)
        return F.hardsigmoid(logits, inplace=True).to(x.dtype).view(x.shape[0], bias.shape[0], 1, 1)


def _mix(mean: Tensor, std: Tensor, weight: Tensor, dense: bool) -> Tensor:
    """Gate logits, (B, C), of statistics in the weight's data type."""
    mean, std = mean.to(weight.dtype), std.to(weight.dtype)
    if dense:
        return F.linear(torch.cat((mean, std), 1), weight)
    return mean * weight[:, 0] + std * weight[:, 1]


def _can_be_derived(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether ``norm`` is BatchNorm as PyTorch has it, and nobody waits for its calls."""
    hooks = norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
    # torch 2.8 cannot compile keeps_forward, which looks into the instance as well
    return isinstance(norm, nn.BatchNorm2d) and type(norm).forward is nn.BatchNorm2d.forward and not hooks


def _gated_batch_norm(
    norm: nn.BatchNorm2d, gate: Tensor, mean: Tensor, variance: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Scale and shift, (B, C) and (1, C), with which ``x * scale + shift`` equals ``norm(x * gate)``.

    In training, the batch statistics are derived from the ungated per-image ``mean`` and ``variance`` of ``count``
    positions, and the running statistics are updated as BatchNorm would.
    """
    if norm.training or norm.running_mean is None or norm.running_var is None:
        centre = gate * mean  # (B, C), mean of each gated image
        batch_mean = centre.mean(0)
        # law of total variance: mean of the variances plus variance of the means
        batch_variance = (gate.square() * variance).mean(0) + (centre - batch_mean).square().mean(0)
        if norm.training and norm.track_running_stats:
            _update_running_statistics(norm, batch_mean, batch_variance, count * gate.shape[0])
    else:
        batch_mean, batch_variance = norm.running_mean.to(gate.dtype), norm.running_var.to(gate.dtype)
    scale = torch.rsqrt(batch_variance + norm.eps)
    weight: Tensor | None = norm.weight  # either may be missing, although PyTorch's annotations do not say so
    bias: Tensor | None = norm.bias
    if weight is not None:
        scale = scale * weight
    shift = -batch_mean * scale
    if bias is not None:
        shift = shift + bias
    return gate * scale, shift[None]


@torch.no_grad()
def _update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """BatchNorm's own update: exponential average (cumulative where momentum is None), unbiased variance."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), momentum)
