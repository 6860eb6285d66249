"""Evaluation against figures worked out by hand or by sklearn, and against predict."""

import copy
import csv
import itertools
import json
import shlex
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command, assert_mistake
from conftest import randomize_parameters
from PIL import Image
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.data import FolderImages, LabelledImages, Subset
from partialnet.data.evaluation_parts import evaluation_folder
from partialnet.data.labelled_images import describe_images
from partialnet.data.sources import open_data
from partialnet.errors import UserError
from partialnet.evaluation import Evaluation, evaluate, match_classes
from partialnet.prediction import Classifier, Prediction
from partialnet.preprocessing import Preprocessing

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
FILES = 3


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checkpoint = create_checkpoint("partialnet_t0", CLASSES, num_classes=7, embed_dim=16, depths=(1, 1, 1, 1))
        randomize_parameters(checkpoint.model)
    checkpoint.model.eval()
    checkpoint.input_config["input_size"] = [3, 32, 32]
    return checkpoint


def make_image(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40 + seed % 7, 50), Image.Resampling.BICUBIC)


def make_folder(root: Path, names: tuple[str, ...] = CLASSES, files: int = FILES) -> Path:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(files):
            make_image(100 * place + number).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def run_folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("runs") / "run").parent


def answers(labels: list[int], predicted: list[int], probability: list[float]) -> Evaluation:
    right = np.array(labels) == np.array(predicted)
    return Evaluation(CLASSES, np.array(labels), np.array(predicted), np.array(probability), right, {}, 2.0)


def test_every_answer_is_that_of_predict(checkpoint, folder):
    images = FolderImages(folder)
    result = evaluate(checkpoint, images)
    paths = [folder / images.name(index) for index in range(len(images))]
    predictions = [prediction for _, prediction in Classifier(checkpoint).predict(paths)]
    for index, prediction in enumerate(predictions):
        assert isinstance(prediction, Prediction)
        assert CLASSES[result.predicted[index]] == prediction.classes[0][0]
        assert result.probability[index] == pytest.approx(prediction.classes[0][1], abs=1e-5)
        top5 = [name for name, _ in prediction.classes]
        assert result.in_top5[index] == (CLASSES[result.labels[index]] in top5)
    # a network that gives one class to all images would hide any mix-up of images
    assert len(set(result.predicted.tolist())) > 2


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 2), (100, 1)])
def test_batches_and_workers_change_nothing(batch_size, workers, checkpoint, folder):
    images = FolderImages(folder)
    expected, given = evaluate(checkpoint, images, 5), evaluate(checkpoint, images, batch_size, workers)
    np.testing.assert_array_equal(given.predicted, expected.predicted)
    np.testing.assert_array_equal(given.in_top5, expected.in_top5)
    np.testing.assert_allclose(given.probability, expected.probability, atol=1e-5)


def test_figures_agree_with_sklearn(checkpoint, folder):
    images = FolderImages(folder)
    result = evaluate(checkpoint, images)
    classifier = Classifier(checkpoint)
    logits = classifier.run(classifier.prepare(images.read(index) for index in range(len(images)))).numpy()
    assert result.top1 == pytest.approx(top_k_accuracy_score(images.labels, logits, k=1))
    assert result.top5 == pytest.approx(top_k_accuracy_score(images.labels, logits, k=5))
    matrix = confusion_matrix(images.labels, logits.argmax(1), labels=range(7))
    for index, item in enumerate(result.classes):
        assert (item.name, item.num_images) == (CLASSES[index], FILES)
        assert item.accuracy == pytest.approx(matrix[index, index] / FILES)
        wrong = np.delete(matrix[index], index)
        assert item.num_confused == wrong.max()
        if item.confused_with is not None:
            assert matrix[index, CLASSES.index(item.confused_with)] == item.num_confused


