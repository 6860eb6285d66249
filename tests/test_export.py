"""Exports run in their real runtimes and agree with PyTorch."""

import errno
import io
import json
import os
import re
import shutil
import signal
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import timm
import torch
from commands import Command, assert_mistake
from conftest import randomize_parameters as randomize
from PIL import ExifTags, Image

from partialnet.checkpoint import Checkpoint, create_checkpoint, load
from partialnet.data import FolderImages, Subset
from partialnet.deploy.export import Export, export, write_onnx
from partialnet.deploy.exported_files import (
    SUFFIXES,
    prepare_output,
    put_in_place,
    save_onnx,
    save_openvino,
    write_report,
)
from partialnet.deploy.photos import collect_photos
from partialnet.deploy.runtimes import ExportedModel, load_exported, open_exported, openvino_core
from partialnet.deploy.verify import compare_accuracy, compare_logits
from partialnet.errors import UserError
from partialnet.evaluation import Evaluation, evaluate
from partialnet.images import read_image
from partialnet.prediction import Classifier
from partialnet.sources import open_source

CLASSES = ("ant", "bee", "cat", "dog", "elk")
_INPUT = {
    "input_size": [3, 8, 8],
    "interpolation": "bilinear",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "crop_pct": 1.0,
    "crop_mode": "center",
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    checkpoint = create_checkpoint("partialnet_t0", CLASSES, num_classes=5, depths=(1, 1, 2, 1))
    randomize(checkpoint.model)
    checkpoint.model.eval()
    checkpoint.input_config["input_size"] = [3, 64, 64]
    return checkpoint


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(24):
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 80), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def graphs() -> dict[bytes, bytes]:
    """ONNX files by the networks that they were made of."""
    return {}


