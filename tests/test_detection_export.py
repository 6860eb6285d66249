"""Detectors in other runtimes: the same detections, from one file, by real commands."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from commands import Command, assert_mistake
from conftest import randomize_parameters
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from partialnet.deploy.exported_files import SUFFIXES, save_openvino
from partialnet.deploy.precision import convert_onnx
from partialnet.deploy.runtimes import CONFIG_KEY, load_exported, openvino_core
from partialnet.detection import export, verify
from partialnet.detection.annotations import DetectionSubset
from partialnet.detection.checkpoint import DetectorCheckpoint, create_detector, load_detector
from partialnet.detection.data_sources import open_evaluation
from partialnet.detection.evaluator import evaluate as evaluate_boxes
from partialnet.detection.export import default_canvas, export_detector
from partialnet.detection.exported import load_exported_detector
from partialnet.detection.inference import EvaluatedDetector, evaluate_detector
from partialnet.detection.masks import encode_box_masks, encode_masks
from partialnet.detection.model import Detector
from partialnet.detection.sources import open_detector
from partialnet.detection.verify import compare_detections
from partialnet.errors import UserError
from partialnet.images import read_image

pytestmark = pytest.mark.usefixtures("converted_once")

CATEGORIES = {1: "person", 18: "dog"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny detector that finds something everywhere."""
    folder = tmp_path_factory.mktemp("run")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arguments = {"embed_dim": 16, "depths": (1, 1, 1, 1)}
        detector = create_detector(
            "partialnet_t0",
            CATEGORIES,
            model_args=arguments,
            pyramid_channels=64,
            img_size=(96, 128),
            num_proposals=50,
            score_thresh=0,
            detections_per_img=20,
        )
        randomize_parameters(detector.model)
        detector.save(folder)
    return folder


