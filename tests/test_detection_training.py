"""`partialnet detect train`, `eval` and `predict` from their data to their files, killed, shared and misused."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from coco_sets import CATEGORIES, evaluated_images, make_content, write_images, write_set
from commands import Command, assert_mistake
from conftest import Randomize
from detector_runs import CONFIG
from PIL import Image
from stored_networks import assert_bitwise_equal
from torchvision.ops import box_iou
from training_runs import DRAW_NOTHING, metrics
from warm_processes import WarmProcesses

from partialnet.checkpoint import load
from partialnet.detection.checkpoint import create_detector, load_detector
from partialnet.detection.config import DetectionConfig
from partialnet.detection.data_sources import open_detection_data, open_evaluation
from partialnet.detection.inference import evaluate_detector
from partialnet.detection.model import Detector
from partialnet.detection.run import DetectorRun, train_detector
from partialnet.errors import UserError
from partialnet.training.recipes import apply_recipe, recipe_names
from partialnet.training.settings import as_yaml, create_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("data") / "shapes", count=10)


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_detector(CONFIG, data, folder)
    return folder


def test_run_folder(trained: Path) -> None:
    found = metrics(trained)
    assert len(found) == CONFIG.epochs
    for row in found:
        losses = [row[name] for name in row if name.startswith("loss_")]
        assert len(losses) == 5
        assert row["train_loss"] == pytest.approx(sum(losses), rel=1e-4)
        assert 0 <= row["val_box_ap"] <= row["val_box_ap50"] <= 1
        assert 0 <= row["val_mask_ap"] <= 1
    for name in ("curves.png", "precision_recall.png", "truth_and_detections.png", "first_batch.png", "config.yaml"):
        assert (trained / name).stat().st_size > 0
    detector = load_detector(trained)
    assert detector.categories == {entry["id"]: entry["name"] for entry in CATEGORIES}
    assert detector.training["config"]["seed"] == 0
    assert create_settings(DetectionConfig, detector.training["config"]) == CONFIG
    with pytest.raises(UserError, match="detect"):
        load(trained)


def test_evaluation_is_that_of_the_run(trained: Path, data: str, tmp_path: Path, command: Command) -> None:
    """The command's numbers, folded or not, whatever the images in a step, are those of the run's best epoch."""
    # the run held out a part of its data, which is written as a set of its own here
    held_out = open_detection_data(data, None, CONFIG.val_share, CONFIG.seed).validation
    content = json.loads((Path(data) / "annotations.json").read_text())
    kept = {int(number) for number in held_out.image_ids}
    content["images"] = [entry for entry in content["images"] if entry["id"] in kept]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (tmp_path / "held_out.json").write_text(json.dumps(content))
    pair = f"{data}/images,{tmp_path / 'held_out.json'}"
    best = max((row["val_box_ap"] + row["val_mask_ap"]) / 2 for row in metrics(trained))
    for source, *options in (
        (pair, "--no-fold", "--batch-size", "4"),
        (data, "--fold"),  # of which the run's own held-out images are taken
    ):
        output = tmp_path / "-".join(["evaluation", *options])
        common = ("--workers", "0", "--device", "cpu", "-o", output, "--json", "-")
        told = command("detect", "eval", trained, source, *options, *common)
        assert f"Evaluating {'the 3 of 10' if source == data else 'all 3'} images of " in told.err
        figures = json.loads(told.out)
        assert (figures["network"], figures["num_images"]) == (str(trained), 3)
        found = (figures["boxes"]["ap"] + figures["masks"]["ap"]) / 2
        assert found == pytest.approx(best, abs=1e-4)
        assert json.loads((output / "evaluation.json").read_text()) == figures
        detections = json.loads((output / "detections.json").read_text())
        assert len(detections) == figures["num_detections"]
        assert (output / "precision_recall.png").exists()


def test_which_images_are_evaluated(trained: Path, data: str, tmp_path: Path) -> None:
    training = load_detector(trained).training
    names = ("square", "kite", "blob")

    def evaluated(source: str, split: str | None = None, **changes: Any) -> tuple[int, str]:
        images, told = open_evaluation(source, names, split, {**training, **changes})
        return len(images), told

    assert evaluated(data, "all") == (10, f"Evaluating all 10 images of {data}/annotations.json.")
    # another detector's data, or other objects: nothing tells what was learnt
    assert evaluated(data, config={**training["config"], "seed": 5})[0] == 10
    assert evaluated(data, config={**training["config"], "validation": "elsewhere"})[0] == 10
    assert evaluated(write_set(tmp_path / "other", count=10, seed=1))[0] == 10
    with pytest.raises(UserError, match="has no part 'test'; it has none, so that there is 'all' only"):
        evaluated(data, "test")
    parts = tmp_path / "parts"
    write_set(parts / "train", count=4)
    with pytest.raises(UserError, match="has a training part only; to evaluate on it, give --split train"):
        evaluated(str(parts))
    write_set(parts / "test", count=5)
    assert evaluated(str(parts)) == (
        5,
        f"Evaluating all 5 images of {parts}/test/annotations.json; --split takes another part.",
    )
    assert evaluated(str(parts), "train") == (4, f"Evaluating all 4 images of {parts}/train/annotations.json.")
    with pytest.raises(UserError, match="has no part 'val'; it has test, train"):
        evaluated(str(parts), "val")


def test_a_folded_detector_is_as_precise(data: str, tmp_path: Path, randomize: Randomize) -> None:
    """Untrained detectors find nothing that is there, so what one finds is taken for the truth."""
    detector = create_detector(
        "partialnet_t0",
        {entry["id"]: entry["name"] for entry in CATEGORIES},
        **{"model_args": CONFIG.model_args, "img_size": (48, 80), "pyramid_channels": 32, "num_proposals": 40},
        **{"score_thresh": 0.0, "detections_per_img": 5},
    )
    # in double precision, as rounding alone may swap detections of nearly the same score
    randomize(detector.model).double().transform.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, args: ([image.double() for image in args[0]], *args[1:])
    )
    content = json.loads((Path(data) / "annotations.json").read_text())
    content["annotations"] = evaluate_detector(detector, evaluated_images(data), workers=0).detections
    (tmp_path / "found.json").write_text(json.dumps(content))
    images = evaluated_images(f"{data}/images,{tmp_path / 'found.json'}")
    before, after = (evaluate_detector(one, images, workers=0).evaluation for one in (detector, detector.fold()))
    assert before.boxes.ap == pytest.approx(1)
    assert after.boxes.ap == pytest.approx(before.boxes.ap, abs=1e-4)
    assert before.masks is not None
    assert after.masks is not None
    assert (before.masks.ap or 0) > 0.5  # masks may be empty, and then have no overlap with themselves
    assert after.masks.ap == pytest.approx(before.masks.ap, abs=1e-4)


def test_broken_images_are_told_and_do_not_count(trained: Path, tmp_path: Path, command: Command) -> None:
    data = write_set(tmp_path / "shapes", count=3)
    (tmp_path / "shapes" / "images" / "001.jpg").write_bytes(b"no image")
    evaluate = ("detect", "eval", trained, data, "-w", "0", "--device", "cpu", "-o", tmp_path / "out")
    assert "1 unreadable image was left out:" in command(*evaluate, "--no-fold").err
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert told["num_images"] == 2
    (unreadable,) = told["unreadable"]
    assert unreadable["image"] == "001.jpg"
    assert "001.jpg' is not a JPEG" in unreadable["reason"]
    assert "crowd" in told["faults"]
    for path in (tmp_path / "shapes" / "images").iterdir():
        path.write_bytes(b"no image")
    refused = command(*evaluate[:-1], tmp_path / "none")
    assert refused.code == 2
    assert "None of the 3 images can be read" in refused.err
    assert not (tmp_path / "none").exists()


def test_prediction_draws_and_tells(trained: Path, data: str, tmp_path: Path, command: Command) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.open(Path(data) / "images" / "000.jpg").save(photos / "one.png")
    Image.fromarray(np.full((30, 400, 3), 128, np.uint8)).save(photos / "wide.png")
    (photos / "broken.jpg").symlink_to("broken.jpg")  # in a circle
    arguments = ("detect", "predict", trained, photos, "-o", tmp_path / "drawn", "--device", "cpu")
    output = command(*arguments, "--min-score", "0", "--json", "-")
    assert output.code == 2
    assert "broken.jpg" in output.err
    assert "1 of 3 images" in output.err
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["one.png", "wide.png"]
    for line in lines:
        assert Image.open(line["picture"]).width >= 30
        width, height = Image.open(line["image"]).size
        for found in line["objects"]:
            left, top, right, bottom = found["box"]
            assert -0.01 <= left <= right <= width + 0.01
            assert -0.01 <= top <= bottom <= height + 0.01
            assert found["mask"]["size"] == [height, width]
            assert found["category"] in {"square", "kite", "blob"}
    told = command(*arguments, "--json", tmp_path / "found.jsonl")
    assert told.code == 2
    assert f"Written:\n  2 pictures in {tmp_path / 'drawn'}\n  {tmp_path / 'found.jsonl'}\n" in told.out
    (photos / "one.png").write_bytes(b"no image")
    assert command("detect", "predict", trained, photos / "one.png", "-o", tmp_path / "none").code == 2
    assert not (tmp_path / "none").exists()


def test_the_choice_of_boxes_is_the_users(tmp_path: Path, randomize: Randomize, command: Command) -> None:
    settings = {"model_args": CONFIG.model_args, "img_size": (48, 80), "pyramid_channels": 32, "num_proposals": 40}
    detector = create_detector("partialnet_t0", {1: "square"}, score_thresh=0.6, detections_per_img=30, **settings)
    randomize(detector.model)
    detector.save(tmp_path / "run")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    drawn = ("-o", tmp_path / "drawn", "--device", "cpu")
    predict = ("detect", "predict", tmp_path / "run", tmp_path / "photo.png", *drawn)

    def found(*options: str) -> list[dict[str, Any]]:
        return json.loads(command(*predict, "--json", "-", *options).out)["objects"]

    def overlap(objects: list[dict[str, Any]]) -> float:
        boxes = torch.tensor([one["box"] for one in objects])
        return float(box_iou(boxes, boxes).fill_diagonal_(0).max())

    every = found("--min-score", "0", "--nms", "1", "--max-objects", "1000")
    assert len(every) > 30
    assert min(one["score"] for one in every) < 0.6
    assert overlap(every) > 0.5
    few = found("--min-score", "0", "--nms", "0.2")
    assert 1 < len(few) <= 30
    assert overlap(few) < 0.21
    three = found("--min-score", "0", "--nms", "0.2", "--max-objects", "3")
    assert [one["score"] for one in three] == sorted((one["score"] for one in few), reverse=True)[:3]
    for more, told in {(): True, ("--min-score", "0.1"): False}.items():  # no advice that would leave out more
        assert ("--min-score 0.3" in command(*predict, *more).out) == told
    middle = sorted(one["score"] for one in every)[len(every) // 2]
    assert min(one["score"] for one in found("--min-score", str(middle), "--nms", "1")) >= middle


@pytest.mark.parametrize("option", ["--nms=0.3", "--max-objects=5"])
def test_the_choice_of_an_exported_file_is_fixed(option: str, data: str, tmp_path: Path, command: Command) -> None:
    refused = command("detect", "predict", "detector.onnx", f"{data}/images", option, "-o", tmp_path / "drawn")
    assert_mistake(refused, "give the run it came from to use --nms or --max-objects")


def test_prediction_replaces_no_photograph(trained: Path, tmp_path: Path, command: Command) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "one.png")
    before = (tmp_path / "one.png").read_bytes()
    assert_mistake(command("detect", "predict", trained, tmp_path / "one.png", "-o", tmp_path), "would replace")
    photo, drawn = tmp_path / "one.png", tmp_path / "drawn"
    assert_mistake(command("detect", "predict", trained, photo, "-o", drawn, "--json", photo), "what the command reads")
    assert (tmp_path / "one.png").read_bytes() == before


def test_evaluation_replaces_no_annotations(trained: Path, data: str, command: Command) -> None:
    annotations = Path(data) / "annotations.json"
    before = annotations.read_bytes()
    for given in (data, annotations, f"{data}/images,{annotations}"):
        assert_mistake(command("detect", "eval", trained, given, "--json", annotations), "is what the command reads")
    assert annotations.read_bytes() == before


def test_pictures_come_with_every_epoch(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialnet.training.keeper.SECONDS_BETWEEN_PICTURES", -1.0)
    monkeypatch.setattr(DetectorRun, "finish", lambda *arguments: None)
    train_detector(replace(CONFIG, epochs=1), data, tmp_path)
    for name in ("curves.png", "precision_recall.png", "truth_and_detections.png"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.usefixtures("without_pictures")
def test_killed_training_ends_with_the_same_bits(
    data: str, trained: Path, tmp_path: Path, warm_processes: WarmProcesses
) -> None:
    config = replace(CONFIG, save_minutes=0.0)
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    arguments = ("detect", "train", data, "--config", tmp_path / "config.yaml", "-o", tmp_path / "run")
    process = warm_processes.start(*arguments, out=tmp_path / "out", before=DRAW_NOTHING)
    process.wait_until(lambda: list((tmp_path / "run" / "state").glob("*epoch-1-batch-1*")))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.err
    train_detector(config, data, tmp_path / "run", resume=True)
    ours, theirs = (load_detector(folder / "last").model.state_dict() for folder in (tmp_path / "run", trained))
    assert_bitwise_equal(ours, theirs)
    for row, expected in zip(metrics(tmp_path / "run"), metrics(trained), strict=True):
        assert all(row[name] == expected[name] for name in ("train_loss", "val_box_ap", "val_mask_ap", "lr"))


@pytest.mark.slow
def test_two_processes_evaluate_as_one(data: str, trained: Path, tmp_path: Path, warm_processes: WarmProcesses) -> None:
    """Training goes on from the same weights, without learning, so that both evaluate the same network."""
    config = replace(CONFIG, epochs=1, lr=0.0, warmup_epochs=0.0, weights=str(trained), batch_size=2, frozen_bn=True)
    numbers = []
    for devices in (1, 2):
        folder = tmp_path / f"run-{devices}"
        (tmp_path / "config.yaml").write_text(as_yaml(config))
        command = ["detect", "train", data, "--devices", devices, "--config", tmp_path / "config.yaml", "-o", folder]
        process = warm_processes.start(*command, "--no-out-norm", out=tmp_path / "out", before=DRAW_NOTHING)
        assert process.wait() == 0, process.err
        row = metrics(folder)[0]
        numbers.append([row[name] for name in row if name.startswith("val_")])
    assert numbers[0] == numbers[1]


def repeated(content: dict[str, Any], times: int) -> dict[str, Any]:
    """The same images and objects several times in an epoch, which is validated once."""
    images, annotations = content["images"], content["annotations"]
    far = 1 + max(entry["id"] for entry in images)
    return {
        **content,
        "images": [{**entry, "id": entry["id"] + far * n} for n in range(times) for entry in images],
        "annotations": [
            {**entry, "id": entry["id"] + len(annotations) * n, "image_id": entry["image_id"] + far * n}
            for n in range(times)
            for entry in annotations
        ],
    }


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_it_learns(tmp_path: Path) -> None:
    """Four images by heart: the boxes are found again."""
    content = make_content(4, seed=3, crowds=False)
    # large shapes apart from each other: whether small ones can be told apart is not the question here
    kept: dict[int, list[dict[str, object]]] = {}
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        others = kept.setdefault(annotation["image_id"], [])
        apart = all(
            left > o["bbox"][0] + o["bbox"][2]
            or o["bbox"][0] > left + width  # type: ignore[index]
            or top > o["bbox"][1] + o["bbox"][3]
            or o["bbox"][1] > top + height  # type: ignore[index]
            for o in others
        )
        if width >= 12 and height >= 12 and apart:
            others.append(annotation)
    content["annotations"] = [annotation for chosen in kept.values() for annotation in chosen]
    write_images(tmp_path / "images", content)
    (tmp_path / "shapes.json").write_text(json.dumps(content))
    (tmp_path / "again.json").write_text(json.dumps(repeated(content, 20)))
    once, again = (f"{tmp_path / 'images'},{tmp_path / name}" for name in ("shapes.json", "again.json"))
    settings = {"epochs": 2, "num_proposals": 40, "num_sampled": 32, "horizontal_flip": 0.0, "clip_grad": 10.0}
    config = replace(CONFIG, validation=once, img_size=(96, 160), **settings)
    result = train_detector(config, again, tmp_path / "run")
    assert result.evaluation.boxes.ap50 is not None
    assert result.evaluation.boxes.ap50 >= 0.9
    assert result.evaluation.masks is not None
    assert (result.evaluation.masks.ap50 or 0) >= 0.5


# -- settings and mistakes -------------------------------------------------------------------------------------------


def test_recipe_is_table_7() -> None:
    config = apply_recipe(DetectionConfig, "coco_1x", {"model": "partialnet_s"})
    assert (config.epochs, config.decay_epochs, config.decay_rate, config.img_size) == (12, (8, 11), 0.1, (800, 1333))
    assert (config.lr, config.lr_batch, config.weight_decay, config.optimizer) == (2e-4, 16, 1e-4, "adamw")
    for model in ("partialnet_m", "partialnet_l"):
        assert apply_recipe(DetectionConfig, "coco_1x", {"model": model}).lr == 1e-4
    half = apply_recipe(DetectionConfig, "coco_1x", {"epochs": 6})
    assert half.decay_epochs == (4, 5.5)
    assert set(recipe_names(DetectionConfig)) == {"coco_1x", "small"}


def test_training_sizes_follow_the_image_size() -> None:
    """Five around the shorter side, none above the longer one."""
    assert apply_recipe(DetectionConfig, "small", {}).training_sides == (384, 418, 446, 480, 514)
    config = apply_recipe(DetectionConfig, "small", {"img_size": (240, 250)})
    config.check()
    assert config.training_sides == (192, 209, 223, 240, 250)
    assert apply_recipe(DetectionConfig, "coco_1x", {}).training_sides == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--img-size", "200"], "img_size is 200"),
        (["--img-size", "300,200"], "shorter and the longer"),
        (["--model", "vit_tiny_patch16_224"], "feature pyramid"),
        (["--recipe", "coco1x"], "Did you mean coco_1x"),
        (["--mixup", "0.1"], "--mixup"),
        (["--model-args", "features_only=true"], "may not contain features_only"),
        (["--weights", "nowhere"], "nowhere"),
        (["--frozen-stages", "1"], "frozen_stages without weights"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, data: str, tmp_path: Path, command: Command
) -> None:
    refused = command("detect", "train", data, "--device", "cpu", "-o", tmp_path / "run", *arguments)
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_pictures")
def test_broken_photo_is_replaced_and_listed(tmp_path: Path) -> None:
    data = write_set(tmp_path / "shapes", count=10)
    (tmp_path / "shapes" / "images" / "002.jpg").write_bytes(b"no image")
    config = replace(CONFIG, epochs=1, warmup_epochs=0.0, max_unreadable_share=0.5)
    train_detector(config, data, tmp_path / "run")
    assert (tmp_path / "run" / "unreadable_images.txt").read_text() == "002.jpg\n"
    Image.new("RGB", (9, 8)).save(tmp_path / "shapes" / "images" / "002.jpg")
    with pytest.raises(UserError, match="1 of 10 images cannot be read, or have another size than the file says, more"):
        train_detector(replace(config, max_unreadable_share=0.05), data, tmp_path / "strict")


def test_an_exported_file_is_evaluated_too(data: str, tmp_path: Path) -> None:
    from partialnet.detection.export import export_detector
    from partialnet.detection.sources import open_detector

    torch.manual_seed(0)
    categories = {entry["id"]: entry["name"] for entry in CATEGORIES}
    settings = {"model_args": CONFIG.model_args, "pyramid_channels": 32, "img_size": (64, 96), "num_proposals": 40}
    detector = create_detector("partialnet_t0", categories, **settings)
    images = evaluated_images(data, tuple(categories.values()))
    export_detector(detector, tmp_path / "detector.onnx", canvas=(64, 96))
    exported = open_detector(tmp_path / "detector.onnx")
    ours = evaluate_detector(exported, images, workers=0)
    assert ours.evaluation.num_images == len(images)


@pytest.mark.parametrize(("task", "part"), [("eval", ""), ("predict", "/images")])
def test_an_exported_file_is_refused_on_a_gpu(
    task: str, part: str, data: str, tmp_path: Path, command: Command
) -> None:
    arguments = (tmp_path / "detector.onnx", data + part, "--device", "cuda", "-o", tmp_path / "out")
    assert_mistake(command("detect", task, *arguments), "Exported files run on the CPU")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_pictures")
def test_normalisation_of_other_weights_survives_a_resume(data: str, trained: Path, tmp_path: Path) -> None:
    other = load_detector(trained)
    other.model.transform.image_mean, other.model.transform.image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]  # type: ignore[union-attr]
    other.save(tmp_path / "other")
    config = replace(CONFIG, weights=str(tmp_path / "other"))
    train_detector(config, data, tmp_path / "run")
    for path in (tmp_path / "run").glob("state/*-epoch-2-*"):
        path.unlink()  # as if it had been killed in its last epoch
    train_detector(config, data, tmp_path / "run", resume=True)
    for folder in (tmp_path / "run", tmp_path / "run" / "last"):
        found = load_detector(folder)
        assert (found.mean, found.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.mark.usefixtures("without_pictures")
def test_frozen_stages_are_those_of_the_weights(data: str, trained: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, weights=str(trained), frozen_stages=2, epochs=1, warmup_epochs=0.0)
    train_detector(config, data, tmp_path / "run")
    before, after = (load_detector(folder).model.state_dict() for folder in (trained, tmp_path / "run"))
    body, frozen = "backbone.maps.body.", ("patch_embed.", "stages_0.", "stages_1.")
    for name in before:
        if name.startswith(body) and before[name].is_floating_point():
            stays = name.removeprefix(body).startswith(frozen)
            assert after[name].equal(before[name]) == stays or not before[name].any(), name


def test_a_state_of_other_groups_of_parameters_is_refused(
    data: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of versions before the position tables were excepted from decay."""
    shutil.copytree(trained / "state", tmp_path / "run" / "state")
    monkeypatch.setattr(Detector, "no_weight_decay", lambda self: set())
    with pytest.raises(UserError, match="is of another version of PartialNet"):
        train_detector(CONFIG, data, tmp_path / "run", resume=True)


