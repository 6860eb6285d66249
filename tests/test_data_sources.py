"""Data of every kind opens as labelled images."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from partialnet.data import ImageData, LabelledImages
from partialnet.data.shards import expand_braces
from partialnet.data.sources import open_data
from partialnet.data.splits import part_of
from partialnet.errors import UserError


def picture(seed: int) -> Image.Image:
    """One colour, different for each seed; PNG keeps it exactly."""
    return Image.new("RGB", (6, 5), (seed % 256, 7 * seed % 256, 13 * seed % 256))


def png(seed: int) -> bytes:
    content = io.BytesIO()
    picture(seed).save(content, "PNG")
    return content.getvalue()


def fill(root: Path, classes: Iterable[str], count: int = 10) -> Path:
    """``count`` pictures in a folder for each class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index).save(root / name / f"{index:02d}.png")
    return root


def names(images: LabelledImages) -> set[str]:
    return {images.name(index) for index in range(len(images))}


def check(data: ImageData) -> None:
    """What holds for all data: both parts have all classes and read the same after a journey to a process."""
    assert data.validation.class_names == data.train.class_names
    for part in (data.train, data.validation):
        assert part.labels.dtype == np.int64
        assert len(names(part)) == len(part)
        assert set(part.labels) == set(range(len(data.class_names)))
        image = part.read(len(part) - 1)
        assert image.mode == "RGB"
        assert pickle.loads(pickle.dumps(part)).read(len(part) - 1).tobytes() == image.tobytes()


def write_table(path: Path, lines: Iterable[str], count: int = 20) -> str:
    """A table beside a folder ``images`` of pictures; its name, as DATA."""
    (path.parent / "images").mkdir(exist_ok=True)
    for number in range(count):
        picture(number).save(path.parent / "images" / f"{number}.png")
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    return str(path)


def test_a_table(tmp_path: Path) -> None:
    rows = [f"{10 - i % 2};images/{i}.png ;{i}" for i in range(20)]
    data = open_data(write_table(tmp_path / "all.csv", ["Label;File;number", *rows]), val_share=0.2)
    check(data)
    assert data.class_names == ("9", "10")
    assert (len(data.train), len(data.validation)) == (16, 4)
    for index in range(16):
        number = int(Path(data.train.name(index)).stem)
        assert data.train.labels[index] == 1 - number % 2
        assert data.train.read(index).getpixel((0, 0)) == picture(number).getpixel((0, 0))


def test_a_table_with_parts(tmp_path: Path) -> None:
    parts = ["Train", "Train", "val", "val", "test"] * 4
    rows = [f"images/{i}.png,{('dog', 'cat')[i % 2] if part != 'test' else ''},{part}" for i, part in enumerate(parts)]
    data = open_data(write_table(tmp_path / "all.csv", ["path,class,split", *rows]))
    check(data)
    assert names(data.train) == {f"images/{i}.png" for i in range(20) if i % 5 < 2}
    assert names(data.validation) == {f"images/{i}.png" for i in range(20) if i % 5 in (2, 3)}
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,kind", "images/0.png,cat"], "no column of classes .* it has 'file', 'kind'"),
        (["name,label", "images/0.png,cat"], "no column of files"),
        (["file,label"], "has no rows"),
        (["file,label", "images/0.png,cat", "images/1.png"], "Line 3 of .* has no 'label'"),
        (["file,label", "0.png,cat", "1.png,dog"], "None of the files that .* names exists, such as '.*/0.png'"),
        (["file,label,split", "images/0.png,cat,a"], "'split' of .* should hold train and val; it holds 'a'"),
        (
            ["file,label,split", "images/0.png,cat,train", "images/1.png,dog,val"],
            "'cat' of .* is in part 'train' but not in part 'val'",
        ),
    ],
)
def test_mistakes_with_tables(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_data(write_table(tmp_path / "all.csv", lines))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("shards/imagenet-train-000.tar", "train"),
        ("Training/000.tar", "train"),
        ("valid/000.tar", "valid"),
        ("train/val-000.tar", "val"),
        ("annotations/val_of_train.json", "val"),
        ("annotations/trainval.json", ""),
        ("test/more/000.tar", ""),
    ],
)
def test_part_of_a_file(path: str, part: str) -> None:
    assert part_of(Path(path)) == part


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("train", "val"), ("train", "valid"), ("train", "Validation"), ("train", "test"), ("Training", "Testing")],
)
def test_folder_with_a_validation_part(tmp_path: Path, train: str, held_out: str) -> None:
    fill(tmp_path / train, ["cat", "dog"], 3)
    fill(tmp_path / held_out, ["cat", "dog"], 2)
    data = open_data(str(tmp_path))
    check(data)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.validation)) == (6, 4)
    assert held_out in data.split
    assert data.train.read(4).getpixel((0, 0)) == picture(101).getpixel((0, 0))