@pytest.fixture
def converted_once(graphs: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch converts a network once for all tests, which takes longer than all else that an export does."""

    def write(model: torch.nn.Module, shape: tuple[int, ...], path: Path, dynamic_batch: bool = False) -> None:
        buffer = io.BytesIO()
        torch.save((model, shape, dynamic_batch), buffer)  # its classes, settings and weights
        key = buffer.getvalue()
        if key not in graphs:
            write_onnx(model, shape, path, dynamic_batch)
            graphs[key] = path.read_bytes()
        path.write_bytes(graphs[key])

    monkeypatch.setattr("partialnet.deploy.export.write_onnx", write)


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_float_export_agrees_and_keeps_classes(format, checkpoint, photos, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    result = export(checkpoint, tmp_path / f"net{suffix}", format)
    for agreement in result.agreement.values():
        assert agreement.top1 == 1
        assert agreement.max_error <= 1e-4 * agreement.max_logit
    report = json.loads((tmp_path / f"net{suffix}.json").read_text())
    assert report["agreement"]["photographs"]["top1"] == 1
    opened = load_exported(result.path)
    assert opened.class_names == CLASSES
    assert list(opened.input_config["input_size"]) == [3, 64, 64]
    expected = [found.classes[0][0] for _, found in Classifier(checkpoint).predict(photos)]
    assert [found.classes[0][0] for _, found in Classifier(opened).predict(photos)] == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_onnx_graph_is_small_and_plain(exported):
    check_by_onnx(exported.path)
    forbidden = {"ScatterND", "ScatterElements", "GatherND", "If", "Loop", "BatchNormalization"}
    assert not forbidden & set(exported.operators)
    assert exported.size_mb <= 1.02 * 4 * exported.folded_params_m + 0.1  # 0.1 MB: the graph of a very small network


def test_full_t0_file_is_hardly_larger_than_its_weights(tmp_path):
    result = export(create_checkpoint("partialnet_t0"), tmp_path / "t0.onnx", img_size=224)
    assert result.size_mb <= 1.02 * 4 * result.folded_params_m


def test_dynamic_batch(checkpoint, tmp_path):
    path = export(checkpoint, tmp_path / "net.onnx", dynamic_batch=True).path
    opened = load_exported(path)
    assert opened.model.batch_size is None
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(images), checkpoint.model(images), rtol=1e-4, atol=1e-4)


def test_fixed_batch_serves_any_number_of_images(checkpoint, exported):
    opened = load_exported(exported.path)
    assert opened.model.batch_size == 1
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(images), checkpoint.model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("openvino", "fp16"), ("openvino", "bf16")])
def test_half_precision(format, precision, checkpoint, photos, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    half = export(checkpoint, tmp_path / f"half{suffix}", format, precision, calibration=photos)
    agreement = half.agreement["photographs"]
    # bfloat16 has 8 bits of precision, of which a random network loses some in each of its layers
    assert agreement.max_error <= (0.4 if precision == "bf16" else 0.05) * agreement.max_logit
    assert half.size_mb < 0.8 * 4 * half.folded_params_m
    check_by_onnx(half.path)


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_calibrated_and_small(format, checkpoint, photos, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    output = tmp_path / f"net{suffix}"
    result = export(checkpoint, output, format, "int8", calibration=photos)
    assert result.agreement["photographs"].num_images == len(photos)
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


def test_an_export_that_disagrees_brings_a_float_one_and_a_warning(checkpoint, tmp_path, monkeypatch, command: Command):
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    half = tmp_path / "half.safetensors"
    run = ("export", checkpoint.save(tmp_path / "run").parent, "-f", "torch", "-o")
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


def test_a_float_export_that_computes_something_else_is_told(checkpoint, tmp_path, monkeypatch, command: Command):
    def doubled(path: Path) -> Checkpoint:
        opened = load(path)
        for parameter in opened.model.classifier.parameters():
            parameter.data *= 2  # every image keeps its class
        return opened

    run = ("export", checkpoint.save(tmp_path / "run").parent, "-f", "torch", "-o")
    assert "Warning" not in command(*run, tmp_path / "right.safetensors").err
    monkeypatch.setattr("partialnet.deploy.export.load", doubled)
    wrong = command(*run, tmp_path / "wrong.safetensors")
    assert "same class 100.0%" in wrong.out
    assert "Warning: logits are off by up to 100.0% of the largest" in wrong.err


def test_logits_tell_what_a_single_class_cannot(checkpoint, tmp_path, monkeypatch, command: Command):
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


def test_int8_needs_images(checkpoint, tmp_path):
    with pytest.raises(UserError, match="--calibration"):
        export(checkpoint, tmp_path / "net.onnx", precision="int8")


def test_impossible_combinations_are_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="not in bf16"):
        export(checkpoint, tmp_path / "net.onnx", precision="bf16")
    with pytest.raises(UserError, match=r"should end in \.xml"):
        export(checkpoint, tmp_path / "net.onnx", format="openvino")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        export(checkpoint, tmp_path / "folder.onnx")


def test_attention_over_as_many_positions_as_heads(tmp_path):
    # 64×64 pixels leave 2×2 positions for the 4 heads of stage 4, where OpenVINO got one form of attention wrong
    torch.manual_seed(0)
    checkpoint = create_checkpoint("partialnet_t0", num_classes=5, depths=(1, 1, 1, 1))
    randomize(checkpoint.model)
    checkpoint.model.eval()
    checkpoint.input_config["input_size"] = [3, 64, 64]
    result = export(checkpoint, tmp_path / "net.xml", "openvino")
    noise = result.agreement["noise"]
    assert noise.max_error <= 1e-4 * noise.max_logit


def test_images_on_a_gpu_go_to_the_runtime():
    class OnGpu(torch.Tensor):
        def cpu(self):
            return self.as_subclass(torch.Tensor)

        def numpy(self):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    model = ExportedModel(lambda images: images.mean((2, 3)), None, {"num_classes": 3})
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(model(images.as_subclass(OnGpu)), images.mean((2, 3)))


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
def test_networks_that_a_format_cannot_hold_are_refused(format, checkpoint, tmp_path):
    branching = replace(checkpoint, model=Branching(5).eval(), architecture="branching")
    output = tmp_path / f"net{SUFFIXES[format]}"
    with pytest.raises(UserError, match=r"^branching cannot be exported to ONNX: [^\n\x1b]{20,}$"):
        export(branching, output, format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("converted_once")
def test_failures_of_quantisers_runtimes_and_folding_are_told(checkpoint, photos, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("\n  no such kernel\nat place.cpp")

    output = tmp_path / "net.onnx"
    with monkeypatch.context() as patch:
        patch.setattr("partialnet.deploy.precision.quantize_onnx", fail)
        with pytest.raises(UserError, match=r"^partialnet_t0 cannot be exported to onnx in int8: no such kernel$"):
            export(checkpoint, output, precision="int8", calibration=photos)
    with monkeypatch.context() as patch:
        patch.setattr(ExportedModel, "forward", fail)
        with pytest.raises(UserError, match=r"^partialnet_t0 cannot be exported to onnx in fp32: no such kernel$"):
            export(checkpoint, output)
    monkeypatch.setattr("partialnet.checkpoint.classifier.fold", fail)
    with pytest.raises(UserError, match=r"^partialnet_t0 cannot be folded: no such kernel$"):
        export(checkpoint, output)
    assert list(tmp_path.iterdir()) == []


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


def test_network_without_an_answer_to_some_images(checkpoint, tmp_path):
    def evaluation(*predicted: int) -> Evaluation:
        known = np.array(predicted)
        return Evaluation(CLASSES, np.array([0, 1, 2, 3]), known, np.ones(4), known >= 0, {}, 1.0)

    assert compare_accuracy(evaluation(0, 1, -1, -1), evaluation(0, 2, -1, 3), held_out=True).agreement == 0.25

    class DarkOnly(torch.nn.Module):
        """Overflows with an image that is bright on the whole, as about half of all noise is."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model, self.num_classes = model, model.num_classes

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images) + torch.exp(1e6 * images.mean((1, 2, 3)))[:, None]

    result = export(replace(checkpoint, model=DarkOnly(checkpoint.model).eval()), tmp_path / "net.onnx")
    noise = result.agreement["noise"]
    assert 0 < noise.num_not_finite < noise.num_images
    assert noise.top1 == 1 - noise.num_not_finite / noise.num_images
    assert json.loads((tmp_path / "net.onnx.json").read_text())["agreement"]["noise"]["num_not_finite"]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_damaged_and_foreign_files(suffix, tmp_path):
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match="damaged") as error:
        load_exported(damaged)
    assert ".cpp" not in str(error.value)
    with pytest.raises(UserError, match="no file"):
        load_exported(tmp_path / f"missing{suffix}")


