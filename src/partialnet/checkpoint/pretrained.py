"""timm's pretrained weights, if they are on this machine: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache

from partialnet.errors import UserError
from partialnet.messages import first_line
from partialnet.timm_configuration import configuration_named

from .classifier import Checkpoint


def load_pretrained(name: str) -> Checkpoint:
    """A network of timm's registry with its pretrained weights, in evaluation mode.

    Args:
        name: Its name, with the tag of the weights or without, which takes timm's default.

    Raises:
        UserError: There are no such weights, they are not on this machine, or damaged.
    """
    config: Any = configuration_named(name)
    if config is None or not config.has_weights:
        raise UserError(
            f"There are no pretrained weights of {name!r}, the name of an untrained network; give a checkpoint or run "
            "folder."
        )
    path = _local_file(config)
    if path is None:
        raise UserError(
            f"The pretrained weights of {name!r} are not on this machine; fetch them once where there is a network "
            f"with `timm.create_model({name!r}, pretrained=True)`, or give a checkpoint."
        )
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except Exception as error:  # timm's readers raise whatever a damaged file leads them to
        raise UserError(f"The pretrained weights {str(path)!r} cannot be read: {first_line(error)}") from error
    return Checkpoint(model.eval(), name, input_config=timm.data.resolve_data_config(model=model))


def _local_file(config: Any) -> Path | None:
    """Where timm, or ``hf download``, has put the weights of a configuration."""
    if config.file:
        return Path(config.file) if Path(config.file).is_file() else None
    if config.hf_hub_id:
        repository, _, revision = str(config.hf_hub_id).partition("@")
        name = config.hf_hub_filename or "pytorch_model.bin"
        for file in (name.replace("pytorch_model.bin", "model.safetensors"), name):
            found = try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(found, str):  # else nothing is known of it, or that it does not exist
                return Path(found)
    if config.url:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / str(config.url).rpartition("/")[2]
        return cached if cached.is_file() else None
    return None
