"""Pictures of detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from coco_sets import evaluated_images, write_set
from matplotlib.figure import Figure
from PIL import Image

from partialnet import plots
from partialnet.detection.annotations import DetectionImages
from partialnet.detection.drawing import (
    MAX_OBJECTS,
    DrawnObjects,
    class_color,
    comparison_grid,
    draw_objects,
    found_on,
    precision_recall_plot,
    truth_of,
)
from partialnet.detection.evaluator import Detection, evaluate
from partialnet.detection.pictures import draw_curves


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DetectionImages:
    return evaluated_images(write_set(tmp_path_factory.mktemp("set"), 6))


def detection(images: DetectionImages, index: int, score: float, box: list[float]) -> Detection:
    category_id = int(images.category_ids[0])
    return {"image_id": int(images.image_ids[index]), "category_id": category_id, "bbox": box, "score": score}


def test_a_mask_is_tinted_and_the_rest_is_not() -> None:
    image = Image.new("RGB", (400, 200), (90, 90, 90))
    outline = [[100.0, 50.0, 200.0, 50.0, 200.0, 150.0, 100.0, 150.0]]
    drawn = draw_objects(image, DrawnObjects(np.array([[100, 50, 200, 150.0]]), [1], ["cat 93%"], [outline]))
    pixels = np.asarray(drawn).astype(int)
    assert drawn.size == (800, 400)
    expected = 0.55 * 90 + 0.45 * np.array(class_color(1))
    assert np.abs(pixels[200, 300] - expected).max() <= 2
    assert pixels[200, 600].tolist() == [90, 90, 90]
    assert (pixels[100:106, 250] == class_color(1)).all(1).any()  # the box's upper edge
    assert np.asarray(image).max() == 90  # the image itself is as it was


@pytest.mark.parametrize("box", [[-5, -5, 500, 300], [0, 0, 3, 3], [395, 195, 400, 200], [150, 100, 150.2, 100.2]])
def test_boxes_anywhere_can_be_drawn(box: list[float]) -> None:
    objects = DrawnObjects(np.array([box]), [80], ["a name that is much too long for any box on this image 100%"])
    assert draw_objects(Image.new("RGB", (400, 200)), objects).size == (800, 400)


def test_nothing_and_sizes() -> None:
    nothing = DrawnObjects(np.zeros((0, 4)), [], [])
    assert draw_objects(Image.new("RGB", (10, 1000)), nothing).size == (10, 1000)
    assert draw_objects(Image.new("L", (4000, 2000)), nothing).size == (1600, 800)
    assert draw_objects(Image.new("RGB", (3000, 1)), nothing).size == (1600, 1)


def test_colours_of_classes_differ() -> None:
    colors = np.array([class_color(label) for label in range(1, 21)])
    distances = np.abs(colors[:, None] - colors[None]).sum(2) + 1000 * np.eye(20)
    assert distances.min() > 25
    assert len({class_color(label) for label in range(1, 81)}) == 80


def test_only_the_surest_are_drawn(images: DetectionImages) -> None:
    found = [detection(images, 1, score, [1.0, 2.0, 10.0, 20.0]) for score in np.linspace(0.3, 1, 200).tolist()]
    objects = found_on(images, 1, [*found, detection(images, 2, 1.0, [0.0, 0.0, 5.0, 5.0])])
    assert len(objects) == MAX_OBJECTS
    assert objects.captions[0] == "kite 100%"
    assert objects.boxes[0].tolist() == [1, 2, 11, 22]
    assert len(found_on(images, 3, found)) == 0
    assert any("(crowd)" in caption for index in range(6) for caption in truth_of(images, index).captions)


def test_pictures_are_written(images: DetectionImages, tmp_path: Path) -> None:
    found = [detection(images, index, 0.9, [1.0, 2.0, 10.0, 20.0]) for index in range(6)]
    comparison_grid(tmp_path / "grid.png", images, [0, 2, 5], found, "three images")
    comparison_grid(tmp_path / "one.png", images, [1], [], "one_image with $ in its name")
    precision_recall_plot(tmp_path / "precision.png", evaluate(images, found), "a run")
    for name in ("grid.png", "one.png", "precision.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10


def test_curves_of_losses_differ_for_colour_blind_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    names = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    others = {"train_loss": 3.0, "lr": 1e-3, "val_box_ap": 0.1, "val_box_ap50": 0.2}
    rows = [{"epoch": epoch} | others | dict.fromkeys(names, 0.6) for epoch in (1, 2)]
    draw_curves(tmp_path / "curves.png", rows)
    colours = [line.get_color() for line in figures[0].axes[0].lines]
    assert colours == ["black", *plots.PALETTE[:5]]
