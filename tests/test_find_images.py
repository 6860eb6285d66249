"""Which image files a folder, a pattern and a list of names stand for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from partialnet.errors import UserError
from partialnet.images import find_images, read_image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make empty files below a folder, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def found(*sources: str) -> list[str]:
    return [path.as_posix() for path in find_images(sources)]


def test_find_in_nested_folders(folder: Callable[..., Path]) -> None:
    folder("d/b.png", "d/a.JPG", "d/sub/deep/c.jpeg", "d/notes.txt", "d/d", "d/e.webp", "d/model.safetensors")
    assert found("d") == ["d/a.JPG", "d/b.png", "d/e.webp", "d/sub/deep/c.jpeg"]
    assert found("d/") == found("d")


@pytest.mark.parametrize(
    "suffix",
    [
        *("jpg", "jpeg", "jfif", "png", "webp", "avif", "gif", "tif", "tiff", "bmp", "ppm", "pgm"),
        *("heic", "heif", "hif", "PNG", "Jpg", "HEIC"),
    ],
)
def test_find_by_suffix(suffix: str, folder: Callable[..., Path]) -> None:
    folder(f"d/image.{suffix}", "d/other.pdf")
    assert found("d") == [f"d/image.{suffix}"]


def test_find_files_in_the_order_given(folder: Callable[..., Path]) -> None:
    folder("z.png", "a.png", "d/y.png", "d/b.png", "noimage.txt")
    assert found("z.png", "d", "a.png") == ["z.png", "d/b.png", "d/y.png", "a.png"]
    assert found("noimage.txt") == ["noimage.txt"]  # named directly: whatever its suffix


def test_find_by_pattern(folder: Callable[..., Path]) -> None:
    folder("d/b.png", "d/a.png", "d/c.jpg", "d/sub/d.png", "e.png")
    assert found("d/*.png") == ["d/a.png", "d/b.png"]
    assert found("d/**/*.png") == ["d/a.png", "d/b.png", "d/sub/d.png"]
    assert found("d/[bc].*", "?.png") == ["d/b.png", "d/c.jpg", "e.png"]
    assert found("d/*") == ["d/a.png", "d/b.png", "d/c.jpg"]


def test_name_that_looks_like_a_pattern(folder: Callable[..., Path]) -> None:
    folder("image[1].png", "image1.png")
    assert found("image[1].png") == ["image[1].png"]


def test_folder_that_is_named_like_an_image(folder: Callable[..., Path]) -> None:
    folder("d/holiday.jpg/a.png")
    assert found("d") == ["d/holiday.jpg/a.png"]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("missing.png", "There is no file or folder 'missing.png'"),
        ("missing/", "There is no file or folder"),
        ("empty", "Folder 'empty' holds no image"),
        ("texts", "Folder 'texts' holds no image"),
        ("*.png", "No file matches '*.png'"),
        ("texts/*.jpg", "No file matches"),
    ],
)
def test_nothing_found(source: str, part: str, folder: Callable[..., Path]) -> None:
    (folder("texts/a.txt", "good.jpg") / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_images(["good.jpg", source])
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_no_source() -> None:
    with pytest.raises(UserError, match="No image"):
        find_images([])


def test_hidden_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".thumbnails/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.png"]
    assert find_images([str(tmp_path / "._a.png")])


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a variable that a script forgot to set."""
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="names is empty"):
        find_images([""])


def test_links_to_folders_are_followed_but_not_in_circles(folder: Callable[..., Path]) -> None:
    folder("d/a.png", "d/sub/b.png", "elsewhere/c.png")
    Path("d/sub/up").symlink_to("..")
    Path("d/self").symlink_to("self")
    Path("d/linked").symlink_to(Path("elsewhere").absolute())
    assert found("d") == ["d/a.png", "d/linked/c.png", "d/sub/b.png"]
    assert found("d/sub") == ["d/sub/b.png", "d/sub/up/a.png", "d/sub/up/linked/c.png"]


def test_links_that_lead_nowhere_are_told(folder: Callable[..., Path]) -> None:
    folder("d/b.png")
    Path("d/a.png").symlink_to("moved.png")
    Path("d/c.png").symlink_to("c.png")
    os.mkfifo("d/d.png")  # nobody writes into it: reading it would never end
    assert found("d") == found("d/*.png") == ["d/a.png", "d/b.png", "d/c.png"]
    with pytest.raises(UserError, match=r"'d/a\.png' is a link to a file that is not there"):
        read_image("d/a.png")
    with pytest.raises(UserError, match=r"'d/c\.png' cannot be read"):
        read_image("d/c.png")
