"""Checkpoints that other training code wrote with ``torch.save``: the authors' files, and those of timm's script.

Only tensors and plain values are read; no code from a file is ever run.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from partialnet.errors import UserError
from partialnet.messages import first_line
from partialnet.models import PartialNet
from partialnet.models.released import ReleasedNetwork, convert_released, is_released

from .stored_network import load_tensors, refuse_openvino_weights
from .timm_training import TimmTraining, read_timm_training

_VARIANT_OF_WIDTH = {
    32: "partialnet_t0",
    48: "partialnet_t1",
    64: "partialnet_t2",
    96: "partialnet_s",
    128: "partialnet_m",
    160: "partialnet_l",
}
#: Under which of its entries a checkpoint may hold the weights, an average before those trained
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")

_logger = logging.getLogger(__name__)


def load_released(path: str | Path, act_layer: str | None = None) -> nn.Module:
    """Build the network of one of the authors' checkpoints, in evaluation mode.

    Depths, width, split ratios, heads, blocks and classes are read off the tensors. What was loaded, renamed and left
    out is logged at level INFO by the logger ``partialnet.checkpoint.foreign``.

    Args:
        path: ``.pth`` or Lightning ``.ckpt``; the weights may be wrapped as ``state_dict``, ``model`` or
            ``state_dict_ema`` and prefixed with ``model.``.
        act_layer: "gelu" or "relu", which tensors do not show; None follows the width, as in the paper.

    Returns:
        A classifier; for a detection backbone, a network that returns its four normalised feature maps.

    Raises:
        UserError: The file is missing, truncated, holds anything but tensors, or is of another network.
    """
    path = Path(path)
    tensors = _unwrap(_read_pickled(path))
    if not is_released(tensors):
        raise UserError(f"{str(path)!r} is not a PartialNet of the authors' release: it has none of its layers.")
    return build_released(path, convert_released(tensors, act_layer))


def read_foreign(path: Path) -> ReleasedNetwork | TimmTraining:
    """Read a file that ``torch.save`` wrote, without building its network.

    Raises:
        UserError: It is damaged, holds anything but tensors and plain values, or is neither the authors' nor of timm's
            training script.
    """
    content = _read_pickled(path)
    tensors = _unwrap(content)
    if is_released(tensors):
        return convert_released(tensors)
    training = read_timm_training(content, tensors)
    if training is None:
        raise UserError(
            f"{str(path)!r} is neither a PartialNet of the authors' release, as it has none of its layers, nor a "
            "checkpoint of timm's training script, as it has no `arch` that names a model of timm."
        )
    return training


def build_released(path: Path, released: ReleasedNetwork) -> nn.Module:
    """The network that was read from ``path``, in evaluation mode; see ``load_released``.

    Raises:
        UserError: The tensors are not those of a PartialNet.
    """
    _logger.info("%s: %s", path.name, released.report)
    try:
        model = PartialNet(**released.arguments)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"The tensors in {str(path)!r} do not describe a PartialNet: {error}") from error
    num_stages = len(released.arguments["depths"])
    if not released.arguments["out_norms"]:
        load_tensors(model, released.state_dict, path)
        return model.eval()
    # a detection backbone has no head: its output are the normalised feature maps
    model.prune_intermediate_layers(num_stages)
    load_tensors(model, released.state_dict, path)
    return FeatureGetterNet(model, norm=True, out_indices=tuple(range(num_stages))).eval()


def variant_of(released: ReleasedNetwork) -> str:
    """Name of the variant of this width, or T2's where there is none: the arguments say all else."""
    return _VARIANT_OF_WIDTH.get(released.arguments["embed_dim"], "partialnet_t2")


def _read_pickled(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, if that is tensors and plain values only."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on pickle protocols, for whoever wrote the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {str(path)!r}.") from None
    except IsADirectoryError:
        raise UserError(f"{str(path)!r} is a folder, not a checkpoint.") from None
    except pickle.UnpicklingError as error:
        refuse_openvino_weights(path)
        raise UserError(
            f"{str(path)!r} holds something other than tensors, or is not a checkpoint; it was not loaded and nothing "
            "in it was run."
        ) from error
    except Exception as error:  # torch's reader raises whatever a damaged file leads it to
        refuse_openvino_weights(path)
        # what it says of a file without structure is about lists and keys of its own, and tells a reader nothing
        spoken = isinstance(error, (RuntimeError, EOFError, OSError)) and str(error)
        # its further sentences may advise to load the file with whatever code is in it
        reason = f": {first_line(error).partition('. ')[0].removesuffix('.')}" if spoken else ""
        raise UserError(f"{str(path)!r} is damaged or not a checkpoint{reason}.") from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict inside the wrappers that training scripts put around it."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        return {}
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
