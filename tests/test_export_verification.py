"""What is told where an exported network answers otherwise than the original, or without a number."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import Command
from conftest import randomize_parameters as randomize
from exports import CLASSES

from partialnet.checkpoint import Checkpoint, create_checkpoint, load
from partialnet.deploy.export import Export, export
from partialnet.deploy.verify import Accuracy, Agreement, compare_accuracy, compare_logits
from partialnet.errors import UserError
from partialnet.evaluation import Evaluation, evaluate
from partialnet.sources import open_source

pytestmark = pytest.mark.usefixtures("converted_once")


def test_overflow_of_the_exported_network_is_told():
    # max() of a list passes over NaN, so that the largest error would come out as 0
    def answering(value: float) -> SimpleNamespace:
        return SimpleNamespace(run=lambda batch: torch.full((len(batch), 3), value))

    batches = [torch.zeros(2, 3, 8, 8)]
    assert compare_logits(answering(1.0), answering(1.5), batches).max_error == 0.5
    for overflow in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="NaN or infinity"):
            compare_logits(answering(1.0), answering(overflow), batches)


def test_errors_of_logits_are_compared_with_their_spread():
    def answering(*logits: float) -> SimpleNamespace:
        return SimpleNamespace(run=lambda batch: torch.tensor(logits, dtype=torch.float32)[:, None])

    batches = [torch.zeros(3, 3, 8, 8)]
    original = answering(11, 10, 12)
    assert compare_logits(original, original, batches).error_to_spread == 0
    assert compare_logits(original, answering(11, 11, 11), batches).error_to_spread == pytest.approx(1)
    assert compare_logits(original, answering(11, 10, 13.5), batches).error_to_spread == pytest.approx(1.5 / 2**0.5)
    level = answering(0.1, 0.1, 0.1)  # whose mean is not quite that
    assert compare_logits(level, original, batches).error_to_spread is None


def test_overflow_of_the_network_itself_is_no_agreement():
    def answering(*rows: tuple[float, float]) -> SimpleNamespace:
        return SimpleNamespace(run=lambda batch: torch.tensor(rows))

    batches = [torch.zeros(3, 3, 8, 8)]
    nan, inf = float("nan"), float("inf")
    original = answering((1, 2), (nan, nan), (0, inf))
    found = compare_logits(original, answering((1, 2.5), (nan, nan), (0, inf)), batches)
    assert (found.num_images, found.num_not_finite, found.top1) == (3, 2, pytest.approx(1 / 3))
    assert (found.max_error, found.max_logit) == (0.5, 2)
    with pytest.raises(UserError, match="The exported network answers NaN"):  # to the one image that matters
        compare_logits(original, answering((nan, 2), (nan, nan), (0, inf)), batches)
    broken = answering(*[(nan, nan)] * 3)
    with pytest.raises(UserError, match="The network itself answers NaN"):
        compare_logits(broken, broken, batches)


class DarkOnly(torch.nn.Module):
    """Overflows with an image that is bright on the whole, as about half of all noise is."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = torch.nn.Conv2d(3, num_classes, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).mean((2, 3)) + torch.exp(1e6 * images.mean((1, 2, 3)))[:, None]


def test_network_without_an_answer_to_some_images(exportable, tmp_path):
    def evaluation(*predicted: int) -> Evaluation:
        known = np.array(predicted)
        return Evaluation(CLASSES, np.array([0, 1, 2, 3]), known, np.ones(4), known >= 0, {}, 1.0)

    assert compare_accuracy(evaluation(0, 1, -1, -1), evaluation(0, 2, -1, 3), held_out=True).agreement == 0.25

    result = export(replace(exportable, model=DarkOnly(len(CLASSES)).eval()), tmp_path / "net.onnx")
    noise = result.agreement["noise"]
    assert 0 < noise.num_not_finite < noise.num_images
    assert noise.top1 == 1 - noise.num_not_finite / noise.num_images
    assert json.loads((tmp_path / "net.onnx.json").read_text())["agreement"]["noise"]["num_not_finite"]


