"""Batches are the same bits however they are read."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partialnet.data import FolderImages, LabelledImages
from partialnet.errors import UserError
from partialnet.preprocessing import Preprocessing
from partialnet.training.batches import Batch, eval_loader, train_loader
from partialnet.training.config import TrainConfig

SIZE = {"input_size": [3, 24, 24], "interpolation": "bicubic", "crop_mode": "center"}
INPUT = {**SIZE, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


class Noise(LabelledImages):
    """Small images of noise; those in ``unreadable`` cannot be read."""

    def __init__(self, count: int, unreadable: tuple[int, ...] = ()) -> None:
        self.class_names = ("a", "b", "c")
        self.labels = np.arange(count) % 3
        self.unreadable = unreadable

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        if index in self.unreadable:
            raise UserError(f"{index} is broken.")
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index % 7, 30, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def name(self, index: int) -> str:
        return f"{index}.png"


def config(**settings: object) -> TrainConfig:
    return TrainConfig(**{"batch_size": 8, "workers": 0, "device": "cpu", "epochs": 4, **settings})  # type: ignore[arg-type]


EVERYTHING = {
    "auto_augment": "rand-m9-mstd0.5",
    "erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "random_sizes": (16, 24, 32),
}


def same(one: Batch, other: Batch) -> bool:
    names = ("images", "targets", "labels", "indices")
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
        and one.unreadable == other.unreadable
    )


def test_batches_do_not_depend_on_workers_or_the_start() -> None:
    images = Noise(43, unreadable=(5, 17))
    alone = list(train_loader(images, config(**EVERYTHING), INPUT, epoch=1))
    assert len(alone) == 5
    for workers in (0, 1, 2):
        again = list(train_loader(images, config(**EVERYTHING, workers=workers), INPUT, epoch=1, first_batch=2))
        assert len(again) == 3
        assert all(map(same, alone[2:], again)), workers


def test_epochs_and_seeds_differ() -> None:
    images = Noise(16)
    first, second, other = (
        next(iter(train_loader(images, config(seed=seed), INPUT, epoch))) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    assert not torch.equal(first.indices, second.indices)
    assert not torch.equal(first.indices, other.indices)
    # the same image is changed in another way in another epoch
    epochs = [list(train_loader(images, config(), INPUT, epoch)) for epoch in (0, 1)]
    where = [{int(i): b.images[k] for b in epoch for k, i in enumerate(b.indices)} for epoch in epochs]
    assert not torch.equal(where[0][3], where[1][3])


def test_every_image_at_most_once_an_epoch() -> None:
    batches = list(train_loader(Noise(43), config(), INPUT, epoch=0))
    indices = torch.cat([batch.indices for batch in batches]).tolist()
    assert len(indices) == len(set(indices)) == 40
    for batch in batches:
        assert batch.images.shape == (8, 3, 24, 24)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, batch.indices % 3)
        assert torch.equal(batch.targets, batch.labels)


@pytest.mark.parametrize("mixing", [{}, EVERYTHING])
def test_processes_share_the_batch_of_one(mixing: dict[str, object]) -> None:
    """The pixels of each image, mixed ones too, are those of one process with the whole batch."""
    images = Noise(50)
    whole = list(train_loader(images, config(batch_size=12, **mixing), INPUT, epoch=2))
    parts = [list(train_loader(images, config(batch_size=4, **mixing), INPUT, 2, 0, rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [len(whole)] * 3
    for number, batch in enumerate(whole):
        expected = {int(index): batch.images[place] for place, index in enumerate(batch.indices)}
        targets = {int(index): batch.targets[place] for place, index in enumerate(batch.indices)}
        seen: list[int] = []
        for part in parts:
            for place, index in enumerate(part[number].indices.tolist()):
                assert torch.equal(part[number].images[place], expected[index])
                assert torch.equal(part[number].targets[place], targets[index])
                seen.append(index)
        assert sorted(seen) == sorted(expected)


def test_odd_batches_are_shared_too() -> None:
    parts = [list(train_loader(Noise(21), config(batch_size=3), INPUT, 0, 0, rank, 2)) for rank in range(2)]
    indices = [int(i) for part in parts for batch in part for i in batch.indices]
    assert len(indices) == len(set(indices)) == 18


def test_mixed_targets() -> None:
    batches = list(train_loader(Noise(40), config(mixup=0.8, cutmix=1.0, label_smoothing=0.1), INPUT, epoch=0))
    targets = torch.cat([batch.targets for batch in batches])
    assert targets.shape == (40, 3)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(40))
    assert float(targets.min()) >= 0.1 / 3 - 1e-6
    shares = {round(float(batch.targets.median(1).values.max()), 3) for batch in batches}
    assert len(shares) == 5  # one share for each batch: the second class's probability where two differ
    with pytest.raises(UserError, match="even"):
        train_loader(Noise(40), config(mixup=0.8, batch_size=5), INPUT, epoch=0)


def test_random_sizes() -> None:
    settings = config(random_sizes=(16, 32, 40), random_sizes_until=0.5)
    sizes = [tuple(batch.images.shape[2:]) for batch in train_loader(Noise(160), settings, INPUT, epoch=1)]
    assert set(sizes) == {(16, 16), (32, 32), (40, 40)}
    late = [tuple(batch.images.shape[2:]) for batch in train_loader(Noise(40), settings, INPUT, epoch=2)]
    assert set(late) == {(24, 24)}


def test_the_training_process_keeps_its_random_state() -> None:
    images = Noise(16)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    for workers in (0, 1):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        list(train_loader(images, config(**EVERYTHING, workers=workers), INPUT, epoch=0))
        list(eval_loader(images, config(workers=workers), INPUT))
        drawn = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        assert torch.equal(drawn[0], expected[0])
        assert drawn[1:] == expected[1:]


def test_the_whole_image_without_changes() -> None:
    settings = config(crop_scale_min=1.0, horizontal_flip=0.0)
    batch = next(iter(train_loader(Noise(8), settings, INPUT, epoch=0)))
    for place, index in enumerate(batch.indices.tolist()):
        image = Noise(8).read(index).resize((24, 24), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)
        expected = (pixels - torch.tensor(INPUT["mean"]).view(3, 1, 1)) / torch.tensor(INPUT["std"]).view(3, 1, 1)
        torch.testing.assert_close(batch.images[place], expected)


@pytest.mark.parametrize("auto_augment", [None, "rand-m5-mstd0.5"])
def test_colours_are_changed_beside_other_augmentation(auto_augment: str | None) -> None:
    def images(color_jitter: float) -> torch.Tensor:
        settings = config(color_jitter=color_jitter, auto_augment=auto_augment)
        return next(iter(train_loader(Noise(8), settings, INPUT, epoch=0))).images

    assert not torch.equal(images(0.0), images(0.4))


def test_broken_images_are_replaced_and_reported() -> None:
    images = Noise(16, unreadable=(2, 9))
    batches = list(train_loader(images, config(), INPUT, epoch=0))
    assert sorted({index for batch in batches for index in batch.unreadable}) == [2, 9]
    for batch in batches:
        assert len(batch) == 8
        assert not {2, 9} & set(batch.indices.tolist())
        assert torch.equal(batch.labels, batch.indices % 3)
    for workers in (0, 1):
        with pytest.raises(
            UserError, match=r"^None of 4 images could be read; the first: \d is broken. If the data is gone"
        ):
            list(train_loader(Noise(4, unreadable=(0, 1, 2, 3)), config(workers=workers), INPUT, epoch=0))


def test_small_sets() -> None:
    batches = list(train_loader(Noise(5), config(), INPUT, epoch=0))
    assert [len(batch) for batch in batches] == [5]
    mixed = list(train_loader(Noise(5), config(mixup=1.0), INPUT, epoch=0))
    assert [len(batch) for batch in mixed] == [4]
    shared = [list(train_loader(Noise(5), config(), INPUT, 0, 0, rank, 2)) for rank in range(2)]
    assert [[len(batch) for batch in part] for part in shared] == [[2], [2]]
    with pytest.raises(UserError, match="at least 2"):
        train_loader(Noise(3), config(), INPUT, 0, world_size=2)
    with pytest.raises(UserError, match="at least 2"):
        train_loader(Noise(1), config(), INPUT, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once(workers: int) -> None:
    images = Noise(29, unreadable=(4, 28))
    parts = [list(eval_loader(images, config(workers=workers), INPUT, rank, 3)) for rank in range(3)]
    indices = [int(i) for part in parts for batch in part for i in batch.indices]
    assert sorted(indices) == [i for i in range(29) if i not in (4, 28)]
    assert sorted(index for part in parts for batch in part for index in batch.unreadable) == [4, 28]
    alone = {int(i): b.images[k] for b in eval_loader(images, config(), INPUT) for k, i in enumerate(b.indices)}
    for part in parts:
        for batch in part:
            assert torch.equal(batch.labels, batch.indices % 3)
            assert all(torch.equal(batch.images[k], alone[int(i)]) for k, i in enumerate(batch.indices))


def test_a_batch_of_broken_images_only_is_empty() -> None:
    batches = list(eval_loader(Noise(3, unreadable=(2,)), config(batch_size=2), INPUT))
    assert [len(batch) for batch in batches] == [2, 0]
    assert batches[1].images.shape == (0, 3, 24, 24)
    assert list(batches[1].unreadable) == [2]


def test_evaluation_prepares_images_as_prediction_does() -> None:
    prepare = Preprocessing({**INPUT, "crop_pct": 0.9})
    for batch in eval_loader(Noise(9), config(test_crop=0.9), INPUT):
        for place, index in enumerate(batch.indices.tolist()):
            assert torch.equal(batch.images[place], prepare(Noise(9).read(index)))


def test_batch_moves() -> None:
    batch = next(iter(train_loader(Noise(8, unreadable=(1,)), config(), INPUT, 0)))
    moved = batch.to("meta", non_blocking=True)
    assert {moved.images.device.type, moved.targets.device.type, moved.indices.device.type} == {"meta"}
    assert list(moved.unreadable) == list(batch.unreadable) == [1]


def test_batches_can_be_sent_to_a_fresh_process() -> None:
    """Where processes are spawned, not forked, the loader's data set travels as a pickle."""
    for loader in (train_loader(Noise(16), config(**EVERYTHING), INPUT, 0), eval_loader(Noise(16), config(), INPUT)):
        expected = loader.dataset[1]
        assert same(pickle.loads(pickle.dumps(loader.dataset))[1], expected)
        assert pickle.loads(pickle.dumps(loader.worker_init_fn)) is loader.worker_init_fn


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_more_readers_than_cores_are_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine of one core, with our own default of two readers."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = eval_loader(Noise(4), config(batch_size=2, workers=2), INPUT)
    assert loader.num_workers == 2