def test_folder_is_split_by_class(tmp_path: Path) -> None:
    data = open_data(str(fill(tmp_path / "photos", ["cat", "dog", "train"])), val_share=0.25)
    check(data)
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert len(names(data.train) | names(data.validation)) == 30
    again = open_data(str(tmp_path / "photos"), val_share=0.25)
    assert names(again.validation) == names(data.validation)
    assert names(open_data(str(tmp_path / "photos"), val_share=0.25, seed=1).validation) != names(data.validation)
    # other classes change nothing, further images little
    fill(tmp_path / "photos", ["bird"], 40)
    more = open_data(str(tmp_path / "photos"), val_share=0.25)
    assert {name for name in names(more.validation) if not name.startswith("bird")} == names(data.validation)


def test_folder_with_train_only(tmp_path: Path) -> None:
    fill(tmp_path / "train", ["cat", "dog"])
    data = open_data(str(tmp_path))
    check(data)
    assert data.class_names == ("cat", "dog")


def test_links_in_a_circle_end_in_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["cat", "dog"], 3)
    (tmp_path / "photos" / "cat" / "all").symlink_to(tmp_path / "photos" / "cat")
    (tmp_path / "photos" / "cat" / "self").symlink_to("self")
    (tmp_path / "photos" / "none").symlink_to("none")
    fill(tmp_path / "more", ["dog"], 2)
    (tmp_path / "photos" / "dog" / "linked").symlink_to(tmp_path / "more" / "dog")
    data = open_data(str(tmp_path / "photos"))
    check(data)
    assert data.class_names == ("cat", "dog")
    assert (names(data.train) | names(data.validation)) == {
        *(f"{name}/{number:02}.png" for name in ("cat", "dog") for number in range(3)),
        "dog/linked/00.png",
        "dog/linked/01.png",
    }


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.5, 1), (0.999, 1), (0.34, 1)])
def test_at_least_one_image_is_held_out_and_never_all(tmp_path: Path, share: float, count: int) -> None:
    data = open_data(str(fill(tmp_path, ["cat", "dog"], 2)), val_share=share)
    assert np.bincount(data.validation.labels).tolist() == [count, count]
    assert np.bincount(data.train.labels).tolist() == [2 - count, 2 - count]