@pytest.fixture(scope="module")
def detector(run_folder: Path) -> DetectorCheckpoint:
    return load_detector(run_folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Landscape, portrait, and as large as the canvas."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for index, size in enumerate([(64, 48), (48, 64), (128, 96)]):
        pixels = torch.randint(0, 256, (size[1] // 8, size[0] // 8, 3), generator=generator, dtype=torch.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml")])
def test_exported_detector_answers_as_pytorch(
    format: str, suffix: str, detector: DetectorCheckpoint, photos: list[Path], tmp_path: Path
) -> None:
    if format == "openvino":
        pytest.importorskip("openvino")
    output = tmp_path / f"detector{suffix}"
    result = export_detector(detector, output, format, images=photos)
    # random weights put scores so close together that rounding reorders a few
    assert result.same_canvas.num_images == len(photos)
    assert result.same_canvas.original > 20
    assert result.same_canvas.share > 0.9
    assert result.canvas == (96, 128)
    assert result.size_mb < 4 * result.params_m + 1  # besides weights: the graph, and the anchors
    assert json.loads(output.with_name(f"{output.name}.json").read_text()) == json.loads(json.dumps(result.as_dict()))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    again = load_exported_detector(output)
    assert again.categories == CATEGORIES
    assert again.mean == pytest.approx(detector.mean)
    (found,) = again.model([torch.rand(3, 50, 70)])
    assert found["masks"].shape == (len(found["boxes"]), 1, 50, 70)
    assert found["boxes"].min() >= 0
    assert (found["boxes"].max(0).values <= torch.tensor([70, 50, 70, 50])).all()
    check_that_nothing_is_found_beside_the_image(detector.model, again.model)
    with pytest.raises(UserError, match="is an exported detector"):
        load_exported(output)


@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("openvino", "bf16")])
def test_half_precision_spares_boxes(
    format: str,
    precision: str,
    detector: DetectorCheckpoint,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if format == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 0)
    result = export_detector(detector, tmp_path / f"half{SUFFIXES[format]}", format, precision, images=photos[:1])
    assert result.precision == precision
    assert result.size_mb < 2 * result.params_m + 1.5
    assert result.same_canvas.original > 10
    # random weights put scores so close together that rounding reorders them
    assert result.same_canvas.share > 0.5
    # boxes in half precision would be multiples of a sixteenth of a pixel or more between 64 and 128
    (found,) = load_exported_detector(result.path).model([torch.rand(3, 96, 128)])
    coordinates = found["boxes"][(found["boxes"] > 64) & (found["boxes"] < 127)]
    assert (coordinates * 16 != (coordinates * 16).round()).any()
    if format == "openvino":
        # in bf16 the edges of regions would be rounded by up to two pixels on a canvas of a thousand
        compiled = openvino_core().compile_model(result.path, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        information = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops()]
        pooling = [entry["runtimePrecision"].value for entry in information if entry["layerType"].value == "ROIAlign"]
        assert pooling == ["f32"] * 8


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_spares_what_decides_boxes(
    format: str,
    detector: DetectorCheckpoint,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if format == "openvino":
        pytest.importorskip("nncf")
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01 if format == "onnx" else 0)
    output = tmp_path / f"small{SUFFIXES[format]}"
    result = export_detector(detector, output, format, "int8", images=photos[:2])
    assert (result.same_canvas.num_images, result.held_out) == (2, False)
    assert result.same_canvas.share > 0.1  # random weights put scores close together
    if format == "onnx":
        assert result.size_mb < 2.5 * result.params_m + 1.5
        assert result.kept is not None
        assert json.loads(output.with_name("small.onnx.json").read_text())["kept"] == "small_fp32.onnx"
        assert load_exported_detector(result.kept).categories == CATEGORIES
        assert json.loads(result.kept.with_name("small_fp32.onnx.json").read_text())["precision"] == "fp32"
        graph = onnx.load(output).graph
        quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        layers = {node.name: node.input[1] in quantized for node in graph.node if node.op_type in ("Conv", "Gemm")}
    else:
        layers = {
            operator.get_friendly_name(): stored_as(operator.input_value(1).get_node()) == "i8"
            for operator in openvino_core().read_model(output).get_ops()
            if operator.get_type_name() in ("Convolution", "MatMul")
        }
    assert any(name.startswith("/backbone/maps/") and given for name, given in layers.items())
    for part in ("/backbone/fpn/", "/rpn/head/conv/", "/roi_heads/box_head/", "/roi_heads/mask_head/"):
        assert all(given for name, given in layers.items() if name.startswith(part))
    last = [given for name, given in layers.items() if "bbox_pred" in name or "cls_" in name or "fcn_logits" in name]
    assert len(last) > 10
    assert not any(last)


def stored_as(weight: Any) -> str | None:
    """Type of the constant that a weight is made from; None of what the graph computes."""
    while weight.get_input_size():
        weight = weight.input_value(0).get_node()
    return str(weight.get_element_type().get_type_name()) if weight.get_type_name() == "Constant" else None


def test_a_graph_of_any_size_keeps_the_sizes_of_images(
    detector: DetectorCheckpoint, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = export_detector(detector, tmp_path / "detector.onnx", images=photos, any_size=True)
    assert result.canvas is None
    assert result.own_sizes.original > 20
    assert result.own_sizes.share > 0.9
    assert result.own_sizes == result.same_canvas
    again: Any = load_exported_detector(result.path).model
    whole: Any = detector.model
    sizes = [(128, 96), (20, 90), (70, 70)]
    images = [torch.rand(3, *size) for size in sizes]
    with torch.no_grad():
        parity = compare_detections(whole.find(images[:1]) + whole.find(images[1:2]), again.find(images[:2]), sizes[:2])
    assert parity.share > 0.9
    assert [tuple(found["masks"].shape[2:]) for found in again(images)] == sizes
    # also in the program that is documented
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    write_photo_on_its_side(96, 120)
    names: dict[str, Any] = {}
    exec(documented_programs()[0], names)
    assert names["inputs"]["images"].shape == (1, 3, 128, 96)
    expected = again.find([to_tensor(read_image("photo.jpg"))])
    assert compare_detections(expected, [as_found(names)], [(120, 96)]).share == 1
    with pytest.raises(UserError, match="is to be 96×128 and of any size"):
        export_detector(detector, tmp_path / "detector.onnx", canvas=(96, 128), any_size=True)


def check_that_nothing_is_found_beside_the_image(original: Any, exported: Any) -> None:
    """Where PyTorch fills an image up to the very canvas, both find the same, up to the image's edge."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((78, 128), (96, 104)):
        image = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9, generator=generator), (height, width))[0]
        with torch.no_grad():
            (expected,), (found,), (pasted,) = original.find([image]), exported.find([image]), exported([image])
        assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()
        parity = compare_detections([expected], [found], [(height, width)])
        assert parity.original > 10
        assert parity.share > 0.9
        masks = encode_box_masks(found["box_masks"], found["boxes"], (height, width))
        assert masks == encode_masks(pasted["masks"][:, 0] > 0.5)


def test_graph_has_no_batch_norm_and_any_number_of_detections(
    detector: DetectorCheckpoint, photos: list[Path], tmp_path: Path
) -> None:
    strict = load_strict(detector)
    result = export_detector(strict, tmp_path / "strict.onnx", images=photos[:1])
    assert (result.same_canvas.original, result.same_canvas.exported, result.same_canvas.share) == (0, 0, 1)
    graph = onnx.load(result.path).graph
    kinds = operators(graph)
    assert "BatchNormalization" not in kinds
    assert {"NonMaxSuppression", "RoiAlign"} <= kinds
    check_that_nothing_is_found(result.path)


def test_openvino_finds_nothing_where_nothing_is_left(
    detector: DetectorCheckpoint, photos: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    result = export_detector(load_strict(detector), tmp_path / "strict.xml", "openvino", images=photos[:1])
    assert (result.same_canvas.original, result.same_canvas.exported) == (0, 0)
    check_that_nothing_is_found(result.path)


def check_that_nothing_is_found(path: Path) -> None:
    (found,) = load_exported_detector(path).model([torch.rand(3, 96, 128)])
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 1, 96, 128),
    }


def operators(graph: onnx.GraphProto) -> set[str]:
    """Kinds of the operators, those in the branches of conditions too."""
    inner = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return {node.op_type for node in graph.node}.union(*map(operators, inner))


def load_strict(detector: DetectorCheckpoint) -> DetectorCheckpoint:
    """The same weights, with a score that nothing reaches."""
    strict = create_detector(
        detector.backbone,
        detector.categories,
        **{**detector.settings, "img_size": detector.img_size, "score_thresh": 1},
    )
    strict.model.load_state_dict(detector.model.state_dict())
    return strict


def test_comparison_by_hand() -> None:
    def answer(boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, Tensor]:
        return {
            "boxes": torch.tensor(boxes),
            "labels": torch.tensor(labels),
            "scores": torch.tensor(scores),
            "box_masks": torch.ones(len(boxes), 1, 28, 28),
        }

    first = answer([[0.0, 0, 10, 10], [10.0, 10, 20, 20], [0.0, 0, 5, 5]], [1, 2, 1], [0.9, 0.8, 0.3])
    second = answer([[10.0, 10, 20, 18], [0.0, 0, 10, 10], [0.0, 0, 5, 5]], [2, 1, 2], [0.7, 0.9, 0.4])
    parity = compare_detections([first], [second], [(20, 20)])
    assert (parity.original, parity.exported, parity.matched) == (3, 3, 2)
    assert parity.share == pytest.approx(4 / 6)
    assert parity.max_box_error == 2
    assert parity.max_score_error == pytest.approx(0.1)
    # torchvision's pasting adds a pixel at every edge: rows 9 to 19, and 9 to 18
    assert parity.min_mask_iou == pytest.approx(10 / 11)
    assert parity.max_unmatched_score == pytest.approx(0.4)
    assert (parity.sure, parity.sure_matched, parity.sure_share) == (4, 4, 1)
    nothing = answer([], [], [])
    nothing["boxes"] = torch.zeros(0, 4)
    lost = compare_detections([first, first], [second, nothing], [(20, 20)] * 2)
    assert (lost.sure, lost.sure_matched) == (6, 4)
    assert compare_detections([nothing], [nothing], [(20, 20)]).sure_share == 1
    # two in one place are no pair with the same one, whichever detector doubles it
    once, twice = answer([[0.0, 0, 9, 9]], [1], [0.9]), answer([[0.0, 0, 9, 9]] * 2, [1, 1], [0.9, 0.8])
    for pair in ((once, twice), (twice, once)):
        assert compare_detections([pair[0]], [pair[1]], [(20, 20)]).matched == 1


def test_command(
    run_folder: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    output = tmp_path / "detector.onnx"
    arguments = ("detect", "export", run_folder, "--images", photos[2], "-o", output)
    done = command(*arguments)
    assert done.code == 0
    assert "Written:" in done.out
    assert "partialnet detect predict" in done.out
    assert output.exists()
    monkeypatch.setattr(verify, "LEAST_MATCHED", 1.01)
    as_json = command(*arguments, "--json", "-")
    assert json.loads(as_json.out)["format"] == "onnx"
    assert "Warning: less than" in as_json.err
    monkeypatch.setattr(verify, "LEAST_MATCHED", 0.99)
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)
    rarely = command(*arguments, "--precision", "fp16")
    assert "to onnx in fp16" in rarely.err
    assert "fp16 agrees with PyTorch on" in rarely.err
    assert f"{output.with_stem('detector_fp32')} was written too" in rarely.err
    assert "--any-size keeps them" in command(*arguments, "--images", photos[1]).err
    of_any_size = command(*arguments, "--any-size")
    assert "same canvas" not in of_any_size.out
    assert "sizes of its own choice" in of_any_size.out


@pytest.fixture(scope="module")
def labelled(detector: DetectorCheckpoint, photos: list[Path]) -> Path:
    """A COCO file of the photographs, whose objects are what the detector in PyTorch finds."""
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    for number, path in enumerate(photos, 1):
        pixels = to_tensor(Image.open(path))
        height, width = pixels.shape[1:]
        content["images"].append({"id": number, "file_name": path.name, "height": height, "width": width})
        with torch.inference_mode():
            (found,) = cast(Detector, detector.model).find([pixels])
        masks = encode_box_masks(found["box_masks"], found["boxes"], (height, width))
        for label, box, mask in zip(found["labels"].tolist(), found["boxes"].tolist(), masks, strict=True):
            left, top, right, bottom = box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": list(CATEGORIES)[label - 1],
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": mask,
                }
            )
    path = photos[0].parent / "objects.json"
    path.write_text(json.dumps(content))
    return path


def test_ap_of_labelled_photos_is_told_beside_that_of_pytorch(
    run_folder: Path, labelled: Path, tmp_path: Path, command: Command
) -> None:
    """It is what ``detect eval`` would tell of both."""
    output = tmp_path / "detector.onnx"
    done = command("detect", "export", run_folder, "--calibration", labelled, "-o", output)
    assert done.code == 0, done.err
    assert f"Evaluating all 3 images of {labelled}" in done.err
    accuracy = json.loads(Path(f"{output}.json").read_text())["accuracy"]
    assert (accuracy["num_images"], accuracy["held_out"]) == (3, True)
    assert f"{accuracy['num_objects']} objects in 3 labelled images: AP of boxes" in done.out
    assert f"partialnet detect eval {output}" in done.out
    assert accuracy["boxes"]["original"] > 0.95 > accuracy["boxes"]["exported"] > 0  # portraits are shrunk
    images, _ = open_evaluation(str(labelled))
    for source, place in ((run_folder, "original"), (output, "exported")):
        evaluated = evaluate_detector(open_detector(source), images, workers=0).evaluation.as_json()
        for kind in ("boxes", "masks"):
            assert accuracy[kind][place] == evaluated[kind]["ap"]
            assert accuracy[kind]["difference"] == accuracy[kind]["exported"] - accuracy[kind]["original"]


def test_ap_of_int8_is_of_photos_that_it_was_not_calibrated_with(
    detector: DetectorCheckpoint, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[np.ndarray] = []

    def evaluate(_: DetectorCheckpoint, images: DetectionSubset, **__: Any) -> EvaluatedDetector:
        tested.append(images.indices)
        return EvaluatedDetector(evaluate_boxes(images, []), [], ())

    def convert(graph: Path, _: str, *rest: Any) -> onnx.ModelProto:
        return convert_onnx(graph, "fp32", *rest)  # how images are divided needs no int8

    monkeypatch.setattr("partialnet.detection.export.convert_onnx", convert)
    monkeypatch.setattr("partialnet.detection.export.evaluate_detector", evaluate)
    monkeypatch.setattr("partialnet.deploy.photos.LEAST_TO_DIVIDE", 3)
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 0)
    images, _ = open_evaluation(str(labelled))
    result = export_detector(detector, tmp_path / "detector.onnx", precision="int8", labelled=images)
    assert [indices.tolist() for indices in tested] == [[0, 2]] * 2  # calibrated with the one in the middle
    assert result.accuracy is not None
    assert result.accuracy.held_out


def test_an_export_is_used_without_partialnet_as_documented(
    detector: DetectorCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Boxes, scores and masks are those that we get from the file, of photographs that are stored on their side."""
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    sure = replace(detector, model=copy.deepcopy(detector.model))
    heads: Any = sure.model.roi_heads
    with torch.no_grad():
        heads.box_predictor.cls_score.bias[2] += 3  # dogs everywhere
        heads.mask_predictor.mask_fcn_logits.weight[2] = 0
        heads.mask_predictor.mask_fcn_logits.bias[2] = 9  # each fills its box
    write_photo_on_its_side(64, 96)
    export_detector(sure, Path("detector.onnx"), images=[Path("photo.jpg")])
    (config,) = (entry.value for entry in onnx.load("detector.onnx").metadata_props if entry.key == CONFIG_KEY)
    save_openvino(openvino_core().read_model("detector.onnx"), Path("detector.xml"), json.loads(config))
    with_onnxruntime, with_openvino = documented_programs()
    exported: Any = load_exported_detector("detector.onnx").model

    # an image that keeps its size is the same pixel by pixel
    (expected,) = exported.find([to_tensor(read_image("photo.jpg"))])
    names: dict[str, Any] = {}
    exec(with_onnxruntime, names)
    parity = compare_detections([expected], [as_found(names)], [(96, 64)])
    assert (parity.original, parity.share) == (20, 1)
    assert parity.max_box_error is not None
    assert max(parity.max_box_error, parity.max_score_error or 0) < 1e-3
    boxes = expected["boxes"].round().int()
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    assert capsys.readouterr().out.splitlines() == [
        f"dog {score:.0%} {box} {area} pixels"
        for score, box, area in zip(expected["scores"].tolist(), boxes.numpy(), areas, strict=True)
        if area
    ]
    exec(with_openvino, names)
    parity = compare_detections([expected], [as_found(names)], [(96, 64)])
    assert (parity.original, parity.share) == (20, 1)
    # a resized one is rounded to whole values, and random weights put scores so close together that some change places
    write_photo_on_its_side(128, 160)
    (expected,) = exported.find([to_tensor(read_image("photo.jpg"))])
    exec(with_onnxruntime, names)
    assert compare_detections([expected], [as_found(names)], [(160, 128)]).share > 0.8


def documented_programs() -> list[str]:
    """How docs/detection.md uses ``detector.onnx`` on ``photo.jpg``, and then ``detector.xml``."""
    document = Path(__file__).parent.parent / "docs" / "detection.md"
    section = document.read_text(encoding="utf-8").partition("### In programs without PartialNet")[2]
    program = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert program is not None
    return re.split(r"\n(?=model = openvino)", program[1])


def write_photo_on_its_side(width: int, height: int) -> None:
    """``photo.jpg``, as a phone stores a photograph that was taken upright."""
    pixels = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    image = torch.nn.functional.interpolate(pixels, (width, height), mode="bilinear")[0]
    to_pil_image(image).save("photo.jpg", exif=turned)


def as_found(names: dict[str, Any]) -> dict[str, Tensor]:
    """What a program has in variables of these names, as detectors answer it."""
    found = {name: torch.tensor(np.array(names[name])) for name in ("labels", "scores")}
    boxes = torch.tensor(np.array(names["boxes"])).float()
    return {**found, "boxes": boxes, "box_masks": torch.tensor(np.array(names["masks"]))[:, None]}


def test_objects_of_other_categories_are_photographs(
    run_folder: Path, labelled: Path, photos: list[Path], tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(photos[2], folder)
    (folder / "objects.json").write_text(labelled.read_text().replace("dog", "cat"))
    arguments = ("detect", "export", run_folder, "-o", tmp_path / "detector.onnx", "--calibration")
    done = command(*arguments, folder)
    assert (done.code, "accuracy" in done.out) == (0, False)
    assert "AP is not compared" in done.err
    assert "'cat'" in done.err
    refused = command(*arguments, folder / "objects.json")
    assert refused.code == 2
    assert "'cat'" in refused.err
    # what is wrong in any case is told before the data is read
    assert_mistake(command(*arguments, folder, "--precision", "bf16"), "onnx is exported in fp32, fp16, int8")


def test_many_large_photos_are_compared_in_little_memory(
    detector: DetectorCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photograph by photograph, of many some from everywhere, and no mask in the size of a photograph."""
    paths = [tmp_path / f"{number}.png" for number in range(31)]
    read: list[Path] = []

    def read_image(path: Path) -> Image.Image:
        read.append(path)
        return Image.new("RGB", (64, 48))

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("masks in full size")

    monkeypatch.setattr("partialnet.deploy.photos.read_image", read_image)
    monkeypatch.setattr("partialnet.detection.exported.paste_masks_in_image", refuse)
    monkeypatch.setattr("torchvision.models.detection.transform.paste_masks_in_image", refuse)
    result = export_detector(detector, tmp_path / "detector.onnx", images=paths)
    compared = [paths.index(path) for path in dict.fromkeys(read)]
    assert result.same_canvas.num_images == len(compared) == 16
    assert compared[-1] >= 29
    assert max(later - earlier for earlier, later in pairwise(compared)) == 2


def test_photos_that_cannot_be_read_are_told(
    run_folder: Path,
    photos: list[Path],
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for photo in photos:
        shutil.copy(photo, data)
    broken = data / photos[0].name
    broken.write_bytes(b"no image")
    output = tmp_path / "detector.onnx"
    run = ("detect", "export", run_folder, "-o", output, "--calibration")
    for calibration, name in ((data, str(broken)), (f"{data},{labelled}", broken.name)):
        done = command(*run, calibration)
        assert done.code == 0
        assert f"1 unreadable image was left out:\n  {str(broken)!r} is not a" in done.err
        (unreadable,) = json.loads(output.with_name(f"{output.name}.json").read_text())["unreadable"]
        assert unreadable["image"] == name
        assert unreadable["reason"] in done.err
    monkeypatch.setattr(export, "write_detector_onnx", lambda *_: pytest.fail("before it is told"))
    for path in data.iterdir():
        path.write_bytes(b"no image")
    done = command(*run, data)
    assert done.code == 2
    assert "None of the 3 images can be read; the first: " in done.err.splitlines()[-1]


def test_mistakes_are_told(detector: DetectorCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"should end in \.xml"):
        export_detector(detector, tmp_path / "detector.onnx", "openvino")
    with pytest.raises(UserError, match="multiples of 32"):
        export_detector(detector, tmp_path / "detector.onnx", canvas=(100, 128))
    with pytest.raises(UserError, match="folder cannot be made"):
        export_detector(detector, Path(__file__) / "detector.onnx")
    with pytest.raises(UserError, match="folded already"):
        export_detector(detector.fold(), tmp_path / "detector.onnx")
    with pytest.raises(UserError, match="onnx is exported in fp32, fp16, int8, not in bf16"):
        export_detector(detector, tmp_path / "detector.onnx", precision="bf16")
    with pytest.raises(UserError, match="int8 needs images"):
        export_detector(detector, tmp_path / "detector.onnx", precision="int8")
    assert not list(tmp_path.iterdir())
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="damaged"):
        load_exported_detector(tmp_path / "broken.onnx")


def test_scores_below_the_limit_in_the_graph_are_told(
    run_folder: Path, photos: list[Path], tmp_path: Path, command: Command
) -> None:
    limited = load_detector(run_folder)
    heads: Any = limited.model.roi_heads
    heads.score_thresh = 0.25
    output = tmp_path / "detector.onnx"
    export_detector(limited, output, images=photos[:1])
    arguments = ("detect", "predict", output, photos[0], "--device", "cpu", "-o", tmp_path / "drawn")
    below, at = (command(*arguments, "--min-score", score) for score in ("0.2", "0.25"))
    assert (below.code, at.code) == (0, 0)
    assert below.out == at.out
    assert "gives no objects with scores below 0.25" in below.err
    assert "Warning" not in at.err


class Eigenvalues(torch.nn.Module):
    """What no ONNX operator computes."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linalg.eigvals(x[0, 0, :2, :2]).abs().sum()


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_backbone_that_onnx_cannot_hold_is_told(
    format: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    foreign = load_detector(run_folder)
    backbone: Any = foreign.model.backbone
    foreign.model.backbone = torch.nn.Sequential(Eigenvalues(), backbone).eval()
    monkeypatch.setattr("partialnet.detection.checkpoint.load_detector", lambda source: foreign)
    output = tmp_path / f"detector{'.onnx' if format == 'onnx' else '.xml'}"
    done = command("detect", "export", run_folder, "--format", format, "-o", output)
    assert done.code == 2
    said = done.err.splitlines()[-1]
    assert said.startswith(f"partialnet: The detector with partialnet_t0 cannot be exported to {format}: ")
    assert "linalg_eig" in said
    assert not list(tmp_path.iterdir())


def test_a_detector_on_another_device_is_exported_from_a_copy_on_the_cpu(
    detector: DetectorCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[Any, str]] = []
    folded: list[Any] = []

    def fold_for(checkpoint: DetectorCheckpoint, *_: Any) -> None:
        folded.append(checkpoint.model)
        raise RuntimeError("enough was seen")

    monkeypatch.setattr(Detector, "to", lambda model, device: moved.append((model, device)) or model)
    monkeypatch.setattr(DetectorCheckpoint, "fold_for", fold_for)
    with pytest.raises(UserError, match="enough was seen"):
        export_detector(detector, tmp_path / "detector.onnx")
    assert moved == [(folded[0], "cpu")]
    assert folded[0] is not detector.model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_detector_on_a_gpu_is_exported(detector: DetectorCheckpoint, photos: list[Path], tmp_path: Path) -> None:
    on_gpu = replace(detector, model=copy.deepcopy(detector.model).cuda())
    export = export_detector(on_gpu, tmp_path / "detector.onnx", images=photos)
    assert export.same_canvas.share > 0.99
    assert next(on_gpu.model.parameters()).is_cuda


def test_default_canvas_is_of_landscape_images() -> None:
    assert default_canvas((800, 1333)) == (800, 1344)
    assert default_canvas((96, 128)) == (96, 128)