def test_an_export_that_disagrees_brings_a_float_one_and_a_warning(exportable, tmp_path, monkeypatch, command: Command):
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    half = tmp_path / "half.safetensors"
    run = ("export", exportable.save(tmp_path / "run").parent, "-f", "torch", "-o")
    result = command(*run, half, "-p", "fp16")
    kept = tmp_path / "half_fp32.safetensors"
    assert "Warning: fp16 agrees with PyTorch's class on 100.0% of the images" in result.err
    assert str(kept) in result.err
    assert json.loads(Path(f"{kept}.json").read_text())["precision"] == "fp32"
    assert json.loads(Path(f"{half}.json").read_text())["kept"] == kept.name
    before = kept.read_bytes()
    again = command(*run, half, "-p", "fp16")
    assert str(tmp_path / "half_fp32-2.safetensors") in again.err  # what is there was not named for writing
    assert kept.read_bytes() == before
    as_json = command(*run, half, "-p", "fp16", "--json", "-")
    assert json.loads(as_json.out)["precision"] == "fp16"
    assert "Warning: fp16 agrees with PyTorch's class" in as_json.err
    assert "do not rely on it" in command(*run, tmp_path / "full.safetensors").err
    assert not list(tmp_path.glob("full_*"))


def test_a_float_export_that_computes_something_else_is_told(exportable, tmp_path, monkeypatch, command: Command):
    def doubled(path: Path) -> Checkpoint:
        opened = load(path)
        for parameter in opened.model.classifier.parameters():
            parameter.data *= 2  # every image keeps its class
        return opened

    run = ("export", exportable.save(tmp_path / "run").parent, "-f", "torch", "-o")
    assert "Warning" not in command(*run, tmp_path / "right.safetensors").err
    monkeypatch.setattr("partialnet.deploy.export.load", doubled)
    wrong = command(*run, tmp_path / "wrong.safetensors")
    assert "same class 100.0%" in wrong.out
    assert "Warning: logits are off by up to 100.0% of the largest" in wrong.err


def test_logits_tell_what_a_single_class_cannot(tmp_path, monkeypatch, command: Command):
    def constant(path: Path) -> Checkpoint:
        opened = load(path)
        opened.model.classifier.weight.data.zero_()
        return opened

    one = create_checkpoint("partialnet_t0", ("yes",), num_classes=1, embed_dim=16, depths=(1, 1, 1, 1))
    randomize(one.model)
    run = ("export", one.save(tmp_path / "run").parent, "-f", "torch", "-p", "fp16", "-o", tmp_path / "net.safetensors")
    right = command(*run)
    assert "same class 100.0%" in right.out
    assert "Warning" not in right.err
    monkeypatch.setattr("partialnet.deploy.export.load", constant)
    wrong = command(*run)
    assert "same class 100.0%" in wrong.out
    error = json.loads((tmp_path / "net.safetensors.json").read_text())["agreement"]["photographs"]["error_to_spread"]
    assert error >= 1
    assert f"Warning: logits in fp16 are off by {error:.0%} of what they differ" in wrong.err
    assert f"{tmp_path / 'net_fp32.safetensors'} was written too" in wrong.err


def test_what_decides_whether_an_export_is_relied_on():
    """Labelled images before others, errors of logits beside classes, and the worst of all kinds of images."""

    def exported(noise: Agreement, photographs: Agreement, accuracy: Accuracy | None = None) -> Export:
        return Export(
            path=Path("net.onnx"),
            format="onnx",
            precision="int8",
            size_mb=1.0,
            held_out=True,
            unreadable=(),
            input_size=(3, 8, 8),
            folded_params_m=1.0,
            agreement={"noise": noise, "photographs": photographs},
            accuracy=accuracy,
        )

    near, far = Agreement(16, 0.1, 10.0, 1.0), Agreement(16, 3.0, 10.0, 1.0)
    assert exported(near, far).relative_error == exported(far, near).relative_error == 0.3
    assert exported(far, near).reliable  # errors on noise alone cost no class of a photograph
    assert not exported(near, Agreement(16, 0.1, 10.0, 0.97)).reliable
    assert not exported(near, Agreement(16, 0.1, 10.0, 1.0, error_to_spread=0.8)).reliable
    worse, better = (Accuracy(100, 0.9, 0.9, 0.0, agreement, True) for agreement in (0.97, 0.99))
    assert not exported(near, near, worse).reliable
    assert exported(near, Agreement(16, 0.1, 10.0, 0.97), better).reliable


def test_accuracy_on_labelled_images(exportable, exported_onnx, labelled_patterns):
    expected = evaluate(exportable, labelled_patterns)
    accuracy = exported_onnx.accuracy
    assert (accuracy.num_images, accuracy.held_out) == (120, True)
    assert accuracy.original == pytest.approx(expected.top1)
    assert accuracy.exported == pytest.approx(evaluate(open_source(exported_onnx.path), labelled_patterns).top1)
    assert json.loads(Path(f"{exported_onnx.path}.json").read_text())["accuracy"]["agreement"] == 1