def test_mistakes_with_folders(tmp_path: Path) -> None:
    def refused(source: Path, message: str, **options: float) -> None:
        with pytest.raises(UserError, match=message) as caught:
            open_data(str(source), **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("?" if "did you mean" in message else ".")

    fill(tmp_path / "photos", ["cat", "dog"], 2)
    refused(tmp_path / "photo", "did you mean '.*photos'")
    refused(tmp_path / "photos" / "cat", "no folders")
    refused(tmp_path / "photos" / "cat" / "00.png", "is a file")
    refused(fill(tmp_path / "one", ["cat"], 3), "only one class, 'cat'")
    refused(fill(tmp_path / "single", ["cat", "dog"], 1), "only one image")
    refused(tmp_path / "photos", "between 0 and 1", val_share=1.5)
    (tmp_path / "photos" / "bird").mkdir()
    refused(tmp_path / "photos", "'.*bird' holds no image")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    refused(tmp_path / "empty", "No folder")
    fill(tmp_path / "differ" / "train", ["cat", "dog"], 2)
    fill(tmp_path / "differ" / "val", ["cat"], 2)
    refused(tmp_path / "differ", "'dog' is in '.*train' but not in '.*val'")
    fill(tmp_path / "differ" / "val", ["dog", "emu"], 2)
    refused(tmp_path / "differ", "'emu' is in '.*val' but not in '.*train'")


@pytest.mark.parametrize("kind", ["folders", "shards"])
def test_names_tell_images_of_two_parts_apart(tmp_path: Path, kind: str) -> None:
    """A list of broken images is of both parts."""
    for part in ("train", "val"):
        if kind == "folders":
            fill(tmp_path / part, ["cat", "dog"], 3)
        else:
            write_shard(tmp_path / part / "000.tar", (sample(i, i % 2) for i in range(6)))
    data = open_data(str(tmp_path) if kind == "folders" else f"wds/{tmp_path}")
    assert all(name.startswith("train/") for name in names(data.train))
    assert all(name.startswith("val/") for name in names(data.validation))


@pytest.mark.parametrize(
    "parts", [("train", "dev"), ("training_set", "test_set"), ("images-val", "images"), ("val", "test")]
)
def test_parts_under_other_names_are_not_taken_for_classes(tmp_path: Path, parts: tuple[str, str]) -> None:
    for part in parts:
        fill(tmp_path / "parts" / part, ["cat", "dog"], 3)
    with pytest.raises(UserError, match=r"holds 'cat' in both '.*' and '.*', as if these were parts"):
        open_data(str(tmp_path / "parts"))
    # a class that is called so may have folders of its own
    fill(tmp_path / "vehicles" / parts[0], ["steam", "electric"], 3)
    fill(tmp_path / "vehicles" / "car", ["sports", "family"], 3)
    assert open_data(str(tmp_path / "vehicles")).class_names == tuple(sorted([parts[0], "car"]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("cifar10", "did you mean 'torchvision:CIFAR10'"),
        ("hfds:food101", "did you mean 'hfds/food101'"),
        ("shards/train-{0..9}.tar", r"did you mean 'wds/shards/train-\{0..9\}.tar'"),
        ("torchvsion:MNIST", "did you mean 'torchvision:MNIST'"),
        ("torchvision:MNST", "did you mean torchvision:MNIST"),
        ("torchvision:mnist", "did you mean torchvision:MNIST"),
        ("torchvision:zzzz", "there are CIFAR10, CIFAR100"),
        ("torchvision:VOCDetection", "no classification data set"),
        ("nothing like it", "it may be a folder"),
        ("wds/nowhere/{0..3}.tar", "no shard 'nowhere/0.tar'"),
    ],
)
def test_unknown_sources(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(source)


def test_digits() -> None:
    data = open_data("digits")
    check(data)
    assert data.class_names == tuple("0123456789")
    assert (len(data.train), len(data.validation)) == (1437, 360)
    assert data.train.read(0).size == (64, 64)


def write_mnist(root: Path, counts: dict[str, int]) -> None:
    """Files in MNIST's format: image i is filled with i, its class is i modulo 10."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in counts.items():
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes()
        classes = struct.pack(">II", 0x801, count) + labels.tobytes()
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", classes)):
            (folder / name).write_bytes(content)
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))


def test_torchvision_with_a_test_part(tmp_path: Path) -> None:
    write_mnist(tmp_path, {"train": 30, "t10k": 20})
    data = open_data("torchvision:MNIST", root=tmp_path)
    check(data)
    assert (len(data.train), len(data.validation)) == (30, 20)
    assert data.train.read(17).getpixel((3, 3)) == (17, 17, 17)
    assert data.train.labels[17] == 7
    assert data.class_names[7].startswith("7")


def test_torchvision_with_named_parts(tmp_path: Path) -> None:
    """DTD reads its classes from lists of files and gives them by no public attribute."""
    root = tmp_path / "dtd" / "dtd"
    fill(root / "images", ["dotted", "woven"], 4)
    (root / "labels").mkdir()
    (root / "labels" / "train1.txt").write_text("woven/00.png\ndotted/00.png\ndotted/01.png\n")
    (root / "labels" / "val1.txt").write_text("woven/03.png\ndotted/03.png\n")
    data = open_data("torchvision:DTD", root=tmp_path)
    check(data)
    assert data.class_names == ("dotted", "woven")
    assert data.train.labels.tolist() == [1, 0, 0]
    assert data.validation.read(0).getpixel((0, 0)) == picture(103).getpixel((0, 0))
    assert "val" in data.split


def test_torchvision_without_parts(tmp_path: Path) -> None:
    fill(tmp_path / "eurosat" / "2750", ["Forest", "River"], 10)
    data = open_data("torchvision:EuroSAT", val_share=0.2, root=tmp_path)
    check(data)
    assert data.class_names == ("Forest", "River")
    assert (len(data.train), len(data.validation)) == (16, 4)


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for part in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        rows = {"data": np.repeat(np.arange(4, dtype=np.uint8), 3 * 32 * 32).reshape(4, -1), "labels": [0, 1, 1, 0]}
        (folder / part).write_bytes(pickle.dumps(rows))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(np.repeat(np.arange(4, dtype=np.uint8), 3 * 96 * 96).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes([1, 2, 2, 1]))
    (folder / "unlabeled_X.bin").touch()
    (folder / "class_names.txt").write_text("airplane\nbird\n")


def write_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    breeds = (("Birman", 1), ("great_pyrenees", 2))
    lines = [f"{breed}_{number} {label} 1 1\n" for breed, label in breeds for number in (1, 2)]
    for part in ("trainval", "test"):
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines[i] for i in (0, 2, 3, 1)))
    for index, line in enumerate(lines):
        picture(index).save(folder / "images" / f"{line.split()[0]}.jpg")


def write_flowers(root: Path) -> None:
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 9):
        picture(number).save(folder / "jpg" / f"image_{number:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 2, 1, 1, 2, 2, 1]], np.uint8)})
    ids = {name: np.array([numbers], np.uint16) for name, numbers in (("trnid", [1, 2, 3, 4]), ("valid", [5, 6, 7, 8]))}
    scipy.io.savemat(folder / "setid.mat", {**ids, "tstid": np.array([[8]], np.uint16)})


@pytest.mark.parametrize(
    ("name", "write", "copies", "first"),
    [
        ("CIFAR10", write_cifar10, 5, "airplane"),
        ("STL10", write_stl10, 1, "airplane"),
        ("OxfordIIITPet", write_pets, 1, "Birman"),
        ("Flowers102", write_flowers, 1, "pink primrose"),
    ],
)
def test_torchvision_formats(
    name: str, write: Callable[[Path], None], copies: int, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in the formats of the real ones, whose checksums they lack."""
    for module in ("cifar", "stl10", "flowers102"):
        integrity = f"torchvision.datasets.{module}.check_integrity"
        monkeypatch.setattr(integrity, lambda path, md5=None: Path(path).is_file())
    write(tmp_path)
    data = open_data(f"torchvision:{name}", root=tmp_path)
    assert data.train.labels.tolist() == [0, 1, 1, 0] * copies
    assert data.validation.labels.tolist() == [0, 1, 1, 0]
    assert data.class_names[0] == first
    assert data.train.class_names == data.validation.class_names
    assert data.train.read(1).mode == "RGB"
    assert data.train.read(1).tobytes() != data.train.read(2).tobytes()


def test_torchvision_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"torchvision:CIFAR10 cannot be loaded from .*: no route to host"):
        open_data("torchvision:CIFAR10", root=tmp_path)


def write_shard(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def sample(seed: int, label: object, suffix: str = "cls") -> tuple[str, dict[str, bytes]]:
    content = json.dumps({"label": label}) if suffix == "json" else str(label)
    return f"some/{seed:04d}", {suffix: content.encode(), "png": png(seed)}


def test_shards_of_a_folder(tmp_path: Path) -> None:
    for shard in range(3):
        write_shard(tmp_path / f"{shard:03d}.tar", (sample(100 * shard + i, i % 2) for i in range(10)))
    data = open_data(f"wds/{tmp_path}", val_share=0.2)
    check(data)
    assert data.class_names == ("0", "1")
    assert np.bincount(data.validation.labels).tolist() == [3, 3]
    for part in (data.train, data.validation):
        for index in range(len(part)):
            seed = int(Path(part.name(index)).stem)
            assert part.read(index).getpixel((0, 0)) == picture(seed).getpixel((0, 0))
            assert part.labels[index] == seed % 100 % 2
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    named = open_data(f"wds/{tmp_path}", val_share=0.2)
    assert named.class_names == ("cat", "dog")
    assert named.train.labels.tolist() == data.train.labels.tolist()


def test_shards_whose_classes_have_leading_zeros(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", (sample(i, f"{5 + i % 2:03d}") for i in range(10)))
    data = open_data(f"wds/{tmp_path}", val_share=0.2)
    assert data.class_names == ("005", "006")
    assert np.bincount(data.validation.labels).tolist() == [1, 1]


def test_shards_whose_classes_have_gaps(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", (sample(i, (7, 1_000_000, 30)[i % 3]) for i in range(12)))
    data = open_data(f"wds/{tmp_path}")
    assert data.class_names == ("7", "30", "1000000")
    assert np.bincount(data.train.labels).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    "pattern",
    [
        "shards/set-{train,val}-{0..1}.tar",
        "shards/*.tar",
        "shards",
        "shards/set-train-{0..1}.tar::shards/set-val-*.tar",
    ],
)
def test_shards_with_a_validation_part(tmp_path: Path, pattern: str) -> None:
    for shard in range(2):
        write_shard(
            tmp_path / "shards" / f"set-train-{shard}.tar",
            (sample(10 * shard + i, ["dog", "cat"][i % 2], "json") for i in range(4)),
        )
        write_shard(
            tmp_path / "shards" / f"set-val-{shard}.tar",
            (sample(50 + 10 * shard + i, ["cat", "dog"][i % 2], "json") for i in range(2)),
        )
    data = open_data("wds/" + "::".join(f"{tmp_path}/{part}" for part in pattern.split("::")))
    check(data)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0] * 4
    assert data.validation.labels.tolist() == [0, 1] * 2


def test_shards_beside_held_out_ones_are_learnt_from(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_shard(folder / "flowers-000.tar", (sample(i, i % 2) for i in range(10)))
    write_shard(folder / "flowers-val-000.tar", (sample(50 + i, i % 2) for i in range(4)))
    data = open_data(f"wds/{folder}")
    assert {name.partition("/")[0] for name in names(data.train)} == {"flowers-000.tar"}
    assert {name.partition("/")[0] for name in names(data.validation)} == {"flowers-val-000.tar"}
    write_shard(folder / "flowers-train-000.tar", (sample(100 + i, i % 2) for i in range(4)))
    with pytest.raises(UserError, match=r"'flowers-000.tar', whose name does not say"):
        open_data(f"wds/{folder}")


@pytest.mark.parametrize("folder", ["my-test-data", "test", "train"])
@pytest.mark.parametrize("pattern", ["", "/*.tar"])
def test_the_name_of_the_folder_of_all_shards_tells_no_part(tmp_path: Path, folder: str, pattern: str) -> None:
    write_shard(tmp_path / folder / "flowers-000.tar", (sample(i, i % 2) for i in range(10)))
    write_shard(tmp_path / folder / "flowers-val-000.tar", (sample(50 + i, i % 2) for i in range(4)))
    data = open_data(f"wds/{tmp_path / folder}{pattern}")
    assert data.split == "shards of train and val"
    assert (len(data.train), len(data.validation)) == (10, 4)


def test_shards_in_folders_of_their_parts(tmp_path: Path) -> None:
    for part, count in (("flowers-train", 10), ("flowers-val", 4)):
        write_shard(tmp_path / "test" / part / "000.tar", (sample(count + i, i % 2) for i in range(count)))
    data = open_data(f"wds/{tmp_path / 'test'}")
    assert (len(data.train), len(data.validation)) == (10, 4)


def test_a_mask_beside_an_image_in_a_shard_is_left(tmp_path: Path) -> None:
    samples = [(f"a{i}", {"cls": b"%d" % (i % 2), "png": png(i), "mask.png": png(100 + i)}) for i in range(6)]
    samples += [(f"b{i}", {"mask.png": png(100 + i), "png": png(i), "cls": b"%d" % (i % 2)}) for i in range(6)]
    write_shard(tmp_path / "0.tar", samples)
    data = open_data(f"wds/{tmp_path}")
    found = names(data.train) | names(data.validation)
    assert found == {f"0.tar/{letter}{i}.png" for letter in "ab" for i in range(6)}
    assert data.train.read(0).getpixel((0, 0)) == picture(int(Path(data.train.name(0)).stem[1:])).getpixel((0, 0))
    write_shard(tmp_path / "0.tar", [*samples, ("c", {"cls": b"0", "left.png": png(0), "right.png": png(1)})])
    with pytest.raises(UserError, match=r"'c.left.png' and 'c.right.png' .* are images of one sample"):
        open_data(f"wds/{tmp_path}")


def test_mistakes_with_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no shard"):
        open_data(f"wds/{tmp_path}")
    write_shard(tmp_path / "a" / "0.tar", [sample(0, 0), ("alone", {"png": png(1)})])
    with pytest.raises(UserError, match=r"alone.png.* has no class; .* or a .json file with label, cls or class"):
        open_data(f"wds/{tmp_path / 'a'}")
    with pytest.raises(UserError, match=rf"holds no image; did you mean 'wds/{tmp_path}/a'"):
        open_data(str(tmp_path / "a"))
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "0.tar.gz").write_bytes(gzip.compress((tmp_path / "a" / "0.tar").read_bytes()))
    for source in (tmp_path / "z", tmp_path / "z" / "{0..0}.tar.gz"):
        with pytest.raises(UserError, match=r"'.*/z/0.tar.gz' is compressed"):
            open_data(f"wds/{source}")
    with pytest.raises(UserError, match=r"'https://host/0\.tar'; shards must be on a disk"):
        open_data("wds/https://host/{0..9}.tar")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match="cannot be read as a tar file"):
        open_data(f"wds/{tmp_path / 'b'}")
    write_shard(tmp_path / "c" / "train" / "0.tar", [sample(i, i) for i in range(3)])
    write_shard(tmp_path / "c" / "val" / "0.tar", [sample(i, i) for i in range(2)])
    with pytest.raises(UserError, match=r"'2' is in the training shards .* but not in the validation shards"):
        open_data(f"wds/{tmp_path / 'c'}")
    write_shard(tmp_path / "d" / "0.tar", [sample(i, "only") for i in range(3)])
    with pytest.raises(UserError, match="only one class"):
        open_data(f"wds/{tmp_path / 'd'}")


def test_a_broken_image_in_a_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [*(sample(i, i % 2) for i in range(8)), ("bad", {"cls": b"1", "png": b"x"})])
    data = open_data(f"wds/{tmp_path}")
    broken = []
    for part in (data.train, data.validation):
        for index in range(len(part)):
            try:
                part.read(index)
            except UserError as error:
                broken.append(str(error))
    assert [message.partition(" is not a JPEG")[0] for message in broken] == ["'0.tar/bad.png'"]


