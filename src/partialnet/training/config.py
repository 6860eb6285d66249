"""Every setting of a training run, with its type, its default, what is allowed and a line of help."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from typing import Any

import timm
import yaml
from timm.data import create_transform

from ..errors import UserError


def _setting(
    default: Any,
    help: str,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    most: float = math.inf,
) -> Any:
    metadata = {"help": help, "group": group, "choices": choices, "least": least, "most": most}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_network = partial(_setting, group="Network")
_data = partial(_setting, group="Data")
_augmentation = partial(_setting, group="Augmentation of the training images")
_optimization = partial(_setting, group="Optimisation")
_distillation = partial(_setting, group="Distillation")
_machine = partial(_setting, group="Machine")
_keeping = partial(_setting, group="Keeping")


@dataclass(frozen=True)
class TrainConfig:
    """One training run as a whole. A run folder keeps it as ``config.yaml``.

    Each field's metadata holds ``help``, ``group``, ``choices`` and the range from ``least`` to ``most``;
    ``create_config`` checks them.
    """

    model: str = _network(
        "partialnet_t0", "any timm model name; on the command line also a run folder, whose weights it gets"
    )
    weights: str | None = _network(
        None, "checkpoint or run folder to start from; the head is new where the classes differ"
    )
    freeze_backbone: bool = _network(False, "train the classifier's last layer only")
    layer_decay: float | None = _network(
        None, "factor of the learning rate from each group of layers to the one before it", least=0, most=1
    )
    drop_path_rate: float | None = _network(
        None, "stochastic depth of the last block; none takes the model's own", least=0, most=0.99
    )
    model_args: dict[str, Any] = _network(  # noqa: RUF009 - makes a field
        {}, "further arguments of timm.create_model, as KEY=VALUE"
    )

    img_size: int | None = _data(None, "height and width in pixels; none takes the model's own", least=8)
    val_share: float = _data(0.1, "share of each class held out where the data has no such part", least=0, most=0.9)
    workers: int = _data(2, "reading processes of each training process; 0 reads in the training process", least=0)
    max_broken_share: float = _data(0.01, "share of broken images from which training stops", least=0, most=1)

    crop_scale_min: float = _augmentation(
        0.08, "least area of a random crop; 1 keeps the whole image", least=0.001, most=1
    )
    horizontal_flip: float = _augmentation(0.5, "probability of mirroring left and right", least=0, most=1)
    auto_augment: str | None = _augmentation(None, "timm's augmentation string, such as rand-m5-mstd0.5")
    color_jitter: float = _augmentation(0.0, "strength of changes of brightness, contrast, saturation", least=0)
    erasing: float = _augmentation(0.0, "probability of random erasing", least=0, most=1)
    mixup: float = _augmentation(0.0, "alpha of mixup; 0 is off", least=0)
    cutmix: float = _augmentation(0.0, "alpha of cutmix; 0 is off", least=0)
    label_smoothing: float = _augmentation(0.0, "probability spread over the wrong classes", least=0, most=0.99)
    random_sizes: tuple[int, ...] = _augmentation((), "training sizes in pixels, one drawn for each batch", least=8)
    random_sizes_until: float = _augmentation(
        1.0, "share of the epochs with random sizes; later ones train at img_size", least=0, most=1
    )
    test_crop: float = _augmentation(0.9, "share of the short side that evaluation keeps", least=0.1, most=1)

    epochs: int = _optimization(300, "passes over the training images", least=1)
    batch_size: int = _optimization(128, "images in a step of one process", least=1)
    accumulate: int = _optimization(1, "batches whose gradients are added up before the weights change", least=1)
    optimizer: str = _optimization("adamw", "timm's optimiser name")
    lr: float = _optimization(4e-3, "highest learning rate, for lr_batch images in a step", least=0)
    lr_batch: int = _optimization(4096, "images in a step that lr is meant for", least=1)
    lr_scaling: str = _optimization("linear", "how lr follows the images in a step", choices=("linear", "sqrt", "none"))
    min_lr_ratio: float = _optimization(0.01, "last learning rate as a share of the highest", least=0, most=1)
    schedule: str = _optimization(
        "cosine", "timm's schedule of the learning rate", choices=("cosine", "step", "multistep", "poly", "tanh")
    )
    decay_epochs: tuple[float, ...] = _optimization(
        (30.0,), "epochs between two steps down (step), or at which to step down (multistep)", least=0
    )
    decay_rate: float = _optimization(0.1, "factor of a step down", least=0, most=1)
    warmup_epochs: float = _optimization(20.0, "epochs in which the learning rate rises linearly", least=0)
    weight_decay: float = _optimization(0.05, "decay of matrices and kernels; norms and biases do not decay", least=0)
    clip_grad: float | None = _optimization(None, "largest norm of the gradient; none does not clip", least=0)
    ema: float | None = _optimization(
        None, "decay of an average of the weights, which is then evaluated and kept", least=0, most=1
    )
    sync_bn: bool = _optimization(False, "share BatchNorm's statistics between processes")

    teacher: str | None = _distillation(None, "checkpoint, run folder or pretrained timm model to learn from")
    teacher_weight: float = _distillation(0.5, "share of the loss that compares with the teacher", least=0, most=1)
    teacher_temperature: float = _distillation(1.0, "temperature of the comparison", least=1e-3)

    precision: str = _machine(
        "auto", "arithmetic; auto is bf16 on a GPU that has it", choices=("auto", "fp32", "bf16", "fp16")
    )
    device: str = _machine("auto", "where to train", choices=("auto", "cpu", "cuda"))
    devices: int = _machine(1, "training processes on each machine; 0 is all GPUs", least=0)
    num_nodes: int = _machine(1, "machines", least=1)
    compile: bool = _machine(False, "compile the network with torch.compile")
    channels_last: bool = _machine(True, "keep network and images in the channels_last memory format")
    threads: int = _machine(0, "threads of each process on the CPU; 0 divides the cores", least=0)

    seed: int = _keeping(0, "seed of all randomness", least=0)
    save_minutes: float = _keeping(10.0, "minutes between two saved states within an epoch", least=0)
    loggers: tuple[str, ...] = _keeping((), "further loggers, besides CSV and TensorBoard", choices=("wandb", "mlflow"))


FIELDS: dict[str, dataclasses.Field[Any]] = {setting.name: setting for setting in fields(TrainConfig)}
_HINTS = typing.get_type_hints(TrainConfig)


def create_config(values: Mapping[str, Any], where: str = "the configuration") -> TrainConfig:
    """Settings from names and values, those not given at their defaults.

    Args:
        values: As YAML or an option gives them: lists for tuples, whole numbers for floats.
        where: What to call their source in an error.

    Raises:
        UserError: A name is unknown, or a value is of the wrong type, out of range or not among the choices.
    """
    checked = {}
    for name, value in values.items():
        if name not in FIELDS:
            near = get_close_matches(str(name).replace("-", "_"), FIELDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"There is no setting {str(name)!r} in {where}.{hint}")
        checked[name] = _checked(name, value)
    config = TrainConfig(**checked)
    _check_together(config)
    return config


def parse_setting(name: str, text: str) -> Any:
    """The value of a setting from an option's text: ``none``, lists with commas, numbers, words.

    Raises:
        UserError: It is not of the setting's type.
    """
    optional, kind = setting_type(name)
    if optional and text.lower() == "none":
        return None
    if typing.get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip() and text.lower() != "none"]
        return _checked(name, parts)
    return _checked(name, text)


def setting_type(name: str) -> tuple[bool, Any]:
    """Whether a setting may be none, and its type otherwise."""
    hint = _HINTS[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return True, next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return False, hint


def as_yaml(config: TrainConfig, title: str = "") -> str:
    """The whole configuration as YAML, each setting with its help as a comment; ``create_config`` reads it back."""
    lines = [f"# {title}"] if title else []
    width = max(map(len, FIELDS)) + 24
    group = ""
    for name, setting in FIELDS.items():
        if setting.metadata["group"] != group:
            group = setting.metadata["group"]
            lines += ["", f"# {group}"] if lines else [f"# {group}"]
        value = getattr(config, name)
        text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000)
        text = text.removesuffix("...\n").strip()
        lines.append(f"{f'{name}: {text}':{width}}  # {_help(setting)}")
    return "\n".join(lines) + "\n"


def read_config(path: str) -> dict[str, Any]:
    """Names and values of a YAML file; not yet checked.

    Raises:
        UserError: The file is missing, no YAML, or no mapping of names to values.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except FileNotFoundError:
        raise UserError(f"There is no configuration file {path!r}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path!r} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place is not None else ""
        raise UserError(
            f"{path!r} is no YAML file: {getattr(error, 'problem', None) or 'it cannot be read'}{line}."
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path!r} should hold lines of the form 'name: value'.")
    return content


def _help(setting: dataclasses.Field[Any]) -> str:
    choices = setting.metadata["choices"]
    return setting.metadata["help"] + (f": {', '.join(choices)}" if choices else "")


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML knows."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _checked(name: str, value: Any) -> Any:
    """The value in the setting's type and within its range."""
    optional, kind = setting_type(name)
    if value is None:
        if optional:
            return None
        raise UserError(f"{name} cannot be none.")
    metadata = FIELDS[name].metadata
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            value = [value]
        converted: Any = tuple(_converted(name, item, inner) for item in value)
        items = converted
    else:
        converted = _converted(name, value, kind)
        items = (converted,)
    for item in items:
        if metadata["choices"] and item not in metadata["choices"]:
            near = get_close_matches(str(item), metadata["choices"], n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"{name} is {item!r} but must be one of {', '.join(metadata['choices'])}{hint}")
        if isinstance(item, (int, float)) and not metadata["least"] <= item <= metadata["most"]:
            most = "" if math.isinf(metadata["most"]) else f" and at most {metadata['most']:g}"
            raise UserError(f"{name} is {item:g} but must be at least {metadata['least']:g}{most}.")
    return converted


def _converted(name: str, value: Any, kind: Any) -> Any:
    """``value`` as int, float, bool, str or dict; YAML reads 1e-3 as text, options give text only."""
    wrong = UserError(f"{name} is {value!r} but must be {_KINDS[typing.get_origin(kind) or kind]}.")
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if kind in (int, float):
        if isinstance(value, bool):
            raise wrong
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise wrong from None
        if not math.isfinite(number) or (kind is int and number != int(number)):
            raise wrong
        return int(number) if kind is int else number
    if not isinstance(value, Mapping):
        raise wrong
    return dict(value)


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping of names to values",
}


def _check_together(config: TrainConfig) -> None:
    """What can only be said of several settings, or by asking timm."""
    if not timm.is_model(config.model.split(".")[0]):
        near = get_close_matches(config.model, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `timm.list_models()` names them all."
        raise UserError(f"timm has no model {config.model!r}.{hint}")
    if config.freeze_backbone and config.weights is None:
        raise UserError("freeze_backbone without weights would train the last layer on random features; give weights.")
    if config.auto_augment is not None:
        try:
            create_transform(64, is_training=True, auto_augment=config.auto_augment)
        except Exception:  # timm asserts, indexes and converts as it goes along
            raise UserError(
                f"auto_augment is {config.auto_augment!r}, which timm does not understand; an example is "
                "rand-m5-mstd0.5."
            ) from None
