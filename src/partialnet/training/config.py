"""Every setting of a training run, with its type, its default and a line of help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of the configuration; ``help`` becomes the option's text and the comment in a printed configuration."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class TrainConfig:
    """One training run as a whole. A run folder keeps it as ``config.yaml``."""

    # network
    model: str = setting("partialnet_t0", "any timm model name")
    weights: str | None = setting(None, "checkpoint or run folder to start from; the head is new where classes differ")
    freeze_backbone: bool = setting(False, "train the classifier's last layer only")
    layer_decay: float | None = setting(None, "factor of the learning rate from each group of layers to the one before")
    drop_path_rate: float | None = setting(None, "stochastic depth; None is the model's default")
    model_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of timm.create_model, KEY=VALUE"}
    )

    # data
    img_size: int | None = setting(None, "height and width in pixels; None is the model's own")
    val_share: float = setting(0.1, "share of each class held out where the data has no validation part")
    workers: int = setting(2, "reading processes for each training process; 0 reads in the training process")
    max_broken_share: float = setting(0.01, "share of broken images from which training stops")

    # augmentation (training images)
    crop_scale_min: float = setting(0.08, "least area of a random crop; 1 keeps the whole image")
    horizontal_flip: float = setting(0.5, "probability of mirroring left and right")
    auto_augment: str | None = setting(None, "timm's augmentation string, such as rand-m5-mstd0.5")
    color_jitter: float = setting(0.0, "strength of brightness, contrast and saturation changes")
    erasing: float = setting(0.0, "probability of random erasing")
    mixup: float = setting(0.0, "alpha of mixup; 0 is off")
    cutmix: float = setting(0.0, "alpha of cutmix; 0 is off")
    label_smoothing: float = setting(0.0, "probability spread over the wrong classes")
    random_sizes: tuple[int, ...] = setting((), "training sizes in pixels, one drawn for each batch")
    random_sizes_until: float = setting(
        1.0, "share of the epochs with random sizes; the rest train at img_size (the authors' two phases)"
    )
    test_crop: float = setting(0.9, "share of the short side that is kept in evaluation")

    # optimisation
    epochs: int = setting(300, "passes over the training images")
    batch_size: int = setting(128, "images in a step of one process")
    accumulate: int = setting(1, "batches added up before the weights change")
    optimizer: str = setting("adamw", "timm's optimiser name")
    lr: float = setting(4e-3, "highest learning rate for lr_batch images; scaled to the effective batch")
    lr_batch: int = setting(4096, "effective batch that lr is meant for")
    lr_scaling: str = setting("linear", "how lr follows the effective batch", choices=("linear", "sqrt", "none"))
    min_lr_ratio: float = setting(0.01, "last learning rate as a share of the highest")
    schedule: str = setting("cosine", "timm's schedule", choices=("cosine", "step", "multistep", "poly", "tanh"))
    warmup_epochs: float = setting(20.0, "epochs in which the learning rate rises linearly")
    weight_decay: float = setting(0.05, "decay of matrices and kernels; norms and biases do not decay")
    clip_grad: float | None = setting(None, "largest norm of the gradient")
    ema: float | None = setting(None, "decay of an average of the weights, which is then evaluated and kept")
    sync_bn: bool = setting(False, "share BatchNorm's statistics over processes")

    # distillation
    teacher: str | None = setting(None, "checkpoint, run folder or pretrained timm model to learn from")
    teacher_weight: float = setting(0.5, "share of the loss that compares with the teacher")
    teacher_temperature: float = setting(1.0, "temperature of the comparison")

    # machine
    precision: str = setting(
        "auto", "arithmetic; auto is bf16 on a GPU that has it", choices=("auto", "fp32", "bf16", "fp16")
    )
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda"))
    devices: int = setting(1, "training processes on each machine; 0 is all GPUs")
    num_nodes: int = setting(1, "machines")
    compile: bool = setting(False, "torch.compile the network")
    channels_last: bool = setting(True, "memory format of the network and its images")
    threads: int = setting(0, "threads of each process on the CPU; 0 divides the cores")

    # keeping
    seed: int = setting(0, "seed of all randomness")
    save_minutes: float = setting(10.0, "minutes between two states within an epoch")
    loggers: tuple[str, ...] = setting((), "further loggers, besides CSV and TensorBoard", choices=("wandb", "mlflow"))
