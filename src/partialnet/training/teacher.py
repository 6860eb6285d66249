"""Distillation: a trained network whose answers are learnt as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partialnet.checkpoint import Checkpoint, load
from partialnet.checkpoint.pretrained import load_pretrained
from partialnet.errors import UserError
from partialnet.timm_configuration import configuration_of


class Teacher(nn.Module):
    """A network that answers for images prepared for another network.

    Args:
        checkpoint: The trained network.
        input_config: How the images that it is given are prepared.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, checkpoint: Checkpoint, input_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = checkpoint.model.eval().requires_grad_(False)
        self._own = [torch.tensor(checkpoint.input_config[name]) for name in ("mean", "std")]
        self.expect(input_config)
        fixed = configuration_of(checkpoint.model).get("fixed_input_size")
        self.size = tuple(checkpoint.input_config["input_size"][1:]) if fixed else None

    def expect(self, input_config: Mapping[str, Any]) -> None:
        """Take images that are prepared like this from now on."""
        mean, std = (torch.tensor(input_config[name]) for name in ("mean", "std"))
        own_mean, own_std = self._own
        self.register_buffer("scale", (std / own_std).view(-1, 1, 1))
        self.register_buffer("shift", ((mean - own_mean) / own_std).view(-1, 1, 1))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalised for the student → logits (B, classes)."""
        images = images * self.scale + self.shift
        if self.size is not None and images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.model(images)


def load_teacher(source: str, class_names: Sequence[str], input_config: Mapping[str, Any]) -> Teacher:
    """A checkpoint, a run folder, or a timm model whose pretrained weights are on this machine, as a teacher.

    Args:
        source: Which of them.
        class_names: The student's classes.
        input_config: How the student's images are prepared.

    Raises:
        UserError: There is no such thing, or it knows other classes.
    """
    checkpoint = load(source) if Path(source).exists() or not timm.is_model(source) else load_pretrained(source)
    if checkpoint.num_classes != len(class_names) or (
        checkpoint.class_names and tuple(checkpoint.class_names) != tuple(class_names)
    ):
        raise UserError(
            f"The teacher {source!r} knows {checkpoint.num_classes} classes, which are not the "
            f"{len(class_names)} of the data; train it on the same classes first."
        )
    return Teacher(checkpoint, input_config)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Kullback–Leibler divergence of the softened answers, mean over images, times T²; a scalar, in nats.

    Args:
        logits: The student's, (B, classes).
        teacher_logits: The teacher's, (B, classes).
        temperature: T, by which both are divided first.

    Source: G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    student = F.log_softmax(logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