def test_braces() -> None:
    assert expand_braces("a{08..11}b{x,y}") == [f"a{n}b{c}" for n in ("08", "09", "10", "11") for c in "xy"]
    assert expand_braces("{9..10}") == ["9", "10"]
    assert expand_braces("{0..7..3}.tar") == ["0.tar", "3.tar", "6.tar"]
    assert expand_braces("{t-{8..9},v}/{a,}b") == ["t-8/ab", "t-8/b", "t-9/ab", "t-9/b", "v/ab", "v/b"]
    assert expand_braces("plain") == ["plain"]
    assert expand_braces("open{1..2") == ["open{1..2"]


class Rows:
    """As much of a data set of the package ``datasets`` as we use."""

    def __init__(self, features: dict[str, object], columns: dict[str, list[object]]) -> None:
        self.features, self.columns = features, columns

    def __len__(self) -> int:
        return len(self.columns["photo"])

    def __getitem__(self, key: int | str) -> object:
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}

    def cast_column(self, name: str, feature: object) -> Rows:
        assert feature.decode is False  # type: ignore[attr-defined]
        return self

    def with_format(self, kind: str | None) -> Rows:
        assert kind is None
        return self

    def select_columns(self, wanted: list[str]) -> Rows:
        features, columns = ({name: of[name] for name in wanted} for of in (self.features, self.columns))
        return Rows(features, columns)  # type: ignore[arg-type]

    def select(self, indices: Iterable[int]) -> Rows:
        indices = list(indices)
        return Rows(self.features, {name: [values[i] for i in indices] for name, values in self.columns.items()})


