"""Parameters and multiply–adds of a network, whole and by stage.

Convention: a multiply–add is one multiplication with its addition in a convolution, a dense layer or an attention
product; element-wise work (normalisation, activation, gating, pooling) is not counted. The paper's "FLOPs" are these
multiply–adds, after folding; its parameters are counted before folding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .errors import UserError
from .folding import fold
from .layers import GaussianSE, PATConv, SelfAttention2d
from .messages import first_line
from .models import PartialNet
from .models.blocks import PartialNetBlock

#: Table 9: parameters in millions (training form), multiply–adds in billions at 224² (folded)
PAPER = {
    "partialnet_t0": (4.3, 0.25),
    "partialnet_t1": (7.8, 0.55),
    "partialnet_t2": (12.6, 1.03),
    "partialnet_s": (29.0, 2.71),
    "partialnet_m": (61.3, 6.69),
    "partialnet_l": (104.4, 11.91),
}


@dataclass(frozen=True)
class Count:
    """How large a network, or a part of one, is.

    Attributes:
        params_m: Parameters in millions.
        macs_g: Multiply–adds of one image in billions.
    """

    params_m: float
    macs_g: float


@dataclass(frozen=True)
class Part:
    """One part of a network: stem, a stage, or head.

    Attributes:
        name: What tables call it.
        blocks: Number of its blocks.
        kind: What it consists of, in a few words.
        resolution: Height and width of its output; (1, 1) where that is no map.
        channels: Channels of its output.
        training: Its size in training form.
        folded: Its size after folding.
    """

    name: str
    blocks: int
    kind: str
    resolution: tuple[int, int]
    channels: int
    training: Count
    folded: Count


@dataclass(frozen=True)
class Complexity:
    """Size of a network for images of one size.

    Attributes:
        input_size: Of one image, (C, H, W).
        parts: Its parts, for PartialNet in training form; none for other networks.
        training: The whole in training form.
        folded: The whole after folding.
    """

    input_size: tuple[int, int, int]
    parts: tuple[Part, ...]
    training: Count
    folded: Count

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure(model: nn.Module, input_size: tuple[int, int, int]) -> Complexity:
    """Count the parameters and multiply–adds of ``model`` for one image of ``input_size`` (C, H, W).

    Parts are listed for PartialNet in its training form; other and folded networks have totals only.

    Raises:
        UserError: The network does not run on such an image.
    """
    try:
        training = ModuleCounts(model, input_size)
        folded = ModuleCounts(fold(copy.deepcopy(model).eval()), input_size)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a network's own code raises
        raise UserError(
            f"The multiply–adds cannot be counted: the network does not run on one image of "
            f"{'×'.join(map(str, input_size))}: {first_line(error)}"
        ) from error
    parts: list[Part] = []
    if isinstance(model, PartialNet) and any(isinstance(module, PartialNetBlock) for module in model.modules()):
        for name, blocks, kind, prefixes in _describe(model):
            shape = training.shapes[prefixes[-1]]
            parts.append(
                Part(
                    name,
                    blocks,
                    kind,
                    (shape[-2], shape[-1]) if len(shape) == 4 else (1, 1),
                    shape[1],
                    training.count(prefixes),
                    folded.count(prefixes),
                )
            )
    return Complexity(input_size, tuple(parts), training.count(("",)), folded.count(("",)))


class ModuleCounts:
    """Multiply–adds, parameters and output shapes of every module, from one pass.

    It passes no data, unless the network looks at values; then the image is noise, on the network's own device.

    Args:
        model: The network.
        input_size: Of one image, (C, H, W).
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        try:
            self._count(model, input_size, torch.device("meta"))
        except Exception:  # whatever a network's code raises where it gets shapes only
            parameter = next(model.parameters(), None)
            self._count(model, input_size, torch.device("cpu") if parameter is None else parameter.device)

    def _count(self, model: nn.Module, input_size: tuple[int, int, int], device: torch.device) -> None:
        # the counter wants a gradient function behind every view of a parameter, such as an expanded class token
        self.model = copy.deepcopy(model).eval().to(device).requires_grad_(False)
        self.shapes: dict[str, torch.Size] = {}
        for name, module in self.model.named_modules():
            module.register_forward_hook(self._record_shape(name))
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        image = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
        # of PyTorch's kernels for attention, the plain one is the one whose products are counted on every device
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            self.model(image.to(device, dtype))
        root = type(self.model).__name__
        flops = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
        self.macs = {name.removeprefix(root).removeprefix("."): count / 2 for name, count in flops.items()}

    def _record_shape(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                self.shapes[name] = output.shape

        return hook

    def count(self, prefixes: tuple[str, ...]) -> Count:
        """Sum over the modules named; the empty name is the whole network."""
        modules = [self.model.get_submodule(prefix) for prefix in prefixes]
        params = sum(parameter.numel() for module in modules for parameter in module.parameters())
        return Count(params / 1e6, sum(self.macs.get(prefix, 0) for prefix in prefixes) / 1e9)


def _describe(model: PartialNet) -> list[tuple[str, int, str, tuple[str, ...]]]:
    """Name, number of blocks, kind and modules of every part."""
    size = model.patch_embed.proj.kernel_size[0]
    parts: list[tuple[str, int, str, tuple[str, ...]]] = [("stem", 0, f"conv {size}×{size}", ("patch_embed",))]
    for index, stage in enumerate(model.stages):
        blocks = list(stage.blocks)  # type: ignore[arg-type]
        # a searched stage may convolve all channels in some blocks and attend in others
        kind = ", ".join(dict.fromkeys(mixer_kind(block.mixer) for block in blocks)) or "no blocks"
        if any(isinstance(block.mlp_attention, PATConv) for block in blocks):
            kind += " + PAT_sp"
        parts.append((f"stage {index + 1}", len(blocks), kind, (f"stages.{index}",)))
    head = ("conv_head", "classifier")
    parts.append(("head", 0, "pool, conv 1×1, dense", head))
    return parts


def mixer_kind(mixer: nn.Module) -> str:
    """What the paper calls a block's mixer."""
    if isinstance(mixer, PATConv):
        if isinstance(mixer.attn, nn.Identity):
            return "PConv" if mixer.attn_channels else "conv"
        kind = "PAT_sf" if isinstance(mixer.attn, SelfAttention2d) else "PAT_ch"
        if not isinstance(mixer.attn, (SelfAttention2d, GaussianSE)):
            kind += f" ({type(mixer.attn).__name__})"
        return kind if mixer.attention_scope == "partial" else f"{kind}, full"
    if isinstance(mixer, nn.Conv2d):
        return "depthwise conv" if mixer.groups > 1 else "conv"
    return type(mixer).__name__
