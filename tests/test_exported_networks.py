"""Exported files as networks: used here and without PartialNet, replaced while open, damaged, and of other origin."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commands import Command, assert_mistake
from exports import CLASSES, MEANS_INPUT, means
from PIL import ExifTags, Image

from partialnet.deploy.export import export
from partialnet.deploy.exported_files import save_onnx, save_openvino
from partialnet.deploy.runtimes import ExportedModel, load_exported, open_exported, openvino_core
from partialnet.errors import UserError
from partialnet.evaluation import evaluate
from partialnet.images import read_image
from partialnet.prediction import Classifier
from partialnet.sources import open_source

pytestmark = pytest.mark.usefixtures("converted_once")


def test_fixed_batch_serves_any_number_of_images(exportable, exported_onnx):
    opened = load_exported(exported_onnx.path)
    assert opened.model.batch_size == 1
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(images), exportable.model(images), rtol=1e-4, atol=1e-4)


def test_images_on_a_gpu_go_to_the_runtime():
    class OnGpu(torch.Tensor):
        def cpu(self):
            return self.as_subclass(torch.Tensor)

        def numpy(self):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    model = ExportedModel(lambda images: images.mean((2, 3)), None, {"num_classes": 3})
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(model(images.as_subclass(OnGpu)), images.mean((2, 3)))


def test_eval_takes_an_exported_file(exportable, exported_onnx, labelled_patterns, command: Command):
    result = command("eval", exported_onnx.path, labelled_patterns.root, "--json", "-")
    assert json.loads(result.out)["top1"] == pytest.approx(evaluate(exportable, labelled_patterns).top1)
    assert_mistake(command("eval", exported_onnx.path, labelled_patterns.root, "--device", "cuda"), "run on the CPU")


def test_an_export_is_used_without_partialnet_as_documented(
    exported_onnx, labelled_patterns, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported_onnx.path, "demo_fp32.onnx")
    opened = open_source(exported_onnx.path)
    model = openvino_core().read_model(exported_onnx.path)
    save_openvino(model, Path("digits.xml"), opened.config() | {"inference_precision": "f32"})
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # as a phone stores a photograph that was taken upright
    Image.open(labelled_patterns.root / "bee" / "05.png").resize((80, 64)).save("photo.jpg", exif=turned)
    document = Path(__file__).parent.parent / "docs" / "deployment.md"
    section = document.read_text(encoding="utf-8").partition("### In programs without PartialNet")[2]
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1], names)
    classifier = Classifier(opened)
    expected = classifier.run(classifier.prepare([read_image("photo.jpg")]))
    np.testing.assert_allclose(names["logits"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(names["network"](names["images"])["logits"], expected, rtol=0, atol=1e-4)
    assert capsys.readouterr().out.split() == [CLASSES[int(expected.argmax())]] * 2


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_opened_file_may_be_replaced_or_deleted(suffix, exportable, exported_onnx, tmp_path):
    path = tmp_path / f"net{suffix}"
    if suffix == ".onnx":
        shutil.copy(exported_onnx.path, path)
    else:
        export(exportable, path, "openvino")
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
        ({"pretrained_cfg": {**MEANS_INPUT, "interpolation": "sharp"}}, "interpolation='sharp' must be one of"),
        ({"pretrained_cfg": {**MEANS_INPUT, "input_size": [3, 8]}}, r"input_size=\[3, 8\] must be"),
        (
            {"pretrained_cfg": {**MEANS_INPUT, "input_size": [3, 9, 8]}},
            r"input_size=\[3, 9, 8\], but the graph takes \[3, 8, 8\]",
        ),
        ({"pretrained_cfg": {"input_size": [3, 8, 8]}}, "it has no 'mean'"),
    ],
)
def test_a_configuration_that_does_not_fit_its_graph_is_told(change, message, tmp_path):
    model = means()
    config = {"architecture": "means", "num_classes": 3, "model_args": {}, "pretrained_cfg": MEANS_INPUT}
    save_onnx(model, tmp_path / "net.onnx", config)
    assert load_exported(tmp_path / "net.onnx").model(torch.ones(2, 3, 8, 8)).tolist() == [[1, 1, 1]] * 2
    save_onnx(model, tmp_path / "net.onnx", config | change)
    with pytest.raises(UserError, match=f"configuration in .*net.onnx' cannot be used: .*{message}"):
        load_exported(tmp_path / "net.onnx")