class ImageFeature:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    names: tuple[str, ...] = ("cat", "dog")


def hub_rows(seeds: Iterable[int], feature: object) -> Rows:
    photos: list[object] = [{"bytes": png(seed), "path": None} for seed in seeds]
    labels: list[object] = [seed % 2 if isinstance(feature, ClassLabel) else ("cat", "dog")[seed % 2] for seed in seeds]
    return Rows({"photo": ImageFeature(), "label": feature}, {"photo": photos, "label": labels})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Rows]]:
    """A stand-in for the package ``datasets`` that knows what the test puts into the returned dictionary."""
    known: dict[str, dict[str, Rows]] = {}

    def load_dataset(path: str, name: str | None = None) -> dict[str, Rows]:
        if name is None and any(key.startswith(f"{path}:") for key in known):
            raise ValueError("Config name is missing.\nPlease pick one among the available configs")
        return known[path if name is None else f"{path}:{name}"]

    def get_dataset_config_names(path: str) -> list[str]:
        return [key.partition(":")[2] for key in known if key.startswith(f"{path}:")]

    module = types.ModuleType("datasets")
    vars(module).update(
        Image=ImageFeature,
        ClassLabel=ClassLabel,
        load_dataset=load_dataset,
        get_dataset_config_names=get_dataset_config_names,
    )
    monkeypatch.setitem(sys.modules, "datasets", module)
    return known


