"""``partialnet explain`` as people run it: pictures, figures, and what a mistake looks like."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, assert_mistake
from conftest import TINY, save_run
from PIL import Image

from partialnet.checkpoint import create_checkpoint

CLASSES = ("English springer, springer", "church", "golf ball")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "tiny", classes=CLASSES, **TINY)


@pytest.fixture(scope="module")
def peer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("peers") / "peer", "resnet10t", CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(values).resize((120, 100), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def explain(command: Command) -> Command:
    return partial(command, "explain")


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_pictures_and_figures_of_a_folder(explain: Command, run_folder: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, err = explain(run_folder, photos, "-o", out, "--gates", 1, "--json", tmp_path / "figures.json")
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == ["01-0-attention.png", "01-0-gates.png", "maps.png"]
    assert all(min(size_of(path)) > 400 for path in out.iterdir())
    lines = text.splitlines()
    assert lines[0].startswith(f"{photos / '0.png'}   ")
    assert f"Written:\n  3 pictures in {out}\n  {tmp_path / 'figures.json'}\n" in text
    again = shlex.join(map(str, (run_folder, photos, "-o", out, "--gates", 1, "--json", tmp_path / "figures.json")))
    assert lines[-1] == f"Next: partialnet explain {again} --scores   (measures how faithful the maps are)"
    figures = json.loads((tmp_path / "figures.json").read_text())
    (network,) = figures["networks"]
    assert (network["method"], network["stage"], network["layer"]) == ("gradcam", 4, "stages.3")
    assert network["random_weights"] is False
    assert [entry["width"] for entry in network["images"]] == [120] * 4
    first = network["images"][0]
    assert first["target"] == first["predicted"][0]["class"]
    assert first["seen"] == pytest.approx([10, 0, 110, 100], abs=1)
    assert len(first["gates"]["channel"]) == 4
    assert "versions" in figures["environment"]


def test_several_networks_side_by_side_with_scores(
    explain: Command, run_folder: Path, peer_folder: Path, photos: Path, tmp_path: Path
) -> None:
    command = [run_folder, photos / "0.png", photos / "1.png", "--against", peer_folder, "--target", "Springer"]
    code, text, err = explain(*command, "--stage", 3, "--scores", "--gates", 0, "-o", tmp_path, "--json", "-")
    assert code == 0, err
    networks = json.loads(text)["networks"]
    assert [network["architecture"] for network in networks] == ["partialnet_t0", "resnet10t"]
    assert {entry["target"] for network in networks for entry in network["images"]} == {CLASSES[0]}
    assert [network["layer"] for network in networks] == ["stages.2", "layer3"]
    for network in networks:
        mean = np.mean([entry["areas"]["deletion"] for entry in network["images"]])
        assert network["mean_areas"]["deletion"] == pytest.approx(mean)
        assert all(0 <= area <= 1 for area in network["mean_areas"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"maps.png", "scores.png"}
    assert "deletion" not in err
    assert f"Written: 2 pictures in {tmp_path}\n" in err


def test_all_networks_show_the_class_that_the_first_predicts(
    explain: Command, run_folder: Path, peer_folder: Path, photos: Path, tmp_path: Path
) -> None:
    command = [run_folder, photos, "--against", peer_folder, "--gates", 0, "-o", tmp_path, "--json", "-"]
    _, text, _ = explain(*command)
    first, second = json.loads(text)["networks"]
    assert [entry["target"] for entry in first["images"]] == [entry["target"] for entry in second["images"]]


def test_a_model_name_works_and_says_that_its_weights_are_random(
    explain: Command, photos: Path, tmp_path: Path
) -> None:
    code, _, err = explain("resnet10t", photos / "0.png", "-o", tmp_path, "--img-size", 64, "--position", "10,10")
    assert code == 0
    assert "its weights are random" in err
    assert "no self-attention of ours" in err
    assert [path.name for path in tmp_path.iterdir()] == ["maps.png"]


def test_the_point_of_the_attention(explain: Command, run_folder: Path, photos: Path, tmp_path: Path) -> None:
    code, _, err = explain(run_folder, photos / "0.png", "-o", tmp_path, "--draw", 1, "--position", " 60 , 50%")
    assert code == 0, err
    assert (tmp_path / "01-0-attention.png").is_file()
    # what lies outside of one image costs the others nothing
    code, _, err = explain(run_folder, photos, "-o", tmp_path / "far", "--position", "2,50", "--gates", 1, "--draw", 1)
    assert code == 0
    assert "does not see the point 2,50: of this image it sees x from" in err
    assert (tmp_path / "far" / "maps.png").is_file()


def test_the_pointing_game(explain: Command, run_folder: Path, photos: Path, tmp_path: Path) -> None:
    content = {
        "categories": [{"id": 3, "name": "church"}, {"id": 5, "name": "dog"}],
        "images": [{"id": n, "file_name": f"{n}.png", "width": 120, "height": 100} for n in range(3)],
        "annotations": [
            {"image_id": 0, "category_id": 3, "bbox": [0, 0, 120, 100]},
            {"image_id": 1, "category_id": 5, "bbox": [30, 0, 40, 40]},
        ],
    }
    boxes = tmp_path / "instances.json"
    boxes.write_text(json.dumps(content))
    command = [run_folder, photos, "--boxes", boxes, "--category", "springer=dog", "-o", tmp_path / "out", "--draw", 0]
    code, text, err = explain(*command, "--json", tmp_path / "figures.json")
    assert code == 0, err
    game = json.loads((tmp_path / "figures.json").read_text())["networks"][0]["pointing_game"]
    assert game["num_points"] == 2
    assert set(game["categories"]) == {"church", "dog"}
    assert game["categories"]["church"]["chance"] == 1
    assert game["classes"] == {"church": "church", "dog": CLASSES[0]}
    assert (tmp_path / "out" / "pointing.png").is_file()
    assert "pointing" in text
    code, _, err = explain(run_folder, photos / "3.png", "--boxes", boxes, "-o", tmp_path / "out", "--draw", 0)
    assert code == 2
    assert "None of the images is in the file of boxes" in err


def test_broken_images_are_told_and_the_others_explained(explain: Command, run_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), "teal").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    figures = tmp_path / "figures.json"
    code, text, err = explain(run_folder, tmp_path, "-o", tmp_path / "out", "--gates", 0, "--json", figures)
    assert code == 2
    assert "good.png" in text
    assert "bad.png" in err
    assert "1 of 2 images could not be read" in err
    (unreadable,) = json.loads(figures.read_text())["unreadable"]
    assert unreadable["image"] == str(tmp_path / "bad.png")
    assert unreadable["reason"] in err
    assert (tmp_path / "out" / "maps.png").is_file()
    (tmp_path / "kept").mkdir()
    for folder in ("new/below", "kept"):
        code, _, err = explain(run_folder, tmp_path / "bad.png", "-o", tmp_path / folder)
        assert code == 2
        assert "1 of 1 images could not be read" in err
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "golfball"], "Similar names: golf ball"),
        (["--target", "7"], "no class '7'"),
        (["--stage", "9"], "no stage 9"),
        (["--method", "grad-cam"], "Did you mean gradcam"),
        (["--method", "eigencam", "--target", "church"], "leave one of them out"),
        (["--method", "eigencam", "--scores"], "--scores needs a class"),
        (["--position", "here"], "must be X,Y"),
        (["--position", "1,2,3"], "must be X,Y"),
        (["--boxes", "missing.json"], "no file 'missing.json'"),
        (["--category", "church=dog"], "--boxes"),
        (["--against", "resnet_18"], "Similar names: resnet18"),
        (["--against", "missing/run"], "no file or folder"),
        (["--json", "missing/figures.json"], "no folder 'missing'"),
        (["--device", "cud"], "no device 'cud'"),
    ],
)
def test_mistakes_are_one_sentence(
    explain: Command, run_folder: Path, photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert_mistake(explain(run_folder, photos / "0.png", "-o", tmp_path / "out", *arguments), message)


def test_without_the_library_it_is_named(explain: Command, run_folder: Path, photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert_mistake(explain(run_folder, photos), 'pip install "partialnet[explain]"')


def test_a_folded_checkpoint_has_maps_and_no_gates(explain: Command, photos: Path, tmp_path: Path) -> None:
    checkpoint = create_checkpoint("partialnet_t0", CLASSES, num_classes=3, **TINY)
    checkpoint.input_config |= {"input_size": [3, 64, 64], "crop_pct": 1.0}
    checkpoint.fold().save(tmp_path / "folded")
    code, _, err = explain(tmp_path / "folded", photos / "0.png", "-o", tmp_path / "out")
    assert code == 0
    assert "is folded, so its gates are merged" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["maps.png"]
