"""Checkpoints of classifiers: one safetensors file that is complete in itself.

A run folder holds ``model.safetensors`` and ``config.json``. The file's own header repeats the configuration, so the
file alone is enough for us; the folder is what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from partialnet.errors import UserError
from partialnet.folding import fold
from partialnet.layers.inference import Runtime
from partialnet.messages import first_line, similar_names
from partialnet.models.partialnet import default_cfgs
from partialnet.models.released import ReleasedNetwork
from partialnet.timm_configuration import configuration_of
from partialnet.torchvision_networks import ARCHITECTURE, PREFIX

from .foreign import build_released, read_foreign, variant_of
from .stored_network import load_tensors, read_network, save_network, serialize_network, using_configuration
from .timm_training import TimmTraining

_INPUT_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass
class Checkpoint:
    """A network with everything that is needed to use it.

    Attributes:
        model: The network, in evaluation mode.
        architecture: Its name in timm's registry.
        model_args: What ``timm.create_model`` is given besides the name.
        class_names: Name of each class, in the order of the logits; empty where unknown.
        input_config: timm's ``input_size`` (C, H, W), ``mean``, ``std`` (RGB, of values in [0, 1]), ``interpolation``,
            ``crop_pct`` and ``crop_mode``.
        report: For a released checkpoint: what was loaded, renamed and left out.
        folded: Whether the network is folded; (H, W) if for images of that size only.
        runtime: Runtime for which the folded layers are written; None where they have the plain form.
        training: How it was trained: the run's configuration with its seed, the epoch, the accuracy it reached.
    """

    model: nn.Module
    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    input_config: dict[str, Any] = field(default_factory=dict)
    report: str = ""
    folded: bool | tuple[int, int] = False
    runtime: Runtime | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 of a network that gives features only."""
        return getattr(self.model, "num_classes", 0) or 0

    @property
    def class_labels(self) -> tuple[str, ...]:
        """What to call each class: its name, or "class 0", "class 1", … where names are unknown."""
        return self.class_names or tuple(f"class {index}" for index in range(self.num_classes))

    def fold(self, img_size: tuple[int, int] | None = None, runtime: Runtime | None = None) -> Checkpoint:
        """A copy with the network folded for inference; see ``partialnet.fold``."""
        model = fold(self.model, img_size, runtime)
        return replace(self, model=model, folded=img_size or self.folded or True, runtime=runtime or self.runtime)

    def resized(self, img_size: int | None) -> Checkpoint:
        """The same network for square images of ``img_size`` pixels; None keeps its own size.

        Raises:
            UserError: It takes no images of that size.
        """
        channels, height, width = self.input_config["input_size"]
        if img_size is None or (height, width) == (img_size, img_size):
            return self
        if isinstance(self.folded, tuple):
            raise UserError(
                f"The network was folded for images of {self.folded[0]}×{self.folded[1]} pixels; give the run it came "
                "from."
            )
        like = next(self.model.parameters())
        try:
            with torch.no_grad():
                self.model(torch.zeros(1, channels, img_size, img_size, dtype=like.dtype, device=like.device))
        except (ValueError, AssertionError, RuntimeError) as error:
            raise UserError(
                f"{self.architecture} takes no images of {img_size}×{img_size} pixels: {first_line(error)}"
            ) from error
        return replace(self, input_config={**self.input_config, "input_size": [channels, img_size, img_size]})

    def config(self) -> dict[str, Any]:
        """The configuration as timm's hub files hold it."""
        timms = configuration_of(self.model)
        config = {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "num_features": getattr(self.model, "num_features", 0),
            "model_args": self.model_args,
            "pretrained_cfg": {
                **{key: self.input_config[key] for key in _INPUT_KEYS if key in self.input_config},
                "num_classes": self.num_classes,
                "first_conv": timms.get("first_conv"),
                "classifier": timms.get("classifier"),
            },
        }
        if self.class_names:
            config["label_names"] = list(self.class_names)
        if self.folded:
            config["folded"] = self.folded
        if self.runtime:
            config["runtime"] = self.runtime
        if self.training:
            config["training"] = self.training
        return config

    def save(self, folder: str | Path) -> Path:
        """Write ``model.safetensors`` and ``config.json`` into ``folder``, each in one step; return the former."""
        return save_network(folder, self.model, self.config())

    def serialize(self, dtype: torch.dtype | None = None) -> bytes:
        """The content of a ``.safetensors`` file that ``load`` reads; ``dtype`` rounds the weights for storage."""
        return serialize_network(self.model, self.config(), dtype)


def create_checkpoint(name: str, class_names: Sequence[str] = (), /, **model_args: Any) -> Checkpoint:
    """A fresh network, with the input configuration that timm or torchvision gives for it.

    Args:
        name: A model of timm's registry, or ``torchvision:NAME`` for a classifier of torchvision.
        class_names: Name of each class.
        model_args: Further arguments of ``timm.create_model``.

    Raises:
        UserError: There is no model of this name, or it refuses the arguments.
    """
    if name.startswith(PREFIX):
        if "network" in model_args:
            raise UserError(f"Model arguments may not contain network: it is {name!r}.")
        return create_checkpoint(ARCHITECTURE, class_names, network=name.removeprefix(PREFIX), **model_args)
    if ":" in name or not timm.is_model(name):
        # a caller that takes files, too, comes here only when there is none
        missing = "" if Path(name).exists() else ", and no such file or folder"
        raise UserError(f"There is no model named {name!r}{missing}.{similar_names(name, timm.list_models())}")
    forbidden = set(model_args) & set(inspect.signature(timm.create_model).parameters)
    if forbidden:
        raise UserError(f"Model arguments may not contain {', '.join(sorted(forbidden))}.")
    try:
        model = timm.create_model(name, **model_args)
    except UserError:
        raise
    except Exception as error:  # timm's networks look up, convert and divide what they are given
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        given = f" with {model_args}" if model_args else ""
        raise UserError(f"{name} cannot be built{given}: {reason}") from error
    model.eval()
    input_config = resolve_data_config(model=model)
    input_config["input_size"] = (getattr(model, "in_chans", 3), *input_config["input_size"][1:])
    return Checkpoint(
        model, timm.models.split_model_name_tag(name)[0], model_args, tuple(class_names), _input_entries(input_config)
    )