@pytest.mark.parametrize("feature", [ClassLabel(), "string"])
def test_hugging_face(hub: dict[str, dict[str, Rows]], feature: object) -> None:
    hub["me/pets"] = {"test": hub_rows(range(50, 54), feature), "train": hub_rows(range(6), feature)}
    data = open_data("hfds/me/pets")
    check(data)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1] * 3
    assert data.validation.read(3).getpixel((0, 0)) == picture(53).getpixel((0, 0))
    assert "test" in data.split
    hub["me/pets"] = {"train": hub_rows(range(20), feature)}
    data = open_data("hfds/me/pets", val_share=0.2)
    check(data)
    assert np.bincount(data.validation.labels).tolist() == [2, 2]


def test_hugging_face_leaves_unknown_classes_out(hub: dict[str, dict[str, Rows]]) -> None:
    rows = hub_rows(range(6), ClassLabel())
    rows.columns["label"][2] = -1
    hub["me/pets"] = {"train": rows, "validation": hub_rows(range(6, 10), ClassLabel())}
    data = open_data("hfds/me/pets")
    assert data.train.labels.tolist() == [0, 1, 1, 0, 1]
    assert data.train.read(2).getpixel((0, 0)) == picture(3).getpixel((0, 0))


@pytest.mark.parametrize("feature", [ClassLabel(), "string"])
def test_hugging_face_without_some_classes(hub: dict[str, dict[str, Rows]], feature: object) -> None:
    rows, test = hub_rows(range(20), feature), hub_rows(range(50, 60), feature)
    rows.columns["label"][2] = None
    test.columns["label"] = [None] * 10
    hub["me/pets"] = {"train": rows, "test": test}
    data = open_data("hfds/me/pets", val_share=0.2)
    check(data)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) + len(data.validation) == 19
    hub["me/pets"] = {"train": rows, "val": test, "test": hub_rows(range(50, 54), feature)}
    data = open_data("hfds/me/pets")
    check(data)
    assert (len(data.train), len(data.validation)) == (19, 4)
    assert data.split == "me/pets's parts train and test"


