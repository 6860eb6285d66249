"""A scale and a shift per channel: what BatchNorm is at inference, and how convolutions absorb it."""

from __future__ import annotations

import copy
from typing import TypeGuard, TypeVar

import torch
from timm.layers import Conv2dSame, FrozenBatchNormAct2d, SplitBatchNorm2d
from timm.layers import Linear as TimmLinear
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torchvision.ops import FrozenBatchNorm2d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: Layers whose output is linear in their weight, so that they can absorb a scale and a shift. A subclass counts if it
#: keeps the forward of one of these: weight standardisation, for one, would undo a scaled weight.
LINEAR_LAYERS = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear)

#: Hooks that compute a layer's weight before each call, of pruning and of PyTorch's older normalisations of weights
WEIGHT_HOOKS = (BasePruningMethod, WeightNorm, SpectralNorm)

LayerT = TypeVar("LayerT", bound=nn.Module)


class ChannelAffine(nn.Module):
    """``x * scale + shift`` with one scale and one shift for each channel, (B, C, H, W) → (B, C, H, W).

    Args:
        scale: One factor a channel, (C,).
        shift: One summand a channel, (C,).
        spatial_dims: Dimensions after the channels: 2 for images, 3 for volumes.
    """

    def __init__(self, scale: Tensor, shift: Tensor, spatial_dims: int = 2) -> None:
        super().__init__()
        shape = (-1, *[1] * spatial_dims)
        self.scale = nn.Parameter(scale.reshape(shape).clone())
        self.shift = nn.Parameter(shift.reshape(shape).clone())

    def forward(self, input: Tensor) -> Tensor:  # the name by which a BatchNorm may be called
        return torch.addcmul(self.shift, input, self.scale)


class FeatureAffine(nn.Module):
    """``ChannelAffine`` for any number of dimensions after the channels, none included: (B, C, …) → (B, C, …)."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.clone())
        self.shift = nn.Parameter(shift.clone())

    def forward(self, input: Tensor) -> Tensor:
        return torch.addcmul(self.shift, input.transpose(1, -1), self.scale).transpose(1, -1)


#: Norms of images that are a scale and a shift at inference; a subclass counts if it keeps the forward of one of these
_AFFINES: tuple[type[nn.Module], ...] = (
    *(nn.Identity, ChannelAffine, FeatureAffine),
    *(nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, SplitBatchNorm2d),
)


def batch_norm_affine(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, both (C,), of a BatchNorm at inference; of Identity 1 and 0, shaped like ``like``, (C,).

    Raises:
        ValueError: ``norm`` is in training mode and not frozen, keeps no running statistics, or is no BatchNorm.
    """
    if isinstance(norm, nn.Identity):
        return torch.ones_like(like), torch.zeros_like(like)
    if isinstance(norm, (ChannelAffine, FeatureAffine)):
        return norm.scale.detach().flatten(), norm.shift.detach().flatten()
    if norm.training and not isinstance(norm, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
        raise ValueError(
            "A network in training mode cannot be folded, because its statistics still change; call .eval() first."
        )
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        raise ValueError(f"{type(norm).__name__} has no running statistics and cannot be folded.")
    scale = torch.rsqrt(variance + float(norm.eps))  # type: ignore[arg-type]
    shift = -mean * scale
    if isinstance(norm.weight, Tensor):
        scale, shift = scale * norm.weight, shift * norm.weight
    if isinstance(norm.bias, Tensor):
        shift = shift + norm.bias
    return scale.detach(), shift.detach()


def with_weights(layer: LayerT, weight: Tensor, bias: Tensor | None) -> LayerT:
    """A layer of ``layer``'s kind and geometry with other weights; channel counts follow from the weight.

    ``layer`` is one of ``LINEAR_LAYERS``. A parametrised weight, such as weight normalisation, becomes a plain one.
    """
    folded = copy.deepcopy(layer)
    if parametrize.is_parametrized(folded):
        # remove_parametrizations would take the weight from the class, which the copy shares with the original
        names = list(folded.parametrizations)  # type: ignore[arg-type]
        folded.__class__ = parametrize.type_before_parametrizations(folded)
        del folded.parametrizations
        for name in names:
            folded.register_parameter(name, None)
    folded.weight = nn.Parameter(weight.detach().clone())
    folded.bias = None if bias is None else nn.Parameter(bias.detach().clone())  # type: ignore[assignment]
    if isinstance(folded, nn.Linear):
        folded.out_features, folded.in_features = weight.shape
    elif isinstance(folded, CONVOLUTIONS):
        folded.out_channels, folded.in_channels = weight.shape[0], weight.shape[1] * folded.groups
    return folded.eval()


def with_fixed_weights(module: LayerT) -> LayerT:
    """Turn the weights that hooks compute before each call into parameters; ``module`` itself, changed in place."""
    for layer in module.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, WEIGHT_HOOKS):
                hook.remove(layer)
                del layer._forward_pre_hooks[key]
    return module