def test_classes_in_any_alphabet_stand_in_columns(checkpoint, tmp_path, command: Command):
    names = ("cat", "고양이", "U\u0308ber", *CLASSES[3:])
    checkpoint = replace(checkpoint, class_names=names)
    checkpoint.save(tmp_path / "run")
    code, output, _ = command("eval", tmp_path / "run", make_folder(tmp_path / "data", names[:3], files=1))
    assert code == 0
    starts = (  # of six columns for the names: three signs take two each, the accent none
        "class   images  accuracy  ",
        "cat          1  ",
        "고양이       1  ",
        "U\u0308ber         1  ",
    )
    lines = output.splitlines()
    assert all(any(line.startswith(start) for line in lines) for start in starts), output


def test_figures_by_hand():
    result = answers([0, 0, 0, 1, 1], [0, 1, 1, 1, 6], [0.9, 0.5, 0.6, 0.95, 0.3])
    assert result.top1 == pytest.approx(0.4)
    assert result.images_per_second == pytest.approx(2.5)
    ant, bee = result.classes
    assert (ant.num_images, ant.accuracy, ant.confused_with, ant.num_confused) == (3, pytest.approx(1 / 3), "bee", 2)
    assert (bee.num_images, bee.accuracy, bee.confused_with, bee.num_confused) == (2, 0.5, "gnu", 1)


def test_calibration_error_by_hand():
    # bins of 1/15: 0.91 and 0.92 share one (2 right of 2), 0.5 and 0.52 another (1 of 2), 0.2 is alone (0 of 1)
    result = answers([0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0.91, 0.92, 0.50, 0.52, 0.20])
    expected = (2 * abs(1 - 0.915) + 2 * abs(0.5 - 0.51) + abs(0 - 0.2)) / 5
    assert result.calibration_error == pytest.approx(expected)
    assert answers([0, 1], [0, 1], [1.0, 1.0]).calibration_error == 0
    assert answers([0, 1], [1, 0], [1.0, 1.0]).calibration_error == 1


def test_broken_images_are_left_out_and_named(checkpoint, folder, tmp_path):
    broken = make_folder(tmp_path / "data")
    (broken / "bee" / "0a.png").write_bytes((broken / "bee" / "1.png").read_bytes()[:100])
    (broken / "elk" / "text.jpg").write_text("no image")
    for workers in (0, 1):
        result = evaluate(checkpoint, FolderImages(broken), batch_size=2, workers=workers)
        told = result.as_dict()["unreadable"]
        assert [one["image"] for one in told] == ["bee/0a.png", "elk/text.jpg"]
        assert all(str(broken / one["image"]) in one["reason"] for one in told)
        assert result.num_images == 7 * FILES
        assert result.as_dict()["num_unreadable"] == 2
        assert result.top1 == pytest.approx(evaluate(checkpoint, FolderImages(folder)).top1)
    rows = list(result.rows(FolderImages(broken)))
    assert [row["path"] for row in rows if "predicted" not in row] == ["bee/0a.png", "elk/text.jpg"]


def test_nothing_but_broken_images(checkpoint, tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"None of the 1 images can be read.*a\.png"):
        evaluate(checkpoint, FolderImages(tmp_path))


class Mute(torch.nn.Module):
    """Answers NaN to every second image of a batch and class 1 to the others."""

    num_classes = 7

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 7)
        logits[:, 1] = 9
        logits[1::2] = torch.nan
        return logits


def test_answers_that_are_no_numbers_are_wrong(checkpoint, folder):
    mute = Checkpoint(Mute(), "mute", {}, CLASSES, checkpoint.input_config)
    result = evaluate(mute, Subset(FolderImages(folder), [3, 4, 5, 0]), batch_size=4)
    assert (result.num_images, result.num_not_finite, result.num_right) == (4, 2, 2)
    assert "NaN" not in json.dumps(result.as_dict())


