"""Fixtures that the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Threads gain nothing on tensors this small. While another process has the cores they wait for each other and the
# tests take 20 times as long. The variable is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from commands import CLASSES, Command, Result
from PIL import Image
from torch import nn

import partialnet  # noqa: F401 - registers the variants with timm
from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet_cli import main

if TYPE_CHECKING:
    from exports import Conversions
    from training_runs import Train
    from warm_processes import WarmProcesses

    from partialnet.data import FolderImages
    from partialnet.deploy.export import Export
    from partialnet.training.run import TrainResult
    from partialnet.ui import PageServer

torch.set_num_threads(1)

MAX_PROCESSES = 8  # each takes up to 2 GB
TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 2, 1], "head_hidden_size": 24}

Randomize = Callable[[nn.Module], nn.Module]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core; none beside this one where single files or tests are named, which begin at once so."""
    if any(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_PROCESSES)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """Layers and tensors in double precision unless they are told otherwise."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def randomize() -> Randomize:
    return randomize_parameters


@torch.no_grad()
def randomize_parameters(model: nn.Module) -> nn.Module:
    """Weights, affines and statistics as after training, in place.

    A fresh network's features shrink from layer to layer and its normalisations do nothing, so that errors would
    disappear below any tolerance. Here outputs are of order one, gates vary, and no statistic is 0 or 1.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        leaf = name.rpartition(".")[2]
        if not tensor.is_floating_point():
            continue  # counters, indices
        if leaf == "running_var" or (leaf == "weight" and tensor.ndim == 1):
            tensor.copy_(torch.empty_like(tensor).uniform_(0.5, 1.5))
        elif leaf == "table":
            tensor.copy_(torch.randn_like(tensor))
        elif tensor.ndim > 1:
            tensor.copy_(torch.randn_like(tensor) * (1.0 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.2 * torch.randn_like(tensor))
    return model


def save_run(folder: Path, name: str = "partialnet_t0", classes: tuple[str, ...] = CLASSES, **model_args: Any) -> Path:
    """A network for 64×64 images, with weights as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checkpoint = create_checkpoint(name, classes, num_classes=len(classes), **model_args)
        randomize_parameters(checkpoint.model)
    checkpoint.input_config |= {"input_size": [3, 64, 64], "crop_pct": 1.0}
    checkpoint.save(folder)
    return folder


# -- things to run the commands on -----------------------------------------------------------------------------------


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; an exception that a user would see as a traceback fails the test."""

    def run(*args: Any) -> Result:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in args])
        except SystemExit as error:
            code = error.code
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def warm_processes() -> Iterator[WarmProcesses]:
    """Run commands in processes that need not import anything."""
    from warm_processes import WarmProcesses

    with WarmProcesses() as processes:
        yield processes


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network for 64×64 images of three classes."""
    return save_run(tmp_path_factory.mktemp("runs") / "tiny", **TINY)


@pytest.fixture
def own_run(tmp_path: Path, randomize: Randomize) -> Path:
    """A tiny network that the test alone has, and may damage."""
    from stored_networks import tiny

    tiny(randomize).save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images of every kind, in a nested folder, beside a text that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("LA").save(folder / "la.png")
    Image.fromarray(np.dstack((noise, noise[:, :, :1]))).save(folder / "rgba.png")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.tif")
    Image.fromarray(noise[:, :, 0] / np.float32(255)).save(folder / "float.tif")
    rgb.save(folder / "moving.gif", save_all=True, append_images=[rgb.rotate(90)])
    (folder / "more" / "names with spaces").mkdir(parents=True)
    Image.new("RGB", (1, 1), "red").save(folder / "more" / "pixel.png")
    Image.new("RGB", (3000, 1), "red").save(folder / "more" / "wide.bmp")
    Image.new("RGB", (1, 3000), "red").save(folder / "more" / "high.webp")
    rgb.save(folder / "more" / "names with spaces" / "ümläut 猫.PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def broken(tmp_path: Path, photos: Path) -> Path:
    """Six images that cannot be read among two that can."""
    folder = tmp_path / "broken"
    folder.mkdir()
    jpeg = (photos / "turned.jpg").read_bytes()
    (folder / "a_good.jpg").write_bytes(jpeg)
    (folder / "b_truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "c_empty.png").touch()
    (folder / "d_text.jpg").write_text("This is a text.")
    tiff = (photos / "deep.tif").read_bytes()
    (folder / "e_truncated.tif").write_bytes(tiff[: len(tiff) // 2])
    (folder / "f_start.tif").write_bytes(tiff[:60])
    bomb = bytearray((photos / "grey.png").read_bytes())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    (folder / "g_bomb.png").write_bytes(bomb)
    (folder / "h_good.png").write_bytes((photos / "grey.png").read_bytes())
    return folder


# -- exports -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exportable() -> Checkpoint:
    """A small network of five classes for 64×64 images, with weights as after training; not to be changed."""
    from exports import small_classifier

    return small_classifier()


@pytest.fixture(scope="session")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 images of 80×80; not to be changed."""
    from exports import write_patterns

    return write_patterns(tmp_path_factory.mktemp("patterns"), 24, np.random.default_rng(0), 80)