def compute_weights(layer: nn.Module) -> None:
    """Run the hooks that compute ``layer``'s weight before a call, as its inputs may have changed since the last."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WEIGHT_HOOKS):
            hook(layer, ())


def is_affine(norm: nn.Module) -> bool:
    """Whether ``norm`` at inference is the scale and shift of ``batch_norm_affine`` and nothing else."""
    return any(keeps_forward(norm, kind) for kind in _AFFINES)


def can_be_folded(*parts: nn.Module) -> bool:
    """Whether all parts are layers and norms that are fully described by their weights: no adapter, no activation."""
    return all(is_linear_layer(part) or is_affine(part) for part in parts)


def keeps_forward(module: nn.Module, base: type[LayerT]) -> TypeGuard[LayerT]:
    """Whether ``module`` is a ``base`` and computes what it does: a subclass may do something else."""
    return isinstance(module, base) and type(module).forward is base.forward and "forward" not in vars(module)


def is_linear_layer(layer: nn.Module) -> bool:
    """Whether ``layer`` computes exactly what its base class in ``LINEAR_LAYERS`` does."""
    if not isinstance(layer, LINEAR_LAYERS) or "forward" in vars(layer):
        return False
    if type(layer) in (Conv2dSame, TimmLinear):
        return True
    base = next(base for base in LINEAR_LAYERS if isinstance(layer, base))
    return all(getattr(type(layer), name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward"))


def is_pointwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``layer`` is a 1×1 convolution that is a matrix product of all channels at every position."""
    return (
        is_linear_layer(layer)
        and isinstance(layer, nn.Conv2d)
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.groups == 1
        and absorbs_input_affine(layer)
    )


def fold_output_affine(layer: LayerT, scale: Tensor, shift: Tensor) -> LayerT:
    """The layer that gives ``layer(x) * scale + shift``; scale and shift are (out_channels,).

    ``layer`` is one of ``LINEAR_LAYERS``: a convolution, transposed or not, of 1 to 3 dimensions, or Linear.
    """
    weight, bias = _weights(layer)
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):  # (in, out / groups, …), the outputs of a group behind its inputs
        grouped = weight.unflatten(0, (layer.groups, -1))
        scale_by_group = scale.reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        scaled = (grouped * scale_by_group).flatten(0, 1)
    else:
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return with_weights(layer, scaled, shift if bias is None else bias * scale + shift)


def absorbs_input_affine(layer: nn.Module) -> bool:
    """Whether ``fold_input_affine`` is exact for ``layer``: no padding, no groups, not transposed."""
    if isinstance(layer, nn.Linear):
        return True
    if not isinstance(layer, CONVOLUTIONS) or isinstance(layer, Conv2dSame) or layer.groups != 1:
        return False
    return layer.padding == "valid" or not any(layer.padding)


def fold_input_affine(layer: LayerT, scale: Tensor, shift: Tensor) -> LayerT:
    """The layer that gives ``layer(x * scale + shift)``; scale and shift are (in_channels,).

    Exact without padding; with it the shift would be missing at the border.

    Raises:
        ValueError: ``layer`` is padded, grouped or transposed.
    """
    if not absorbs_input_affine(layer):
        raise ValueError("Only a convolution without padding and groups can absorb a shift of its input.")
    weight, bias = _weights(layer)
    new_bias = torch.einsum("oik,i->o", weight.flatten(2) if weight.ndim > 2 else weight[..., None], shift)
    if bias is not None:
        new_bias = new_bias + bias
    return with_weights(layer, weight * scale.reshape(1, -1, *[1] * (weight.ndim - 2)), new_bias)


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(layer, LINEAR_LAYERS)
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def fold_batch_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """The convolution that gives ``norm(conv(x))`` at inference."""
    return fold_output_affine(conv, *batch_norm_affine(norm, conv.weight[:, 0, 0, 0]))