def test_hugging_face_reads_the_column_of_images_alone(hub: dict[str, dict[str, Rows]]) -> None:
    rows = hub_rows(range(20), ClassLabel())
    rows.features["mask"], rows.columns["mask"] = ImageFeature(), []  # which would be decoded with each image
    hub["me/pets"] = {"train": rows}
    check(open_data("hfds/me/pets"))


def test_a_configuration_of_a_hugging_face_data_set(hub: dict[str, dict[str, Rows]]) -> None:
    hub["me/pets:small"] = {"training": hub_rows(range(10), ClassLabel()), "testing": hub_rows(range(4), ClassLabel())}
    hub["me/pets:large"] = {"train": hub_rows(range(40), ClassLabel())}
    with pytest.raises(UserError, match="has 2 configurations, small, large; choose one, as in hfds/me/pets:small"):
        open_data("hfds/me/pets")
    data = open_data("hfds/me/pets:small")
    check(data)
    assert (len(data.train), len(data.validation)) == (10, 4)
    assert data.train.name(3) == "me/pets:small/training/3"


@pytest.mark.parametrize("form", ["saved", "saved in parts", "parquet", "paths"])
def test_hugging_face_in_a_folder(form: str, tmp_path: Path) -> None:
    """The package itself, without the hub."""
    datasets = pytest.importorskip("datasets")
    photos = {
        "photo": [{"bytes": png(seed), "path": None} for seed in range(20)],
        "label": [3 + i % 2 for i in range(20)],
    }
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict(photos, features=features).with_format("numpy")  # which is saved with it
    if form == "paths":
        files = [tmp_path / f"{i}.png" for i in range(20)]
        for file, photo in zip(files, photos["photo"], strict=True):
            file.write_bytes(photo["bytes"])  # type: ignore[index,call-overload]
        datasets.Dataset.from_dict({"image": list(map(str, files)), "target": photos["label"]}).save_to_disk(tmp_path)
    elif form == "parquet":
        rows.to_parquet(tmp_path / "train-00000.parquet")
    elif form == "saved":
        rows.save_to_disk(tmp_path)
    else:
        datasets.DatasetDict(rows.train_test_split(0.2, seed=0)).save_to_disk(tmp_path)
    data = open_data(f"hfds/{tmp_path}", val_share=0.2)
    check(data)
    assert data.class_names == ("3", "4")
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert names(data.train) <= {f"train/{row}" for row in range(20)}  # which no other place of the folder changes


def test_mistakes_with_hugging_face(hub: dict[str, dict[str, Rows]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs the name of a data set"):
        open_data("hfds/")
    with pytest.raises(UserError, match="of the Hugging Face hub cannot be loaded"):
        open_data("hfds/unknown")
    hub["text"] = {"train": Rows({"sentence": "string", "label": ClassLabel()}, {"photo": [], "label": []})}
    with pytest.raises(UserError, match="no column of images"):
        open_data("hfds/text")
    several = hub_rows(range(4), "sequence")
    several.columns["label"] = [[0], [0, 1], [], [1]]
    hub["several"] = {"train": several}
    with pytest.raises(
        UserError, match=r"Row 0 of several/train has \[0\] for its class; it must be one number or text"
    ):
        open_data("hfds/several")
    hub["late"] = {"later": hub_rows(range(4), ClassLabel())}
    with pytest.raises(UserError, match="no part 'train', only 'later'"):
        open_data("hfds/late")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'datasets; .* pip install "partialnet\[hf\]"'):
        open_data("hfds/text")
