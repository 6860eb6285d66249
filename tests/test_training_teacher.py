"""Distillation: what the teacher sees, the loss, and a run that has one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import Train, metrics

from partialnet.checkpoint import create_checkpoint, load
from partialnet.errors import UserError
from partialnet.training.run import TrainResult
from partialnet.training.teacher import Teacher, distillation_loss


def test_teacher_sees_its_own_normalisation() -> None:
    checkpoint = create_checkpoint("test_resnet", num_classes=3)
    checkpoint.input_config |= {"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    pixels = torch.rand(2, 3, 64, 64)

    def normalised(mean: list[float], std: list[float]) -> Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    student = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    answer = Teacher(checkpoint, student)(normalised(**student))
    expected = checkpoint.model(normalised([0.1, 0.2, 0.3], [0.9, 0.8, 0.7]))
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)


def test_distillation_loss() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    p, q = ([math.exp(v / 2) for v in row] for row in ([3.0, 0.0], [1.0, 2.0]))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    expected = 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_from_a_run(
    finished_run: TrainResult, train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train_tiny("plain")
    assert "taught by" not in capsys.readouterr().err
    taught = train_tiny("taught", teacher=str(finished_run.folder))
    assert f"partialnet_t0 at 32×32, taught by {finished_run.folder}." in capsys.readouterr().err
    assert metrics(plain.folder)[0]["train_loss"] != metrics(taught.folder)[0]["train_loss"]
    names = set(load(taught.folder).model.state_dict())
    assert names == set(load(plain.folder).model.state_dict())


def test_teacher_of_other_classes(train_tiny: Train, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    create_checkpoint("test_resnet", num_classes=5).save(folder)
    with pytest.raises(UserError, match="5 classes"):
        train_tiny(teacher=str(folder))
