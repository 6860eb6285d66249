"""``partialnet predict``: classes of images, as text and as JSON."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import CLASSES, NUM_PHOTOS, Command, Result, assert_mistake
from PIL import Image
from stored_networks import released_layout

from partialnet.checkpoint import create_checkpoint, load


def test_predict_every_kind_of_image(run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder, photos, "--json", "-")
    assert (result.code, result.err) == (0, "")
    rows = [json.loads(line) for line in result.out.splitlines()]
    images = [str(path) for path in sorted(photos.rglob("*")) if path.is_file() and path.suffix != ".txt"]
    assert [row["image"] for row in rows] == images
    assert len(rows) == NUM_PHOTOS
    for row in rows:
        assert sorted(entry["class"] for entry in row["classes"]) == sorted(CLASSES)
        probabilities = [entry["probability"] for entry in row["classes"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("channels", "told"), [(1, "images of 1 channel; photographs"), (4, "images of 4 channels; photo")]
)
def test_a_network_for_other_channels_is_told(
    channels: int, told: str, photos: Path, tmp_path: Path, command: Command
) -> None:
    tiny = {"embed_dim": 16, "depths": (1, 1, 1, 1), "in_chans": channels}
    run = create_checkpoint("partialnet_t0", CLASSES, num_classes=len(CLASSES), **tiny).save(tmp_path).parent
    assert_mistake(command("predict", run, photos), told)
    refused = command("export", run, "-o", tmp_path / "net.onnx")
    assert refused.code == 2
    assert told in refused.err


def test_predict_gives_what_the_network_gives(run_folder: Path, photos: Path, command: Command) -> None:
    """Preprocessing by hand: shorter side to 64, centre 64×64, ImageNet's mean and deviation."""
    image = Image.new("RGB", (64, 64))
    image.putdata([(x * 4 % 256, y * 4 % 256, (x + y) % 256) for y in range(64) for x in range(64)])
    path = photos.parent / "exact.png"
    image.save(path)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = load(run_folder).model(((pixels - mean[:, None, None]) / std[:, None, None])[None]).softmax(1)[0]
    row = json.loads(command("predict", run_folder, path, "--json", "-").out)
    got = {entry["class"]: entry["probability"] for entry in row["classes"]}
    assert [got[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_nothing(batch_size: int, run_folder: Path, photos: Path, command: Command) -> None:
    def probabilities(result: Result) -> list[list[float]]:
        return [[e["probability"] for e in json.loads(line)["classes"]] for line in result.out.splitlines()]

    expected = probabilities(command("predict", run_folder, photos, "--json", "-"))
    got = probabilities(command("predict", run_folder, photos, "--json", "-", "--batch-size", batch_size))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_predict_as_text(run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder / "model.safetensors", photos / "grey.png", photos / "more" / "pixel.png")
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()
    assert first.startswith(f"{photos / 'grey.png'}   ")
    assert second.startswith(f"{photos / 'more' / 'pixel.png'}   ")
    assert len(re.findall(r"(cat|dog|Übergröße) \d+\.\d%", first)) == 3


def test_a_name_with_a_line_break(run_folder: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    try:
        image = shutil.copy(photos / "grey.png", tmp_path / "a\nb\x1b[31m.png")
    except OSError:
        pytest.skip("the disk takes no such names")
    result = command("predict", run_folder, image)
    assert result.code == 0
    assert result.out.startswith(rf"{tmp_path}/a\nb\x1b[31m.png   ")
    assert result.out.count("\n") == 1


@pytest.mark.parametrize(("topk", "shown"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_topk(topk: int, shown: int, run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder, photos / "grey.png", "--topk", topk, "--json", "-")
    assert len(json.loads(result.out)["classes"]) == shown
    assert command("predict", run_folder, photos / "grey.png", "-k", topk).out.count("%") == shown


def test_predict_by_pattern(run_folder: Path, photos: Path, command: Command) -> None:
    result = command("predict", run_folder, f"{photos}/*.tif", f"{photos}/**/*.PNG", "--json", "-", "-k", 1)
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == [
        "deep.tif",
        "float.tif",
        "ümläut 猫.PNG",
    ]


def test_broken_images_among_good_ones(run_folder: Path, broken: Path, command: Command) -> None:
    result = command("predict", run_folder, broken, "--json", "-")
    assert result.code == 2
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == ["a_good.jpg", "h_good.png"]
    lines = result.err.splitlines()
    assert all(line.startswith("partialnet: ") for line in lines)
    for line, letter in zip(lines[:-1], "bcdefg", strict=True):
        assert f"/{letter}_" in line
    assert lines[-1] == "partialnet: 6 of 8 images could not be classified."


def test_answers_that_are_no_numbers(run_folder: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    """NaN would be no JSON, and no answer."""
    checkpoint = load(run_folder)
    with torch.no_grad():
        next(checkpoint.model.parameters()).fill_(torch.nan)
    checkpoint.save(tmp_path)
    result = command("predict", tmp_path, photos / "grey.png", "--json", "-")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [
        f"partialnet: {str(photos / 'grey.png')!r}: The network's answer is not a number (NaN): it overflows.",
        "partialnet: 1 of 1 images could not be classified.",
    ]


def test_all_images_broken(run_folder: Path, broken: Path, command: Command) -> None:
    result = command("predict", run_folder, broken / "c_empty.png", broken / "d_text.jpg")
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 3


def test_predict_with_a_released_checkpoint(tmp_path: Path, photos: Path, command: Command) -> None:
    model = timm.create_model("partialnet_t0", num_classes=4, depths=(1, 1, 1, 1), head_hidden_size=16)
    torch.save({"state_dict": released_layout(model)}, tmp_path / "released.pth")
    result = command("predict", tmp_path / "released.pth", photos / "grey.png", "--json", "-")
    assert result.code == 0
    classes = {entry["class"] for entry in json.loads(result.out)["classes"]}
    assert classes == {f"class {index}" for index in range(4)}
    data = json.loads(command("info", tmp_path / "released.pth", "--json", "-").out)
    assert "tensors loaded" in data["report"]


def test_a_model_name_does_not_predict(command: Command, tmp_path: Path):
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    assert_mistake(command("predict", "partialnet_t0", tmp_path / "photo.png"), "untrained")


def test_json_goes_to_a_file_beside_the_text(run_folder: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    printed = command("predict", run_folder, photos, "--json", "-")
    written = command("predict", run_folder, photos, "--json", tmp_path / "answers.jsonl")
    assert (tmp_path / "answers.jsonl").read_text() == printed.out
    assert f"Written: {tmp_path}/answers.jsonl" in written.out
    assert str(photos / "grey.png") in written.out


def test_json_into_no_folder(run_folder: Path, photos: Path, command: Command) -> None:
    assert_mistake(command("predict", run_folder, photos, "--json", "nowhere/answers.jsonl"), "no folder 'nowhere'")


def test_predict_takes_a_device(run_folder: Path, photos: Path, command: Command) -> None:
    assert command("predict", run_folder, photos, "--device", "cpu").code == 0
    assert_mistake(command("predict", run_folder, photos, "--device", "gpu7"), "'gpu7'")