def test_onnx_file_of_another_program(tmp_path):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "other",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(UserError, match="partialnet export"):
        load_exported(path)


def means() -> onnx.ModelProto:
    """A graph of one operator, with the inputs and outputs of an export."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["images"], ["logits"], keepdims=0, axes=[2, 3])],
        "means",
        [value("images", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("logits", onnx.TensorProto.FLOAT, [1, 3])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=10)


@pytest.mark.parametrize(
    ("task", "wanted", "told"),
    [
        ("classification", "detection", "is an exported classifier; `partialnet predict` and "),
        ("detection", "classification", "is an exported detector; `partialnet detect predict` and "),
        ("segmentation", "detection", "is of another task"),
    ],
)
def test_an_exported_file_of_another_task_is_told_with_what_takes_it(task, wanted, told, tmp_path):
    save_onnx(means(), tmp_path / "net.onnx", {"task": task})
    with pytest.raises(UserError, match=f"net.onnx' {told}"):
        open_exported(tmp_path / "net.onnx", wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ["a", "b"]}, "label_names must hold 3 texts"),
        ({"label_names": 3}, "'int' object is not iterable"),
        ({"num_classes": "many"}, "many"),
        ({"pretrained_cfg": []}, "'list' object"),
        ({"pretrained_cfg": {**_INPUT, "interpolation": "sharp"}}, "interpolation='sharp' must be one of"),
        ({"pretrained_cfg": {**_INPUT, "input_size": [3, 8]}}, r"input_size=\[3, 8\] must be"),
        (
            {"pretrained_cfg": {**_INPUT, "input_size": [3, 9, 8]}},
            r"input_size=\[3, 9, 8\], but the graph takes \[3, 8, 8\]",
        ),
        ({"pretrained_cfg": {"input_size": [3, 8, 8]}}, "it has no 'mean'"),
    ],
)
def test_a_configuration_that_does_not_fit_its_graph_is_told(change, message, tmp_path):
    model = means()
    config = {"architecture": "means", "num_classes": 3, "model_args": {}, "pretrained_cfg": _INPUT}
    save_onnx(model, tmp_path / "net.onnx", config)
    assert load_exported(tmp_path / "net.onnx").model(torch.ones(2, 3, 8, 8)).tolist() == [[1, 1, 1]] * 2
    save_onnx(model, tmp_path / "net.onnx", config | change)
    with pytest.raises(UserError, match=f"configuration in .*net.onnx' cannot be used: .*{message}"):
        load_exported(tmp_path / "net.onnx")


def test_original_is_untouched(checkpoint, tmp_path):
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    export(checkpoint, tmp_path / "net.onnx", img_size=96)
    assert checkpoint.input_config["input_size"] == [3, 64, 64]
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    """120 images in folders named like the network's classes, a few of which it gets right."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(24):
            coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
            image.save(folder / name / f"{number:02d}.png")
    return FolderImages(folder)


