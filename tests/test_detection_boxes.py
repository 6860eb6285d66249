"""Data with boxes and no masks: what is trained, found, measured and exported without a head for masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import CATEGORIES, evaluated_images, run_lengths, write_set
from commands import Command
from conftest import Randomize
from detector_runs import CONFIG
from PIL import Image
from stored_networks import assert_bitwise_equal
from training_runs import TINY, metrics

import partialnet
from partialnet.detection.batches import detection_train_loader
from partialnet.detection.bench import count_detector
from partialnet.detection.checkpoint import DetectorCheckpoint, create_detector, load_detector
from partialnet.detection.data_sources import open_detection_data
from partialnet.detection.evaluator import evaluate
from partialnet.detection.exported import load_exported_detector
from partialnet.detection.inference import evaluate_detector
from partialnet.detection.run import DetectorRun, train_detector
from partialnet.detection.weights import load_weights
from partialnet.training.settings import as_yaml

NO_MASKS = "The data has no masks, so only boxes are learnt."


def rewrite(data: str, change: Callable[[list[dict[str, Any]]], object]) -> str:
    """The data set with its objects changed."""
    path = Path(data) / "annotations.json"
    content = json.loads(path.read_text())
    change(content["annotations"])
    path.write_text(json.dumps(content))
    return data


def drop_masks(annotations: list[dict[str, Any]]) -> None:
    """Without masks, as tools write it: an empty list, or nothing."""
    for number, entry in enumerate(annotations):
        if number % 2:
            entry["segmentation"] = []
        else:
            del entry["segmentation"]


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("data") / "masks", count=8)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return rewrite(write_set(tmp_path_factory.mktemp("data") / "boxes", count=8), drop_masks)


@pytest.fixture(scope="module")
def trained(boxes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_detector(CONFIG, boxes, folder)
    return folder


def tiny(**settings: Any) -> DetectorCheckpoint:
    light = {"pyramid_channels": 16, "num_proposals": 20, "num_sampled": 16, "img_size": (48, 80)}
    categories = {entry["id"]: entry["name"] for entry in CATEGORIES}
    return create_detector("partialnet_t0", categories, **{"model_args": TINY, **light, **settings})


def announced(data: str, **settings: Any) -> str:
    """What a run says of itself before it begins."""
    kind, config = DetectorRun(), replace(CONFIG, **settings)
    task, _ = kind.create_task(config, kind.open_data(data, config), 1)
    return " ".join(kind.announce(task))


# -- training ----------------------------------------------------------------------------------------------------------


def test_boxes_are_learnt_without_a_mask_head(trained: Path) -> None:
    for row in metrics(trained):
        losses = {name: row[name] for name in row if name.startswith("loss_")}
        assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
        assert row["train_loss"] == pytest.approx(sum(losses.values()), rel=1e-4)
        assert not [name for name in row if "mask" in name]
    detector = load_detector(trained)
    assert not detector.has_masks
    assert not [name for name in detector.model.state_dict() if "mask" in name]
    assert json.loads((trained / "config.json").read_text())["detector"] == "faster_rcnn"
    for name in ("curves.png", "precision_recall.png", "truth_and_detections.png", "first_batch.png"):
        assert (trained / name).stat().st_size > 0


def test_a_run_says_why_it_learns_boxes_only(boxes: str, masks: str) -> None:
    told = announced(boxes)
    assert NO_MASKS in told
    assert "Faster R-CNN on partialnet_t0" in told
    assert "stand in" not in told  # nothing is wrong with boxes
    assert "Mask R-CNN on partialnet_t0" in announced(masks)
    assert NO_MASKS not in announced(masks)
    told = announced(masks, masks=False)
    assert "Faster R-CNN on partialnet_t0" in told
    assert NO_MASKS not in told


def test_groups_alone_make_no_masks(tmp_path: Path) -> None:
    """Crowds have run lengths in data of boxes, too, but nobody learns from them."""

    def change(annotations: list[dict[str, Any]]) -> None:
        drop_masks(annotations)
        mask = np.zeros((48, 64), np.uint8)
        mask[5:20, 5:30] = 1
        annotations[0].update(iscrowd=1, segmentation=run_lengths(mask))

    assert NO_MASKS in announced(rewrite(write_set(tmp_path / "crowd", count=8, crowds=False), change))


def test_some_objects_without_masks_are_counted(tmp_path: Path) -> None:
    data = rewrite(write_set(tmp_path / "mixed", count=8), lambda annotations: drop_masks(annotations[:3]))
    told = announced(data)
    assert "Mask R-CNN" in told
    assert "3 objects have no usable outline; their boxes stand in for their masks" in told
    without = announced(data, masks=False)
    assert "Faster R-CNN" in without
    assert "stand in" not in without


def test_masks_are_drawn_only_to_be_learnt(boxes: str, masks: str) -> None:
    for data, asked, expected in (
        (masks, None, True),
        (masks, True, True),
        (masks, False, False),
        (boxes, None, False),
    ):
        images = open_detection_data(data).train
        batch = next(iter(detection_train_loader(images, replace(CONFIG, masks=asked), epoch=0)))
        assert batch.targets
        assert all(("masks" in target) == expected for target in batch.targets)


def test_masks_that_are_not_there_cannot_be_asked_for(boxes: str, tmp_path: Path, command: Command) -> None:
    refused = command("detect", "train", boxes, "--masks", "--device", "cpu", "-o", tmp_path / "run")
    assert refused.code == 2
    assert "The training data has no masks to learn; leave out --masks" in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_run_of_boxes_continues_with_the_same_bits(boxes: str, trained: Path, tmp_path: Path) -> None:
    train_detector(CONFIG, boxes, tmp_path / "run")
    for path in (tmp_path / "run").glob("state/*-epoch-2-*"):
        path.unlink()  # as if it had been killed in its last epoch
    train_detector(CONFIG, boxes, tmp_path / "run", resume=True)
    ours, theirs = (load_detector(folder / "last").model.state_dict() for folder in (tmp_path / "run", trained))
    assert_bitwise_equal(ours, theirs)


@pytest.mark.usefixtures("without_pictures")
def test_boxes_alone_can_be_asked_for(masks: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "config.yaml").write_text(as_yaml(replace(CONFIG, epochs=1, warmup_epochs=0.0)))
    told = command("detect", "train", masks, "--no-masks", "--config", tmp_path / "config.yaml", "-o", tmp_path / "run")
    assert told.code == 0, told.err
    assert told.out.split()[:2] == ["boxes", "AP"]
    detector = load_detector(tmp_path / "run")
    assert not detector.has_masks
    assert detector.training["config"]["masks"] is False
    assert detector.training["data"]["has_outlines"]


# -- what it finds -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
def test_boxes_are_evaluated_alone(trained: Path, boxes: str, masks: str, tmp_path: Path, command: Command) -> None:
    for data, why in ((boxes, ""), (masks, "Only boxes are evaluated, as the detector gives no masks.")):
        output = tmp_path / Path(data).name
        told = command(
            "detect", "eval", trained, data, "--split", "all", "-w", "0", "--device", "cpu", "-o", output, "--json", "-"
        )
        assert told.code == 0, told.err
        assert why in told.err
        figures = json.loads(told.out)
        assert figures["boxes"]["ap"] is not None
        assert figures["masks"] is None
        assert {category["mask_ap"] for category in figures["categories"]} == {None}
        found = json.loads((output / "detections.json").read_text())
        assert found
        assert not [one for one in found if "segmentation" in one]


def test_a_detector_of_boxes_that_finds_nothing_has_no_masks(masks: str) -> None:
    images = evaluated_images(masks)
    assert evaluate(images, []).masks is not None
    assert evaluate(images, [], with_masks=False).masks is None
    found = evaluate_detector(tiny(masks=False, score_thresh=0.999), images, workers=0)
    assert found.detections == []
    assert found.evaluation.masks is None


@pytest.mark.usefixtures("without_pictures")
def test_masks_are_measured_only_on_data_that_has_them(boxes: str, tmp_path: Path, command: Command) -> None:
    tiny().save(tmp_path / "run")
    arguments = ("detect", "eval", tmp_path / "run", boxes, "-w", "0", "--device", "cpu", "-o", tmp_path / "out")
    told = command(*arguments)
    assert "Only boxes are evaluated, as the data has no masks." in told.err
    assert told.out.split()[:2] == ["boxes", "AP"]


def test_photographs_get_boxes_only(trained: Path, tmp_path: Path, command: Command) -> None:
    Image.effect_noise((80, 48), 80).save(tmp_path / "photo.png")
    options = ("--min-score", "0", "--device", "cpu", "-o", tmp_path / "drawn", "--json", "-")
    told = command("detect", "predict", trained, tmp_path / "photo.png", *options)
    objects = json.loads(told.out)["objects"]
    assert objects
    assert {found["mask"] for found in objects} == {None}
    assert (tmp_path / "drawn" / "photo.png").exists()


# -- the network and its weights ---------------------------------------------------------------------------------------


def test_boxes_are_those_of_the_detector_with_masks(randomize: Randomize) -> None:
    """The head for masks has no say in them."""
    with_masks, without = tiny(score_thresh=0.0), tiny(score_thresh=0.0, masks=False)
    randomize(with_masks.model)
    own = without.model.state_dict()
    without.model.load_state_dict({name: value for name, value in with_masks.model.state_dict().items() if name in own})
    photo = torch.rand(3, 48, 80)
    with torch.no_grad():
        (expected,), (found,) = with_masks.model([photo]), without.model([photo])
        (found_again,) = partialnet.fold(without.model).find([photo])
    assert set(found) == set(found_again) == {"boxes", "labels", "scores"}
    assert len(found["boxes"])
    assert all(found[name].equal(expected[name]) for name in found)
    torch.testing.assert_close(found_again["boxes"], found["boxes"], rtol=1e-4, atol=1e-3)


def test_files_tell_whether_there_are_masks(tmp_path: Path) -> None:
    for masks, kind in ((True, "Mask R-CNN"), (False, "Faster R-CNN")):
        detector = tiny(masks=masks)
        again = load_detector(detector.save(tmp_path / kind))
        assert (again.kind, again.has_masks) == (kind, masks)
        assert_bitwise_equal(again.model.state_dict(), detector.model.state_dict())


def test_detectors_with_and_without_masks_start_from_each_other(tmp_path: Path, randomize: Randomize) -> None:
    for masks in (True, False):
        other, detector = tiny(masks=masks), tiny(masks=not masks)
        randomize(other.model)
        other.save(tmp_path / str(masks))
        before = {name: value.clone() for name, value in detector.model.state_dict().items()}
        report = load_weights(detector, tmp_path / str(masks))
        theirs = other.model.state_dict()
        for name, value in detector.model.state_dict().items():
            assert value.equal(theirs.get(name, before[name])), name
        assert ("Its head for masks is not used." if masks else "The head for masks is new.") in report
        assert "NEW" not in report
        assert "NOT USED" not in report


# -- other runtimes, and measuring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.usefixtures("without_pictures")
def test_boxes_are_exported_and_found_again(
    format: str, masks: str, tmp_path: Path, randomize: Randomize, command: Command
) -> None:
    pytest.importorskip("openvino" if format == "openvino" else "onnxruntime")
    detector = tiny(masks=False, score_thresh=0.1, detections_per_img=8)
    randomize(detector.model)
    detector.save(tmp_path / "run")
    output = tmp_path / {"onnx": "detector.onnx", "openvino": "detector.xml"}[format]
    photo = Path(masks) / "images" / "000.jpg"
    told = command("detect", "export", tmp_path / "run", "-f", format, "--images", photo, "-o", output)
    assert told.code == 0, told.err
    assert f"Exporting {tmp_path / 'run'} (Faster R-CNN) to {format} in fp32" in told.err
    assert "of a score" in told.out
    assert "masks" not in told.out
    report = json.loads(output.with_name(f"{output.name}.json").read_text())["same_canvas"]
    assert report["matched"] > 0
    assert report["matched"] >= 0.9 * report["original"]
    assert report["min_mask_iou"] is None
    exported = load_exported_detector(output)
    assert not exported.has_masks
    (found,) = exported.model([torch.rand(3, 48, 80)])
    assert set(found) == {"boxes", "labels", "scores"}
    if format == "openvino":  # from here on both are the same
        return
    common = ("--device", "cpu", "-o", tmp_path / "out", "--json", "-")
    evaluation = json.loads(command("detect", "eval", output, masks, "-w", "0", *common).out)
    assert evaluation["num_detections"] > 0
    assert evaluation["masks"] is None
    objects = json.loads(command("detect", "predict", output, photo, "--min-score", "0.1", *common).out)["objects"]
    assert {one["mask"] for one in objects} == {None}


def test_a_trained_detector_is_counted_with_its_own_proposals(tmp_path: Path) -> None:
    macs = []
    for number in (100, 1000):
        tiny(masks=False, num_proposals=number).save(tmp_path / str(number))
        macs.append(count_detector(str(tmp_path / str(number)), (64, 96)).macs_g["boxes"])
    assert macs[1] == pytest.approx(10 * macs[0])


def test_detectors_of_boxes_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    with_masks, without = (count_detector("resnet10t", (64, 96), 16, masks) for masks in (True, False))
    assert with_masks.params_m.keys() - without.params_m.keys() == {"masks"}
    assert with_masks.macs_g.keys() - without.macs_g.keys() == {"masks"}
    assert without.total_macs_g == pytest.approx(with_masks.total_macs_g - with_masks.macs_g["masks"])
    monkeypatch.setattr("partialnet.detection.bench._CANDIDATES", 3)
    options = ("--img-size", "64", "96", "--pyramid-channels", "16", "--rounds", "1", "--seconds", "0")
    told = command("detect", "bench", "resnet10t", "--no-masks", *options, "--json", "-")
    assert told.code == 0, told.err
    content = json.loads(told.out)
    assert content["setting"]["masks"] is False
    assert "masks" not in content["rows"][0]["params_m_by_part"]
    assert content["rows"][0]["timing"]
