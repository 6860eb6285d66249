"""Pictures of a run: what they show, for any number of epochs, images and classes."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from partialnet import plots
from partialnet.search import Plan
from partialnet.search import pictures as search_pictures
from partialnet.training import pictures
from partialnet.training.batches import Batch

LUMA = (0.2126, 0.7152, 0.0722)
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written, as well."""
    written: list[Figure] = []
    save = plots.save

    def keep(figure: Figure, path: Path) -> None:
        written.append(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return written


def captions(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.images]


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_curves(epochs: int, figures: list[Figure], tmp_path: Path) -> None:
    names = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
    rows = [
        dict(zip(names, (e, 2.0 / e, 0.1, 3.0 / e, 1 - 0.5 / e, 1e-3 / e), strict=True)) for e in range(1, epochs + 1)
    ]
    plots.learning_curves(tmp_path / "c.png", rows, "costs $5_a$")
    drawn = {
        (axes.get_title(), line.get_label()): list(line.get_ydata())  # type: ignore[call-overload]
        for axes in figures[0].axes
        for line in axes.lines
    }
    assert drawn["Loss", "held out"] == [row["val_loss"] for row in rows]
    assert drawn["Accuracy", "held out"] == [row["val_accuracy"] for row in rows]
    assert drawn["Accuracy", "training, with augmentation"] == [row["train_accuracy"] for row in rows]
    assert [row["lr"] for row in rows] in drawn.values()
    assert Image.open(tmp_path / "c.png").width > 1000


def test_curves_of_a_run_that_overflows_and_gets_worse(figures: list[Figure], tmp_path: Path) -> None:
    names = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
    rows = [
        dict(zip(names, values, strict=True))
        for values in ((1, 2.0, 0.2, 2.3, 0.6, 0.1), (2, 1.9, 0.3, math.inf, 0.5, 0))
    ]
    plots.learning_curves(tmp_path / "c.png", rows, "title")
    loss, accuracy, _ = figures[0].axes
    assert loss.get_ylim() == pytest.approx((0, 1.05 * 2.3))
    assert [(text.get_text(), text.xy) for text in accuracy.texts] == [("best 60.0%", (1, 0.6))]  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [2, 25, 26, 60, 61, 1000])
def test_confusion(size: int, figures: list[Figure], tmp_path: Path) -> None:
    labels = [*range(size), 0, 0, 0]
    predicted = [*range(size), 0, 1, 1]
    names = [f"n${i}_" for i in range(size)]
    plots.confusion_matrix(tmp_path / "m.png", labels, predicted, names, "title")
    axes = figures[0].axes[0]
    shares = np.asarray(axes.images[0].get_array())
    assert shares.shape == (size, size)
    assert shares[0, :2].tolist() == [0.5, 0.5]  # two and two of four
    assert shares[1, 1] == 1
    texts = [text.get_text() for text in axes.texts]
    assert texts == (["2", "2", *["1"] * (size - 1)] if size <= 25 else [])
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert (ticks == names) == (size <= 60)
    if size > 60:
        listed = [text.get_text() for axes in figures[0].axes for text in axes.texts]
        assert listed == ["   2  n$0_ → n$1_"]
    assert max(Image.open(tmp_path / "m.png").size) < 2400


def lightness(colour: str | tuple[float, ...]) -> float:
    """Relative luminance by WCAG 2, from 0 to 1."""
    return float(np.dot([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)], LUMA))


def test_numbers_of_a_confusion_are_legible_on_their_colours(figures: list[Figure], tmp_path: Path) -> None:
    """A contrast of 4.5, as WCAG asks for, whatever the share, of right answers and mistakes."""
    labels = [row for row in range(20) for _ in range(20)]
    predicted = [column for row in range(20) for column in [row] * (20 - row) + [0] * row]
    plots.confusion_matrix(tmp_path / "m.png", labels, predicted, [str(i) for i in range(20)], "title")
    axes = figures[0].axes[0]
    shown = axes.images[0]
    shares = np.asarray(shown.get_array())
    assert len(axes.texts) == 39
    for text in axes.texts:
        column, row = (round(value) for value in text.get_position())
        ground = lightness(shown.to_rgba(shares)[row, column, :3])
        ink = lightness(text.get_color())
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5, shares[row, column]


@pytest.mark.parametrize("size", [10, 100])
def test_nothing_of_a_confusion_is_cut_off(size: int, tmp_path: Path) -> None:
    names = [f"a species with a long name, of number {i}" for i in range(size)]
    plots.confusion_matrix(tmp_path / "m.png", [0, 1, 1], [1, 1, 0], names, "title")
    pixels = np.asarray(Image.open(tmp_path / "m.png").convert("L"))
    assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_confusion_of_classes_without_images(figures: list[Figure], tmp_path: Path) -> None:
    plots.confusion_matrix(tmp_path / "m.png", [0], [0], ["a", "b", "c"], "one image")
    plots.confusion_matrix(tmp_path / "n.png", [], [], [str(i) for i in range(100)], "no image")
    shares = [np.asarray(figure.axes[0].images[0].get_array()) for figure in figures]
    assert shares[0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert not shares[1].any()
    assert figures[1].axes[1].get_title(loc="left") == "no mistakes"


def test_captions_stay_beside_one_another(figures: list[Figure], tmp_path: Path) -> None:
    """Also of many wide letters; those that fit keep their size."""
    captions = ["WWWWWWWWWWWWWWW… 97%\nis WWWWWWWWWWWWWWW…", "cat 97%\nis dog"] * 8
    plots.image_grid(tmp_path / "g.png", [np.zeros((8, 8, 3))] * 16, captions, "title")
    (figure,) = figures
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))
    assert boxes[0].x0 >= 0
    assert figure.axes[1].title.get_fontsize() == 12