@pytest.mark.parametrize(("precision", "error", "size"), [("fp32", 1e-5, 4), ("fp16", 0.05, 2), ("bf16", 0.4, 2)])
def test_torch_format_is_a_folded_checkpoint(precision, error, size, checkpoint, photos, tmp_path):
    result = export(checkpoint, tmp_path / "net.safetensors", "torch", precision)
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
        expected, given = checkpoint.model(images), opened.model(images)
    assert (expected - given).abs().max() <= error * expected.abs().max()


def test_a_folded_checkpoint_can_be_exported(checkpoint, tmp_path):
    again = export(checkpoint.fold(), tmp_path / "net.onnx", "onnx")
    assert again.agreement["noise"].max_error <= 1e-4 * again.agreement["noise"].max_logit


def test_torch_format_of_one_size(checkpoint, tmp_path, command: Command):
    path = export(checkpoint, tmp_path / "net.safetensors", "torch", img_size=96).path
    opened = open_source(path)
    assert (opened.folded, list(opened.input_config["input_size"])) == ((96, 96), [3, 96, 96])
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(images), checkpoint.model(images), rtol=1e-4, atol=1e-4)
    assert open_source(export(opened, tmp_path / "again.safetensors", "torch").path).folded == (96, 96)
    for refused in (["export", "-o", tmp_path / "other.onnx"], ["info"], ["bench"]):
        done = command(*refused, path, "--img-size", "64")
        assert done.code == 2
        assert "folded for images of 96×96" in done.err
    done = command("info", "vit_tiny_patch16_224", "--img-size", "64")
    assert_mistake(done, "vit_tiny_patch16_224 takes no images of 64×64")


def test_a_run_is_not_overwritten_by_its_export(checkpoint, tmp_path, command: Command):
    weights = checkpoint.save(tmp_path)
    before = weights.read_bytes()
    assert_mistake(command("export", tmp_path, "-f", "torch", "-o", weights))
    assert weights.read_bytes() == before


def test_a_report_replaces_neither_the_export_nor_what_it_is_made_from(checkpoint, tmp_path, command: Command):
    weights = checkpoint.save(tmp_path)
    before = weights.read_bytes()
    for format, file, report in (
        ("torch", "net.safetensors", "net.safetensors"),
        ("openvino", "net.xml", "net.bin"),
        ("torch", "net.safetensors", weights.name),
    ):
        refused = command("export", tmp_path, "-f", format, "-o", tmp_path / file, "--json", tmp_path / report)
        assert_mistake(refused, f"{report}' is ", "choose another file")
    assert weights.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {weights.name, "config.json"}


def test_a_folder_in_which_nothing_can_be_written_is_told(checkpoint, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".net.onnx.a1b2"))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(UserError, match=r"net.onnx' cannot be written: Permission denied\.$"):
        export(checkpoint, tmp_path / "net.onnx")


