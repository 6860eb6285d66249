"""Exports in every format and precision: they agree with PyTorch, or are refused with a reason."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commands import Command, assert_mistake
from exports import CLASSES, small_classifier

from partialnet.deploy.export import export
from partialnet.deploy.exported_files import SUFFIXES
from partialnet.deploy.runtimes import ExportedModel, load_exported, openvino_core
from partialnet.errors import UserError
from partialnet.prediction import Classifier
from partialnet.sources import open_source

pytestmark = pytest.mark.usefixtures("converted_once")


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_float_export_agrees_and_keeps_classes(format, exportable, patterns, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    result = export(exportable, tmp_path / f"net{suffix}", format)
    for agreement in result.agreement.values():
        assert agreement.top1 == 1
        assert agreement.max_error <= 1e-4 * agreement.max_logit
    report = json.loads((tmp_path / f"net{suffix}.json").read_text())
    assert report["agreement"]["photographs"]["top1"] == 1
    opened = load_exported(result.path)
    assert opened.class_names == CLASSES
    assert list(opened.input_config["input_size"]) == [3, 64, 64]
    expected = [found.classes[0][0] for _, found in Classifier(exportable).predict(patterns)]
    assert [found.classes[0][0] for _, found in Classifier(opened).predict(patterns)] == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_onnx_graph_is_small_and_plain(exported_onnx):
    check_by_onnx(exported_onnx.path)
    forbidden = {"ScatterND", "ScatterElements", "GatherND", "If", "Loop", "BatchNormalization"}
    assert not forbidden & set(exported_onnx.operators)
    assert exported_onnx.size_mb <= 1.02 * 4 * exported_onnx.folded_params_m  # hardly larger than its weights


def test_dynamic_batch(exportable, tmp_path):
    path = export(exportable, tmp_path / "net.onnx", dynamic_batch=True).path
    opened = load_exported(path)
    assert opened.model.batch_size is None
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(images), exportable.model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("openvino", "fp16"), ("openvino", "bf16")])
def test_half_precision(format, precision, exportable, patterns, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    half = export(exportable, tmp_path / f"half{suffix}", format, precision, calibration=patterns)
    agreement = half.agreement["photographs"]
    # bfloat16 has 8 bits of precision, of which a random network loses some in each of its layers
    assert agreement.max_error <= (0.4 if precision == "bf16" else 0.05) * agreement.max_logit
    assert half.size_mb < 0.8 * 4 * half.folded_params_m
    check_by_onnx(half.path)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_calibrated_and_small(format, exportable, patterns, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    output = tmp_path / f"net{suffix}"
    result = export(exportable, output, format, "int8", calibration=patterns)
    assert result.agreement["photographs"].num_images == len(patterns)
    # a random network is no fair test of int8; a poor one must leave the float file too
    assert (result.kept is None) == result.reliable
    if result.kept is not None:
        assert load_exported(result.kept).class_names == CLASSES
    bits = 8 * result.size_mb / result.folded_params_m
    assert bits < 32
    check_by_onnx(output)
    if format == "onnx":  # larger logits than those of the images that it was calibrated with are not cut off
        graph = onnx.load(output).graph
        assert [node.op_type for node in graph.node if "logits" in node.output] == ["Gemm"]
    # processors without VNNI add pairs of products in 16 bits
    weights = _int8_weights(output)
    assert len(weights) > 10
    assert any(weight.shape.count(len(CLASSES)) for weight in weights)  # the classifier
    assert max(np.abs(weight.astype(int)).max() for weight in weights) <= 64


def check_by_onnx(path: Path) -> None:
    """Whether an ONNX file follows the standard, about which onnxruntime is lenient."""
    if path.suffix == ".onnx":
        onnx.checker.check_model(path, full_check=True)


def _int8_weights(path: Path) -> list[np.ndarray]:
    if path.suffix == ".onnx":
        tensors = onnx.load(path).graph.initializer
        weights = [
            onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8
        ]
    else:
        operators = openvino_core().read_model(path).get_ops()
        constants = [operator for operator in operators if operator.get_type_name() == "Constant"]
        weights = [constant.data for constant in constants if constant.get_element_type().get_type_name() == "i8"]
    return [weight for weight in weights if weight.ndim > 1]


def test_attention_over_as_many_positions_as_heads(tmp_path):
    # 64×64 pixels leave 2×2 positions for the 4 heads of stage 4, where OpenVINO got one form of attention wrong
    result = export(small_classifier(depths=(1, 1, 1, 1)), tmp_path / "net.xml", "openvino")
    noise = result.agreement["noise"]
    assert noise.max_error <= 1e-4 * noise.max_logit


def test_original_is_untouched(exportable, tmp_path):
    before = {name: tensor.clone() for name, tensor in exportable.model.state_dict().items()}
    export(exportable, tmp_path / "net.safetensors", "torch", img_size=96)
    assert exportable.input_config["input_size"] == [3, 64, 64]
    for name, tensor in exportable.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("precision", "error", "size"), [("fp32", 1e-5, 4), ("fp16", 0.05, 2), ("bf16", 0.4, 2)])
def test_torch_format_is_a_folded_checkpoint(precision, error, size, exportable, patterns, tmp_path):
    result = export(exportable, tmp_path / "net.safetensors", "torch", precision)
    assert result.agreement["photographs"].max_error <= error * result.agreement["photographs"].max_logit
    assert result.size_mb <= 1.02 * size * result.folded_params_m + 0.1
    opened = open_source(result.path)
    assert opened.folded is True
    assert opened.class_names == CLASSES
    assert list(opened.input_config["input_size"]) == [3, 64, 64]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in opened.model.modules())
    # no size was asked for, so it takes any
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected, given = exportable.model(images), opened.model(images)
    assert (expected - given).abs().max() <= error * expected.abs().max()


def test_a_folded_checkpoint_can_be_exported(exportable, tmp_path):
    again = export(exportable.fold(), tmp_path / "net.onnx", "onnx")
    assert again.agreement["noise"].max_error <= 1e-4 * again.agreement["noise"].max_logit


def test_torch_format_of_one_size(exportable, tmp_path, command: Command):
    path = export(exportable, tmp_path / "net.safetensors", "torch", img_size=96).path
    opened = open_source(path)
    assert (opened.folded, list(opened.input_config["input_size"])) == ((96, 96), [3, 96, 96])
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(images), exportable.model(images), rtol=1e-4, atol=1e-4)
    assert open_source(export(opened, tmp_path / "again.safetensors", "torch").path).folded == (96, 96)
    for refused in (["export", "-o", tmp_path / "other.onnx"], ["info"], ["bench"]):
        done = command(*refused, path, "--img-size", "64")
        assert done.code == 2
        assert "folded for images of 96×96" in done.err
    done = command("info", "vit_tiny_patch16_224", "--img-size", "64")
    assert_mistake(done, "vit_tiny_patch16_224 takes no images of 64×64")


def test_int8_needs_images(exportable, tmp_path):
    with pytest.raises(UserError, match="--calibration"):
        export(exportable, tmp_path / "net.onnx", precision="int8")


def test_impossible_combinations_are_refused(exportable, tmp_path):
    with pytest.raises(UserError, match="not in bf16"):
        export(exportable, tmp_path / "net.onnx", precision="bf16")
    with pytest.raises(UserError, match=r"should end in \.xml"):
        export(exportable, tmp_path / "net.onnx", format="openvino")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        export(exportable, tmp_path / "folder.onnx")


class Branching(torch.nn.Module):
    """A network whose work depends on a value, which no ONNX file can hold."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv, self.norm = torch.nn.Conv2d(3, num_classes, 3), torch.nn.BatchNorm2d(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(images))
        if features.mean() > 1000:
            features = features - 1000
        return features.mean((2, 3))