def test_another_run_is_a_model(trained: Path, command: Command) -> None:
    printed = command("detect", "train", "--model", trained, "--print-config").out
    config = create_settings(DetectionConfig, yaml.safe_load(printed))
    assert (config.model, config.model_args, config.weights) == (CONFIG.model, CONFIG.model_args, str(trained))
    assert config.pyramid_channels == CONFIG.pyramid_channels


def test_a_strip_is_searched_like_any_photo(trained: Path, tmp_path: Path, command: Command) -> None:
    for name, size in (("1.png", (400, 3)), ("2.png", (40, 30)), ("3.png", (2, 500))):
        Image.new("RGB", size).save(tmp_path / name)
    command("detect", "predict", trained, tmp_path, "--device", "cpu", "-o", tmp_path / "drawn")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["1.png", "2.png", "3.png"]


def test_a_strip_is_evaluated_like_any_image(trained: Path, tmp_path: Path) -> None:
    root = Path(write_set(tmp_path / "shapes", count=4))
    Image.new("RGB", (400, 3)).save(root / "images" / "000.jpg")
    content = json.loads((root / "annotations.json").read_text())
    content["images"][0].update(width=400, height=3)
    for entry in content["annotations"]:
        if entry["image_id"] == content["images"][0]["id"]:
            entry.update(bbox=[1, 0, 50, 3], segmentation=[])
    (root / "annotations.json").write_text(json.dumps(content))
    images = evaluated_images(str(root))
    assert [400, 3] in images.sizes[:, ::-1].tolist()
    found = evaluate_detector(load_detector(trained), images, workers=0)
    assert found.evaluation.num_images == len(images) == 4
    assert found.unreadable == ()