@pytest.mark.parametrize("file", ["net.onnx", "net.xml", "net.safetensors"])
def test_a_full_disk_is_told_with_the_files_name(file, checkpoint, tmp_path, command: Command):
    resource = pytest.importorskip("resource")  # not on Windows
    checkpoint.save(tmp_path / "run")
    format = {".onnx": "onnx", ".xml": "openvino", ".safetensors": "torch"}[Path(file).suffix]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a file of more bytes fails as on a full disk
    try:
        done = command("export", tmp_path / "run", "-f", format, "-o", tmp_path / "out" / file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"partialnet: {str(tmp_path / 'out' / file)!r} cannot be written: ")
    assert list((tmp_path / "out").iterdir()) == []


def test_of_two_exports_that_belong_together_none_stays_alone(checkpoint, tmp_path, monkeypatch, command: Command):
    resource = pytest.importorskip("resource")  # not on Windows
    checkpoint.save(tmp_path / "run")
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    num_params = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * num_params, before[1]))  # room for half precision only
    try:
        done = command(
            "export", tmp_path / "run", "-f", "torch", "-p", "fp16", "-o", tmp_path / "out" / "net.safetensors"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2
    assert "net.safetensors' cannot be written: " in done.err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("converted_once")
def test_an_export_may_have_any_name(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    result = export(checkpoint, tmp_path / "float.onnx", precision="fp16")
    assert result.operators["Conv"] > 10
    assert result.kept.stat().st_size > 1.8 * result.path.stat().st_size


@pytest.mark.parametrize("file", ["net.xml", "net.bin", "net.xml.json"])
def test_an_export_that_is_read_only_stays(file, checkpoint, tmp_path):
    (tmp_path / "net.xml").touch()
    (tmp_path / file).touch(0o444)
    (tmp_path / file).chmod(0o444)
    with pytest.raises(UserError, match=f"{file}' cannot be written: it is read-only"):
        export(checkpoint, tmp_path / "net.xml", "openvino")


@pytest.mark.usefixtures("converted_once")
def test_an_export_that_is_terminated_leaves_nothing(checkpoint, tmp_path, monkeypatch, command: Command):
    def stop(*args):
        assert list(tmp_path.glob("out/.net.onnx.*"))
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # or the tests would end here
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("partialnet.deploy.export.convert_onnx", stop)
    checkpoint.save(tmp_path / "run")
    done = command("export", tmp_path / "run", "-o", tmp_path / "out" / "net.onnx")
    assert done.code == 143
    assert done.err.endswith("partialnet: Terminated.\n")
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_openvinos_graph_is_not_read_with_the_weights_of_another_export(tmp_path, monkeypatch):
    def write(name: str, weight: float) -> Path:
        model = means()
        model.graph.node[0].input[0] = "scaled"
        model.graph.node.insert(0, onnx.helper.make_node("Mul", ["images", "weight"], ["scaled"]))
        weights = np.full((1, 3, 8, 8), weight, np.float32) + np.arange(8, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weight"))
        config = {"architecture": "means", "num_classes": 3, "model_args": {}, "pretrained_cfg": _INPUT}
        finished = tmp_path / "workspace" / f"{name}.xml"
        save_openvino(openvino_core().read_model(model.SerializeToString()), finished, config)
        write_report(finished, {})
        return finished

    def answer(path: Path) -> float:
        return load_exported(path).model(torch.ones(1, 3, 8, 8)).mean().item()

    (tmp_path / "workspace").mkdir()
    path, other = tmp_path / "net.xml", tmp_path / "other.xml"
    put_in_place(write("net", 1), path)
    put_in_place(write("other", 2), other)
    assert (answer(path), answer(other)) == (4.5, 5.5)
    shutil.copy(other.with_suffix(".bin"), path.with_suffix(".bin"))
    images = np.ones((1, 3, 8, 8), np.float32)
    assert (
        openvino_core().compile_model(path, "CPU")(images)["logits"].mean() == 5.5
    )  # OpenVINO reads it without a word
    with pytest.raises(UserError, match=r"net.xml' and the 'net.bin' beside it are of two exports"):
        load_exported(path)
    # of one network, exported twice, either weights do
    put_in_place(write("net", 2), path)
    shutil.copy(other.with_suffix(".bin"), path.with_suffix(".bin"))
    assert answer(path) == 5.5

    def move(file: Path, place: Path) -> None:
        if file.suffix == ".xml":
            raise KeyboardInterrupt
        os.replace(file, place)

    # one that is stopped between its files leaves no graph, and the next may take its name
    finished = write("net", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", move)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(finished, path)
    assert not path.exists()
    prepare_output(path, "openvino")
    put_in_place(write("net", 1), path)
    assert answer(path) == 4.5


@pytest.mark.usefixtures("converted_once")
def test_openvinos_weights_replace_nothing_but_an_older_exports(tmp_path, monkeypatch, command: Command):
    source = tmp_path / "net.bin"
    tiny = {"embed_dim": 16, "depths": [1, 1, 1, 1]}
    network = timm.create_model("partialnet_t0", num_classes=3, **tiny)
    args = Namespace(model_kwargs=tiny)
    torch.save({"arch": "partialnet_t0", "args": args, "state_dict": network.state_dict()}, source)
    (tmp_path / "other.bin").write_bytes(b"something else")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    run = ("export", source, "-f", "openvino", "--img-size", "64", "-o")
    for output, message in (("net.xml", "net.bin"), ("other.xml", "other.bin")):
        assert_mistake(command(*run, tmp_path / output), f"{message}'", "choose another file")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # with an older export beside it, the weights of that name are the export's own, or else the source
    (tmp_path / "net.xml").touch()
    assert_mistake(command(*run, tmp_path / "net.xml"), "is the checkpoint itself")
    for _ in range(2):
        assert command(*run, tmp_path / "new.xml").code == 0
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    (tmp_path / "half_fp32.bin").write_bytes(b"something else")
    done = command(*run, tmp_path / "half.xml", "-p", "fp16")
    assert "half_fp32-2.xml" in done.err
    written = done.out.partition("Written:")[2]
    for file in tmp_path.glob("half*"):
        assert (f"{file} (" in written or f"{file}\n" in written) == (file.name != "half_fp32.bin")
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "half_fp32.bin").read_bytes() == b"something else"


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, labelled: FolderImages, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(checkpoint, tmp_path_factory.mktemp("exported") / "net.onnx", labelled=labelled)


def test_accuracy_on_labelled_images(checkpoint, exported, labelled):
    expected = evaluate(checkpoint, labelled)
    assert exported.accuracy is not None
    assert (exported.accuracy.num_images, exported.accuracy.held_out) == (120, True)
    assert exported.accuracy.original == pytest.approx(expected.top1)
    assert exported.accuracy.exported == pytest.approx(evaluate(open_source(exported.path), labelled).top1)
    assert json.loads(Path(f"{exported.path}.json").read_text())["accuracy"]["agreement"] == 1


def test_an_export_is_used_without_partialnet_as_documented(exported, labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported.path, "demo_fp32.onnx")
    opened = open_source(exported.path)
    model = openvino_core().read_model(exported.path)
    save_openvino(model, Path("digits.xml"), opened.config() | {"inference_precision": "f32"})
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # as a phone stores a photograph that was taken upright
    Image.open(labelled.root / "bee" / "05.png").resize((80, 64)).save("photo.jpg", exif=turned)
    document = Path(__file__).parent.parent / "docs" / "deployment.md"
    section = document.read_text(encoding="utf-8").partition("### In programs without PartialNet")[2]
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1], names)
    classifier = Classifier(opened)
    expected = classifier.run(classifier.prepare([read_image("photo.jpg")]))
    np.testing.assert_allclose(names["logits"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(names["network"](names["images"])["logits"], expected, rtol=0, atol=1e-4)
    assert capsys.readouterr().out.split() == [CLASSES[int(expected.argmax())]] * 2


@pytest.mark.usefixtures("converted_once")
def test_int8_is_tested_on_images_that_did_not_calibrate_it(checkpoint, labelled, tmp_path):
    photos = collect_photos((), labelled, calibrated=True)
    assert len(photos.calibration) == 60
    assert not set(photos.calibration.tolist()) & set(photos.comparison.tolist())
    assert sorted(np.bincount(labelled.labels[photos.test])) == [12] * 5
    few = collect_photos((), Subset(labelled, range(99)), calibrated=True)
    assert (few.held_out, len(few.calibration), len(few.comparison)) == (False, 99, 99)
    result = export(checkpoint, tmp_path / "net.onnx", precision="int8", labelled=labelled)
    assert result.accuracy is not None
    assert (result.accuracy.num_images, result.accuracy.held_out) == (60, True)
    # the labelled images decide whether the float file is kept
    assert result.same_class == result.accuracy.agreement
    assert (result.kept is None) == result.reliable


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_opened_file_may_be_replaced_or_deleted(suffix, checkpoint, exported, tmp_path):
    path = tmp_path / f"net{suffix}"
    if suffix == ".onnx":
        shutil.copy(exported.path, path)
    else:
        export(checkpoint, path, "openvino")
    opened = load_exported(path)
    images = torch.randn(3, 3, 64, 64)
    expected = opened.model(images)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()
    for file in (path, path.with_suffix(".bin")):
        if file.exists():
            # overwritten where it lies on the disk: memory mapped from it would change
            with file.open("r+b") as handle:
                handle.write(bytes(file.stat().st_size))
            file.unlink()
    first = opened.model(images)
    assert torch.equal(first, expected)
    # a later answer must not be written over an earlier one, nor may the caller's array be kept
    images.zero_()
    opened.model(images)
    assert torch.equal(first, expected)


def test_images_that_cannot_be_read_are_told(checkpoint, photos, labelled, tmp_path, command: Command):
    checkpoint.save(tmp_path / "run")
    folder = tmp_path / "photos"
    shutil.copytree(labelled.root, folder / "classes")
    for name in ("classes/bee/aa.png", "classes/dog/aa.png"):
        (folder / name).write_bytes(b"no image")
    output = tmp_path / "net.safetensors"
    for calibration, names in (
        (folder / "classes", ("bee/aa.png", "dog/aa.png")),
        (folder, sorted(map(str, folder.rglob("aa.png")))),
    ):
        done = command("export", tmp_path / "run", "-f", "torch", "-o", output, "--calibration", calibration)
        assert done.code == 0
        assert f"Exporting {tmp_path / 'run'} to torch in fp32 …\n" in done.err
        assert "2 unreadable images were left out:\n" in done.err
        unreadable = json.loads(Path(f"{output}.json").read_text())["unreadable"]
        assert [one["image"] for one in unreadable] == list(names)
        assert all(one["reason"] in done.err for one in unreadable)
    for path in (folder / "classes").rglob("*.png"):
        path.write_bytes(b"no image")
    for calibration in (folder / "classes", folder):
        done = command(
            "export", tmp_path / "run", "-f", "torch", "-o", tmp_path / "new.safetensors", "--calibration", calibration
        )
        assert done.code == 2
        assert re.fullmatch(
            r"partialnet: None of the 122 images can be read; the first: '.*png' is not a .* image\.",
            done.err.splitlines()[-1],
        )
    assert not list(tmp_path.glob("new*"))


def test_images_that_int8_cannot_be_calibrated_with_are_known(photos, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    found = collect_photos([tmp_path / "a.png", *photos], None, calibrated=True)
    assert len(list(found.images(found.calibration))) == len(photos)
    (unreadable,) = found.all_unreadable()
    assert unreadable.image == str(tmp_path / "a.png")
    with pytest.raises(UserError, match="None of the 1 images can be read"):
        collect_photos([tmp_path / "a.png"], None, calibrated=True)


def test_eval_takes_an_exported_file(checkpoint, exported, labelled, command: Command):
    result = command("eval", exported.path, labelled.root, "--json", "-")
    assert json.loads(result.out)["top1"] == pytest.approx(evaluate(checkpoint, labelled).top1)
    assert_mistake(command("eval", exported.path, labelled.root, "--device", "cuda"), "run on the CPU")