@pytest.mark.skipif(
    torch.__version__.startswith("2.8."), reason="torch 2.8 exports the way that an image of noise takes"
)
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_networks_that_a_format_cannot_hold_are_refused(format, exportable, tmp_path):
    branching = replace(exportable, model=Branching(5).eval(), architecture="branching")
    output = tmp_path / f"net{SUFFIXES[format]}"
    with pytest.raises(UserError, match=r"^branching cannot be exported to ONNX: [^\n\x1b]{20,}$"):
        export(branching, output, format)
    assert list(tmp_path.iterdir()) == []


def test_failures_of_quantisers_runtimes_and_folding_are_told(exportable, patterns, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("\n  no such kernel\nat place.cpp")

    output = tmp_path / "net.onnx"
    with monkeypatch.context() as patch:
        patch.setattr("partialnet.deploy.precision.quantize_onnx", fail)
        with pytest.raises(UserError, match=r"^partialnet_t0 cannot be exported to onnx in int8: no such kernel$"):
            export(exportable, output, precision="int8", calibration=patterns)
    with monkeypatch.context() as patch:
        patch.setattr(ExportedModel, "forward", fail)
        with pytest.raises(UserError, match=r"^partialnet_t0 cannot be exported to onnx in fp32: no such kernel$"):
            export(exportable, output)
    monkeypatch.setattr("partialnet.checkpoint.classifier.fold", fail)
    with pytest.raises(UserError, match=r"^partialnet_t0 cannot be folded: no such kernel$"):
        export(exportable, output)
    assert list(tmp_path.iterdir()) == []