def load(source: str | Path) -> Checkpoint:
    """Read a checkpoint, in evaluation mode.

    Args:
        source: A run folder, a ``.safetensors`` file, a released file of the authors (``.pth``, ``.ckpt``), a
            checkpoint of timm's training script (``.pth.tar``), or a name as in ``create_checkpoint``, which gives an
            untrained network.

    Raises:
        UserError: Nothing usable is there; the message says why. No code from a file is ever run.
    """
    path = Path(source)
    if path.is_dir():
        return _load_safetensors(path)
    if path.is_file():
        if path.suffix in (".onnx", ".xml", ".tflite"):
            raise UserError(
                f"{str(source)!r} is an exported file, which predict and eval take; give the run it came from."
            )
        return _load_safetensors(path) if path.suffix == ".safetensors" else _load_foreign(path)
    if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt", ".bin") or len(path.parts) > 1:
        raise UserError(f"There is no file or folder {str(source)!r}.")
    return create_checkpoint(str(source))


def _load_safetensors(path: Path) -> Checkpoint:
    stored = read_network(path, "classification")
    config = stored.config
    with using_configuration(stored.path):
        pretrained = config["pretrained_cfg"]
        model_args = {**config.get("model_args", {}), "num_classes": config["num_classes"]}
        names = pretrained.get("label_names") or config.get("label_names") or ()
        checkpoint = create_checkpoint(config["architecture"], names, **model_args)
        checkpoint.input_config |= {key: pretrained[key] for key in _INPUT_KEYS if key in pretrained}
        check_configuration(checkpoint)
        checkpoint.training = dict(config.get("training") or {})
        if folded := config.get("folded"):
            size = None if folded is True else (int(folded[0]), int(folded[1]))
            checkpoint = checkpoint.fold(size, config.get("runtime"))
    load_tensors(checkpoint.model, stored.tensors, stored.path)
    return checkpoint


def check_configuration(checkpoint: Checkpoint) -> None:
    """Refuse class names and preprocessing that would fail only when they are used.

    Raises:
        ValueError: An entry does not fit; the message names it.
    """
    names, config = checkpoint.class_names, checkpoint.input_config
    num_classes = checkpoint.num_classes
    if names and (len(names) != num_classes or not all(isinstance(name, str) for name in names)):
        raise ValueError(f"label_names must hold {num_classes} texts, one for each class")
    size = config["input_size"]
    if not (isinstance(size, (list, tuple)) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ValueError(f"input_size={size!r} must be [channels, height, width]")
    for key in ("mean", "std"):
        values = config[key]
        if not (
            isinstance(values, (list, tuple))
            and values
            and all(isinstance(value, (int, float)) and (key == "mean" or value > 0) for value in values)
        ):
            raise ValueError(
                f"{key}={values!r} must hold a number for each channel{'' if key == 'mean' else ', above 0'}"
            )
    if not isinstance(config["crop_pct"], (int, float)) or config["crop_pct"] <= 0:
        raise ValueError(f"crop_pct={config['crop_pct']!r} must be a positive number")
    if config["interpolation"] not in _INTERPOLATIONS:
        raise ValueError(f"interpolation={config['interpolation']!r} must be one of {', '.join(_INTERPOLATIONS)}")


def _load_foreign(path: Path) -> Checkpoint:
    found = read_foreign(path)
    return _load_released(path, found) if isinstance(found, ReleasedNetwork) else _load_timm(path, found)


def _load_released(path: Path, released: ReleasedNetwork) -> Checkpoint:
    input_config = resolve_data_config(pretrained_cfg=default_cfgs["partialnet_t0"].default.to_dict())
    model, arguments = build_released(path, released), released.arguments
    return Checkpoint(model, variant_of(released), arguments, (), _input_entries(input_config), released.report)


def _load_timm(path: Path, training: TimmTraining) -> Checkpoint:
    checkpoint = create_checkpoint(training.architecture, **training.model_args)
    channels = checkpoint.input_config["input_size"][0]
    try:
        data_config = resolve_data_config({**training.data_args, "in_chans": channels}, model=checkpoint.model)
        checkpoint.input_config |= _input_entries(data_config)
        checkpoint.input_config["input_size"] = (channels, *data_config["input_size"][1:])
        check_configuration(checkpoint)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"The training script's options in {str(path)!r} cannot be used: {error}") from error
    load_tensors(checkpoint.model, training.tensors, path)
    return checkpoint


def _input_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of timm's data configuration that are kept, with numpy numbers as Python's, as JSON needs them."""
    return {
        key: [float(item) if isinstance(item, np.floating) else item for item in value]
        if isinstance(value, (tuple, list))
        else value
        for key, value in config.items()
        if key in _INPUT_KEYS
    }