@pytest.fixture(scope="session")
def labelled_patterns(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    """120 images in folders named like the classes of ``exportable``, which gets a few of them right."""
    from exports import CLASSES, write_patterns

    from partialnet.data import FolderImages

    folder, random = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for name in CLASSES:
        write_patterns(folder / name, 24, random, 64)
    return FolderImages(folder)


@pytest.fixture(scope="session")
def exported_onnx(
    exportable: Checkpoint,
    labelled_patterns: FolderImages,
    conversions: Conversions,
    tmp_path_factory: pytest.TempPathFactory,
) -> Export:
    """``exportable`` as an ONNX file, compared on the labelled images; not to be changed."""
    from partialnet.deploy.export import export

    with pytest.MonkeyPatch.context() as patch:
        conversions.use(patch)
        return export(exportable, tmp_path_factory.mktemp("exported") / "net.onnx", labelled=labelled_patterns)


@pytest.fixture(scope="session")
def conversions() -> Conversions:
    from exports import Conversions

    return Conversions()


@pytest.fixture
def converted_once(conversions: Conversions, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch converts a network once for all tests, which takes longer than all else that an export does."""
    conversions.use(monkeypatch)


# -- the page in the browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network of ours, and one that has no gates."""
    from ui_pages import save_networks

    return save_networks(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page_server(page_runs: tuple[Path, Path]) -> Iterator[PageServer]:
    """The page over these two."""
    from ui_pages import serving

    with serving(page_runs) as server:
        yield server


# -- training runs -----------------------------------------------------------------------------------------------------
# What they need takes seconds to import, so that other tests should not have to.


@pytest.fixture(scope="session")
def colour_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each of three classes that a tiny network soon tells apart; not to be changed."""
    from training_runs import write_photos

    return write_photos(tmp_path_factory.mktemp("data") / "photos", 12)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of any kind draws, which takes as long as a tiny training."""
    from training_runs import DRAWING

    for module, names in DRAWING.items():
        for name in names:
            monkeypatch.setattr(f"{module}.{name}", lambda *arguments: None)


@pytest.fixture
def train_tiny(colour_photos: Path, tmp_path: Path, without_pictures: None) -> Train:
    """Train on the photos with some settings changed, without pictures."""
    from training_runs import CONFIG

    from partialnet.training.run import train

    def run(folder: str = "run", data: Path = colour_photos, resume: bool = False, **settings: Any) -> TrainResult:
        return train(replace(CONFIG, **settings), str(data), tmp_path / folder, resume)

    return run


@pytest.fixture(scope="session")
def finished_run(colour_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of four epochs with an average of the weights; not to be changed."""
    from training_runs import FINISHED

    from partialnet.training.run import train

    return train(FINISHED, str(colour_photos), tmp_path_factory.mktemp("finished") / "run")