def test_readers_outlive_signals_and_end_with_the_training_process(tmp_path: Path) -> None:
    """A cluster's signal reaches all processes; the readers must go on while the training process saves its state.

    Without that process they must end: when it drops the loader, and when it is killed.
    """
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, os, signal, sys
        sys.path.insert(0, sys.argv[1])
        from test_batches import INPUT, Noise, config
        from partialnet.training.batches import train_loader

        received = []
        for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(name, lambda number, frame: received.append(number))
        reader = iter(train_loader(Noise(160), config(workers=2), INPUT, 0))
        count = len(next(reader)) + len(next(reader))
        for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.killpg(os.getpgid(0), name)
        count += sum(map(len, reader))
        reader = iter(train_loader(Noise(160), config(workers=2), INPUT, 1))
        next(reader)
        processes = multiprocessing.active_children()
        del reader
        print(count, len(received), len(processes), sum(process.is_alive() for process in processes), flush=True)
        reader = iter(train_loader(Noise(800), config(workers=2), INPUT, 2))
        next(reader)
        os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    command = [sys.executable, script, Path(__file__).parent]
    # the readers hold the other ends of these pipes: they are read to their ends only if the readers have ended
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # torch warns of more readers than cores
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, start_new_session=True, check=False, env=quiet
    )
    assert result.stdout.split() == ["160", "3", "2", "0"], result.stderr
    assert result.stderr == ""


def test_large_photos_are_read_in_a_smaller_size(tmp_path: Path) -> None:
    """A quarter of 800×640 is enough for crops of the whole to 24 pixels; what is learnt stays much the same."""
    for name, grey in (("dark", 40), ("light", 200)):
        (tmp_path / name).mkdir()
        gradient = np.linspace(0, 50, 800, dtype=np.uint8)[None, :, None] + np.full((640, 800, 3), grey, np.uint8)
        for index in range(2):
            Image.fromarray(gradient).save(tmp_path / name / f"{index}.jpg", quality=95)
    images = FolderImages(tmp_path)
    assert images.read(0, 100).size == (200, 160)
    assert images.read(0, 161).size == (400, 320)
    assert images.read(0, 5000).size == images.read(0).size == (800, 640)
    settings = config(crop_scale_min=1.0, horizontal_flip=0.0)
    (batch,) = train_loader(images, settings, INPUT, epoch=0)
    prepare = Preprocessing({**INPUT, "crop_pct": 1.0, "crop_mode": "squash"})
    for place, index in enumerate(batch.indices.tolist()):
        torch.testing.assert_close(batch.images[place], prepare(images.read(index)), atol=0.05, rtol=0)