class Named(LabelledImages):
    """Images of some classes, each of its own colours, wherever the class stands in the order."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        self.labels = np.arange(len(class_names))

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        return make_image(CLASSES.index(self.class_names[index]))

    def name(self, index: int) -> str:
        return self.class_names[index]


def test_classes_are_matched_by_name(checkpoint):
    sorted_result, mixed_result = (evaluate(checkpoint, Named(names)) for names in (CLASSES, CLASSES[::-1]))
    np.testing.assert_array_equal(mixed_result.labels, sorted_result.labels[::-1])
    np.testing.assert_array_equal(mixed_result.predicted, sorted_result.predicted[::-1])
    assert mixed_result.top1 == sorted_result.top1
    some = evaluate(checkpoint, Named(("elk", "bee")))
    assert some.labels.tolist() == [4, 1]
    assert [item.name for item in some.classes] == ["bee", "elk"]


def test_networks_without_class_names(checkpoint):
    nameless = Checkpoint(checkpoint.model, "partialnet_t0", {}, (), checkpoint.input_config)
    names = ("1", "2", "3", "4", "5", "6", "7")
    images = Named(CLASSES)
    images.class_names = names
    assert match_classes(images, Classifier(nameless)).tolist() == list(range(7))
    with pytest.raises(UserError, match="7 classes without names and the images have 2"):
        match_classes(Named(("ant", "bee")), Classifier(nameless))


def test_preprocessing_of_very_long_images(checkpoint):
    image = Image.new("RGB", (4000, 2), "red")
    assert Preprocessing(checkpoint.input_config)(image).shape == (3, 32, 32)


def test_parts_of_a_data_set(tmp_path):
    for part in ("train", "val", "test"):
        make_folder(tmp_path / "all" / part, ("ant", "bee"), 1)
    assert evaluation_folder(tmp_path / "all") == tmp_path / "all" / "val"
    assert evaluation_folder(tmp_path / "all", "test") == tmp_path / "all" / "test"
    with pytest.raises(UserError, match="no folder 'dev'; it has test, train, val"):
        evaluation_folder(tmp_path / "all", "dev")
    for part in ("Train", "Test"):
        make_folder(tmp_path / "capital" / part, ("ant", "bee"), 1)
    assert evaluation_folder(tmp_path / "capital") == tmp_path / "capital" / "Test"
    make_folder(tmp_path / "alone" / "train", ("ant",), 1)
    with pytest.raises(UserError, match="only train; name one with --split"):
        evaluation_folder(tmp_path / "alone")
    # "test" among other classes is a class
    classes = make_folder(tmp_path / "classes", ("test", "rest"), 1)
    assert evaluation_folder(classes) == classes


def test_command_writes_all_its_files(run_folder, folder, tmp_path, command: Command):
    files = {name: tmp_path / name for name in ("a.json", "a.csv", "a.png")}
    code, output, _ = command(
        *("eval", run_folder, folder, "--json", files["a.json"]),
        *("--csv", files["a.csv"], "--confusion", files["a.png"], "--batch-size", 4),
    )
    assert code == 0
    assert "21 images" in output
    report = json.loads(files["a.json"].read_text())
    rows = list(csv.DictReader(files["a.csv"].open()))
    assert len(rows) == report["num_images"] == 21
    assert report["top1"] == pytest.approx(np.mean([row["label"] == row["predicted"] for row in rows]))
    assert report["environment"]["versions"]["torch"]
    assert all((folder / row["path"]).is_file() for row in rows)
    with Image.open(files["a.png"]) as picture:
        assert picture.format == "PNG"


def test_command_has_no_confusions_to_draw(checkpoint, folder, tmp_path, command: Command):
    broken = copy.deepcopy(checkpoint)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.nan)
    broken.save(tmp_path)
    picture = tmp_path / "a.png"
    result = command("eval", tmp_path, folder, "--limit", "7", "--confusion", picture)
    assert result.code == 0
    assert "no confusions to draw" in result.err
    assert not picture.exists()


def test_command_prints_json_alone(run_folder, folder, command: Command):
    result = command("eval", run_folder, folder, "--json", "-", "--limit", "7")
    report = json.loads(result.out)
    assert report["num_images"] == 7
    # the images are sorted by class, and a limit keeps every class
    assert [item["num_images"] for item in report["classes"]] == [1] * 7
    assert "7 of 21 images" in result.err


def test_data_that_is_no_folder(checkpoint, folder, tmp_path, command: Command):
    """Of shards the held-out part is evaluated, of those without parts what the run held out, or all for other runs."""
    for part, files in (("train", range(3)), ("val", range(2))):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            for name, file in itertools.product(CLASSES, files):
                tar.add(folder / name / f"{file}.png", f"{name}-{part}-{file}.png")
                (tmp_path / "cls").write_text(name)
                tar.add(tmp_path / "cls", f"{name}-{part}-{file}.cls")
    both, learnt = f"wds/{tmp_path}", f"wds/{tmp_path}/train.tar"
    checkpoint.save(tmp_path / "other")
    about = {"config": {"val_share": 0.4, "seed": 3}, "data": describe_images(open_data(learnt, 0.4, 3))}
    replace(checkpoint, training=about).save(tmp_path / "run")
    for run, data, count, told in (
        ("other", [both], 14, f"the held-out part of {both}"),
        ("other", [both, "--split", "train"], 21, f"the training part of {both}"),
        ("other", [learnt], 21, f"all of {learnt}"),
        ("other", [learnt, "--split", "val"], 7, "10% of each class held out, seed 0"),
        ("run", [learnt], 7, "40% of each class held out, seed 3"),
    ):
        result = command("eval", tmp_path / run, *data, "--json", "-", "--workers", 0)
        assert json.loads(result.out)["num_images"] == count
        assert told in result.err
    assert_mistake(command("eval", tmp_path / "run", both, "--split", "test"), "the parts train and val")
    given = [str(tmp_path / "run"), str(both), "--split", "train", "--limit", "2", "--workers", "0"]
    following = "--csv answers.csv --confusion confusion.png   (shows every answer)"
    assert command("eval", *given).out.endswith(f"\nNext: partialnet eval {shlex.join(given)} {following}\n")


def test_images_that_the_network_learnt_from_are_told(checkpoint, folder, tmp_path, command: Command):
    about = {"config": {"val_share": 0.4, "seed": 3}, "data": describe_images(open_data(str(folder), 0.4, 3))}
    replace(checkpoint, training=about).save(tmp_path / "run")
    assert "learnt from 14 of these 21 images" in command("eval", tmp_path / "run", folder).err
    other = make_folder(tmp_path / "other", files=2)
    assert "learnt" not in command("eval", tmp_path / "run", other).err


def test_mistakes_are_told_in_a_sentence(run_folder, folder, tmp_path, command: Command):
    (tmp_path / "empty").mkdir()
    flat = tmp_path / "flat"
    flat.mkdir()
    make_image(0).save(flat / "a.png")
    alien = make_folder(tmp_path / "alien", ("ants", "bee"), 1)
    for arguments, message in (
        ((run_folder, tmp_path / "missing"), "no folder"),
        ((run_folder, tmp_path / "empty"), "holds no folders"),
        ((run_folder, flat), "holds no folders"),
        ((run_folder, folder / "ant" / "0.png"), "is a file"),
        ((run_folder, alien), "no class 'ants'; the most similar one is 'ant'"),
        (("partialnet_t0", folder), "untrained"),
        ((tmp_path / "empty", folder), "not a run folder"),
        ((folder / "ant" / "0.png", folder), "not a checkpoint"),
        ((run_folder, folder, "--device", "abacus"), "no device 'abacus'"),
        ((run_folder, folder, "--csv", tmp_path / "nowhere" / "a.csv"), "no folder"),
    ):
        assert_mistake(command("eval", *arguments), message)