@pytest.mark.parametrize("number", [1, 5, 40])
def test_first_batch(number: int, figures: list[Figure], tmp_path: Path) -> None:
    values = torch.rand(number, 3, 6, 8)
    labels = torch.arange(number) % 2
    batch = Batch((values - 0.5) / 0.25, labels, labels, torch.arange(number))
    pictures.draw_first_batch(tmp_path, batch, HALF, ["cat", "dog"])
    shown = [axes for axes in figures[0].axes if axes.images]
    assert len(shown) == min(number, 32)
    pixels = np.asarray(shown[0].images[0].get_array())
    np.testing.assert_allclose(pixels, values[0].permute(1, 2, 0).numpy(), atol=1e-6)
    assert captions(figures[0])[:2] == ["cat", "dog"][:number]
    assert (tmp_path / pictures.FIRST_BATCH_NAME).exists()


def test_first_batch_of_mixed_images(figures: list[Figure], tmp_path: Path) -> None:
    targets = torch.tensor([[0.7, 0.28, 0.02], [0.98, 0.01, 0.01]])
    batch = Batch(torch.zeros(2, 3, 4, 4), targets, torch.zeros(2, dtype=torch.long), torch.arange(2))
    pictures.draw_first_batch(tmp_path, batch, HALF, ["cat, felis", "a very long name of a class", "bird"])
    assert captions(figures[0]) == ["cat 70%\na very long… 28%", "cat 98%"]


class Photos:
    """Grey images; the third cannot be read."""

    def read(self, index: int) -> Image.Image:
        if index == 2:
            from partialnet.errors import UserError

            raise UserError("broken")
        return Image.new("RGB", (300, 20 + index), (index, index, index))


def evaluation(predicted: list[int], probability: list[float]) -> Any:
    from types import SimpleNamespace

    labels = np.zeros(len(predicted), int)
    return SimpleNamespace(
        class_names=("cat", "dog"),
        labels=labels,
        predicted=np.array(predicted),
        probability=np.array(probability),
    )


def test_worst_mistakes_are_the_surest(figures: list[Figure], tmp_path: Path) -> None:
    # of six images one is right, one cannot be read, one had no answer
    found = evaluation([1, 0, 1, 1, -1, 1], [0.6, 1.0, 0.99, 0.8, 0.0, 0.7])
    pictures.draw_worst_mistakes(tmp_path, Photos(), found)  # type: ignore[arg-type]
    assert captions(figures[0]) == [f"dog {share}%\nis cat" for share in (80, 70, 60)]
    first = next(axes for axes in figures[0].axes if axes.images)
    assert int(np.asarray(first.images[0].get_array()).max()) == 3
    assert max(np.asarray(first.images[0].get_array()).shape) == 256


def test_no_mistakes(figures: list[Figure], tmp_path: Path) -> None:
    pictures.draw_worst_mistakes(tmp_path, Photos(), evaluation([0, 0], [0.9, 0.9]))  # type: ignore[arg-type]
    assert captions(figures[0]) == []
    assert (tmp_path / pictures.MISTAKES_NAME).exists()


def test_short_names() -> None:
    assert plots.shorten("tench, Tinca tinca") == "tench"
    assert plots.shorten(",") == ","
    assert plots.shorten("x" * 16) == "x" * 16
    assert plots.shorten("x" * 17) == "x" * 15 + "…"


def test_training_loads_neither_measuring_nor_exporting() -> None:
    code = "import sys, partialnet.training.run; print(*(name for name in sys.modules if 'partialnet.' in name))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "partialnet.plots" in loaded
    assert not [name for name in loaded if name.startswith(("partialnet.bench", "partialnet.deploy"))]


def test_names_that_are_not_utf8_are_drawn(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    plots.confusion_matrix(tmp_path / "confusion.png", [0, 1, 1], [0, 0, 1], [name, "tea"], f"{name}: confusions")
    assert Image.open(tmp_path / "confusion.png").width > 100


def searched(ratios: dict[str, float]) -> Plan:
    return Plan(
        "partialnet_t0", {}, ratios, theta=4.0, zeta=1.0, kappa=2.0, params_m=1.0, macs_g=1.0, input_size=(3, 64, 64)
    )


@pytest.mark.parametrize(("ratio", "colour"), [(1 / 64, "white"), (1 / 2, "black")])
def test_ratios_are_legible_on_their_colours(
    ratio: float, colour: str, figures: list[Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_pictures, "save", plots.save)
    plan = searched({"stages.0.blocks.0.mixer": ratio, "stages.1.blocks.0.mixer": ratio})
    search_pictures.draw_sweep(tmp_path / "s.png", {2.0: plan, 4.0: plan})
    assert [text.get_color() for text in figures[0].axes[0].texts] == [colour] * 4


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_searched_epochs_are_whole(
    epochs: int, figures: list[Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_pictures, "save", plots.save)
    plan = searched({"mixer": 1 / 4})
    row = {"zeta": 1.0, "kappa": 2.0, "val_accuracy": 0.5, "split_ratio/mixer": 1 / 4}
    rows = [{**row, "epoch": epoch} for epoch in range(1, epochs + 1)]
    search_pictures.draw_ratios(tmp_path / "r.png", rows, epochs, plan)
    for axes in [axes for axes in figures[0].axes if axes.get_xlabel() == "epoch"]:
        low, high = axes.get_xlim()
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert shown
        assert set(shown) <= set(range(1, epochs + 1))
