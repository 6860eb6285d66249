"""Every setting of a training run, with its type, its default, what is allowed and a line of help."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar

import timm
from timm.data import create_transform
from timm.optim import get_optimizer_info, list_optimizers

from partialnet.checkpoint import load
from partialnet.errors import UserError
from partialnet.messages import similar_names
from partialnet.timm_configuration import configuration_named
from partialnet.torchvision_networks import PREFIX

from .settings import Settings, setting

_network = partial(setting, group="Network")
_data = partial(setting, group="Data")
_augmentation = partial(setting, group="Augmentation of the training images")
_optimization = partial(setting, group="Optimisation")
_distillation = partial(setting, group="Distillation")
_machine = partial(setting, group="Machine")
_keeping = partial(setting, group="Keeping")


@dataclass(frozen=True)
class RunConfig(Settings):
    """What every training run has, whatever the task. A run folder keeps its configuration as ``config.yaml``.

    Attributes:
        recipes: Package whose YAML files are this kind's recipes.
        has_few_sizes: Whether batches are of one size, or of a few.
    """

    recipes: ClassVar[str] = "partialnet.training.recipes"
    has_few_sizes: ClassVar[bool] = False

    model: str = _network(
        "partialnet_t0",
        "any timm model name; on the command line also a checkpoint or run folder, whose weights it gets",
    )
    weights: str | None = _network(
        None,
        "checkpoint, run folder or pretrained timm model to start from; the head is new where the classes differ",
        aliases=("init-from",),
    )
    layer_decay: float | None = _network(
        None, "factor of the learning rate from each group of layers to the one before it", least=0.01, most=1
    )
    drop_path_rate: float | None = _network(
        None, "stochastic depth of the last block; none takes the model's own", least=0, most=0.99
    )
    model_args: dict[str, Any] = _network(  # noqa: RUF009 - makes a field
        {}, "further arguments of timm.create_model, as KEY=VALUE"
    )

    val_share: float = _data(0.1, "share of each class to hold out if the data has no such part", least=0, most=0.9)
    workers: int = _data(
        2,
        "data-loading workers of each training process; 0 loads in the training process itself",
        least=0,
        may_change=True,
    )
    max_unreadable_share: float = _data(
        0.01, "training stops if a larger share of the images is unreadable", least=0, most=1, may_change=True
    )

    horizontal_flip: float = _augmentation(0.5, "probability of a left-right flip", least=0, most=1)

    epochs: int = _optimization(300, "passes over the training images", least=1)
    batch_size: int = _optimization(128, "images in a step of one process", least=1)
    accumulate: int = _optimization(1, "batches whose gradients are summed before the weights change", least=1)
    optimizer: str = _optimization("adamw", "name of an optimiser in timm")
    lr: float = _optimization(
        4e-3, "highest learning rate, for lr_batch images in a step", least=0, aliases=("learning-rate",)
    )
    lr_batch: int = _optimization(4096, "number of images in a step that lr is meant for", least=1)
    lr_scaling: str = _optimization(
        "linear", "how lr grows with the images in a step", choices=("linear", "sqrt", "none")
    )
    min_lr_ratio: float = _optimization(0.01, "final learning rate as a share of the highest", least=0, most=1)
    schedule: str = _optimization(
        "cosine", "timm's learning rate schedule", choices=("cosine", "step", "multistep", "poly", "tanh")
    )
    decay_epochs: tuple[float, ...] = _optimization(
        (30.0,),
        "epochs between two drops (step), or at which the rate drops (multistep)",
        least=0,
        follows_epochs=True,
    )
    decay_rate: float = _optimization(0.1, "factor of each drop", least=0, most=1)
    warmup_epochs: float = _optimization(
        20.0, "epochs over which the learning rate rises linearly", least=0, follows_epochs=True
    )
    weight_decay: float = _optimization(
        0.05, "weight decay, for matrices and kernels but not norms and biases", least=0
    )
    clip_grad: float | None = _optimization(None, "largest norm of the gradient; none turns clipping off", least=1e-6)
    ema: float | None = _optimization(
        None, "decay of a moving average of the weights, which is then evaluated and kept", least=0, most=1
    )
    sync_bn: bool = _optimization(False, "share BatchNorm's statistics between processes")

    precision: str = _machine(
        "auto", "arithmetic; auto is bf16 on GPUs that support it", choices=("auto", "fp32", "bf16", "fp16")
    )
    device: str = _machine("auto", "where to train", choices=("auto", "cpu", "cuda"), may_change=True)
    devices: int = _machine(1, "training processes on each machine; 0 is all GPUs", least=0, may_change=True)
    num_nodes: int = _machine(1, "number of machines", least=1, may_change=True)
    compile: bool = _machine(False, "compile the network with torch.compile")
    channels_last: bool = _machine(True, "keep network and images in the channels_last memory format")
    threads: int = _machine(0, "CPU threads of each process; 0 divides the cores among them", least=0, may_change=True)

    seed: int = _keeping(0, "seed for all randomness", least=0)
    save_minutes: float = _keeping(10.0, "minutes between two saved states within an epoch", least=0, may_change=True)
    loggers: tuple[str, ...] = _keeping(
        (), "further loggers, besides CSV and TensorBoard", choices=("wandb", "mlflow"), may_change=True
    )

    def check(self) -> None:
        """Refuse a network or an optimiser that timm does not have, and a schedule that could not begin.

        Torchvision's networks are checked when they are built.

        Raises:
            UserError: Something does not fit.
        """
        if not self.model.startswith(PREFIX) and not timm.is_model(self.model.split(".")[0]):
            near = get_close_matches(self.model, timm.list_models(), n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else " `timm.list_models()` names them all."
            raise UserError(f"timm has no model {self.model!r}.{hint}")
        configuration_named(self.model)
        if self.optimizer.lower() not in list_optimizers():
            hint = similar_names(self.optimizer, map(str, list_optimizers()))
            raise UserError(f"timm has no optimiser named {self.optimizer!r}.{hint}")
        if get_optimizer_info(self.optimizer.lower()).second_order:
            raise UserError(
                f"The optimiser {self.optimizer!r} needs second derivatives, which training does not compute."
            )
        if self.schedule in ("step", "multistep") and not (self.decay_epochs and min(self.decay_epochs) > 0):
            raise UserError(f"decay_epochs must hold a positive number for the schedule {self.schedule!r}.")
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs={self.warmup_epochs:g} must be less than epochs={self.epochs}.")

    @classmethod
    def network_of_run(cls, run: str) -> dict[str, Any]:
        """The settings that make a network like that of a run folder: ``model``, ``model_args`` and what belongs to it.

        Raises:
            UserError: Nothing usable is there.
        """
        source = load(run)
        # classes and image size follow from the images and the recipe
        left = ("num_classes", "img_size")
        arguments = {name: value for name, value in source.model_args.items() if name not in left}
        return {"model": source.architecture, "model_args": arguments}


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Training of a classifier."""

    has_few_sizes: ClassVar[bool] = True

    freeze_backbone: bool = _network(False, "train the classifier's last layer only")

    img_size: int | None = _data(None, "height and width in pixels; none takes the model's own", least=8)

    crop_scale_min: float = _augmentation(
        0.08, "least area of a random crop; 1 keeps the whole image", least=0.001, most=1
    )
    auto_augment: str | None = _augmentation(None, "an augmentation in timm's notation, such as rand-m5-mstd0.5")
    color_jitter: float = _augmentation(0.0, "strength of random brightness, contrast and saturation", least=0)
    erasing: float = _augmentation(0.0, "probability of random erasing", least=0, most=1)
    mixup: float = _augmentation(0.0, "alpha of mixup; 0 is off", least=0)
    cutmix: float = _augmentation(0.0, "alpha of cutmix; 0 is off", least=0)
    label_smoothing: float = _augmentation(0.0, "probability spread over the wrong classes", least=0, most=0.99)
    random_sizes: tuple[int, ...] = _augmentation((), "training sizes in pixels, one drawn for each batch", least=8)
    random_sizes_until: float = _augmentation(
        1.0, "share of the epochs with random sizes; the rest train at img_size", least=0, most=1
    )
    test_crop: float = _augmentation(0.9, "share of the shorter side that evaluation keeps", least=0.1, most=1)

    teacher: str | None = _distillation(None, "checkpoint, run folder or pretrained timm model to learn from")
    teacher_weight: float = _distillation(0.5, "share of the loss that comes from the teacher", least=0, most=1)
    teacher_temperature: float = _distillation(1.0, "temperature of that loss", least=1e-3)

    def check(self) -> None:
        """Refuse what does not fit together, and augmentations that timm does not know.

        Raises:
            UserError: Something does not fit.
        """
        super().check()
        if self.freeze_backbone and self.weights is None:
            raise UserError(
                "freeze_backbone without weights would train the last layer on random features; give weights."
            )
        if self.auto_augment is not None:
            try:
                create_transform(64, is_training=True, auto_augment=self.auto_augment)
            except Exception:  # timm asserts, indexes and converts as it goes along
                raise UserError(
                    f"auto_augment is {self.auto_augment!r}, which timm does not understand; an example is "
                    "rand-m5-mstd0.5."
                ) from None
