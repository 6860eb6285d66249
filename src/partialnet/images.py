"""Find image files and read any of them as RGB."""

from __future__ import annotations

import glob
import io
import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import UserError
from .extras import require
from .files import write_atomically
from .messages import first_line

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"),
    *(".heic", ".heif", ".hif"),
)
#: What a file may hold, whatever its name, as PIL calls it: not all that PIL reads, as EPS would start Ghostscript.
#: HEIF, of HEIC files, is read by the package pillow-heif.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "HEIF")
#: What the first bytes of a HEIF file name: still images and sequences, in HEVC and in any coding.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
#: What turns an image upright, by EXIF's orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Pixels that are scaled to 8 bits at a time: in float64, on the way there, all of a large image would take gigabytes.
_PART = 2**20
#: Images of more pixels are refused, as they may be made to exhaust the memory ("decompression bombs"): PIL's limit.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be read; one in a list called ``unreadable`` in any JSON.

    Attributes:
        image: Its path, or its name in a data set.
        reason: Why, in a sentence.
    """

    image: str
    reason: str


def none_readable(unreadable: Collection[UnreadableImage]) -> UserError:
    """What to raise where all of some images turned out to be unreadable."""
    return UserError(f"None of the {len(unreadable)} images can be read; the first: {next(iter(unreadable)).reason}")


def find_images(sources: Iterable[str]) -> list[Path]:
    """Image files among files, folders (searched recursively) and glob patterns, sorted within each source.

    A file named directly is kept whatever its suffix; hidden files of a folder, such as macOS leaves, are not. A link
    that leads nowhere is kept, so that its reader reports it as a damaged file.

    Raises:
        UserError: A source is empty or does not exist, a folder or pattern has no image, or nothing is given.
    """
    found: list[Path] = []
    for source in sources:
        if not source:  # a shell's unset variable; as a path it would be the current folder
            raise UserError("One of the images' names is empty; give files, folders or patterns.")
        path = Path(source)
        if path.is_dir():
            matches = sorted(file for name in images_below(path) if _is_file_or_broken_link(file := path / name))
            if not matches:
                raise UserError(f"Folder {source!r} holds no image ({', '.join(SUFFIXES)}).")
            found += matches
        elif path.exists():
            found.append(path)
        elif glob.has_magic(source):
            names = map(Path, glob.glob(source, recursive=True))
            matches = sorted(file for file in names if _is_file_or_broken_link(file))
            if not matches:
                raise UserError(f"No file matches {source!r}.")
            found += matches
        else:
            raise UserError(f"There is no file or folder {source!r}.")
    if not found:
        raise UserError("No image was given.")
    return found


def _is_file_or_broken_link(path: Path) -> bool:
    """Whether what is there can be an image or should have been one: no folder, pipe or device."""
    return path.is_file() or not path.exists()


def images_below(folder: str | Path) -> Iterator[str]:
    """Image files below a folder, as paths from there with ``/``, in no order; hidden files and folders are left out.

    Links to folders are followed, unless they lead back to a folder that they lie in.
    """
    yield from _images_below(Path(folder), "", frozenset())


def _images_below(folder: Path, prefix: str, around: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Image files below ``folder``, ``prefix`` before each; ``around`` has device and inode of the folders above."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in around:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_folder(entry):
                yield from _images_below(Path(entry.path), f"{prefix}{entry.name}/", around | {here})
            elif entry.name.lower().endswith(SUFFIXES):
                yield prefix + entry.name


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link in a circle does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_image(path: str | Path, min_side: int | None = None, upright: bool = True) -> Image.Image:
    """Read an image as 8-bit RGB, turned upright by its EXIF orientation.

    Grayscale is repeated, transparency is laid over white, 16-bit data beyond 8 bits is scaled by its full range,
    floating-point and 32-bit data by its own range where that exceeds 8 bits, CMYK and palettes are converted, and of
    an animation the first frame is taken.

    Args:
        path: The file.
        min_side: What height and width need at least: a larger JPEG may be decoded at a half, a quarter or an eighth of
            its size, which is faster.
        upright: Whether to turn it; otherwise its rows stay as they are stored.

    Raises:
        UserError: The file is missing, no image, damaged, or has more than ``MAX_PIXELS`` pixels.
    """
    return _read(path, str(path), min_side, upright)


def write_png(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, whole or not at all; see ``write_atomically``."""
    content = io.BytesIO()
    image.save(content, format="png")
    write_atomically(path, content.getvalue())


def image_sizes(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of an image, as it is stored and turned upright, from the beginning of its file alone.

    Raises:
        UserError: The file is missing, no image, or has more than ``MAX_PIXELS`` pixels.
    """
    with _opened(path, str(path)) as image:
        size = image.size
        quarter_turn = _orientation(image) >= 5
    return size, size[::-1] if quarter_turn else size


def decode_image(content: bytes, name: str, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The content of an image file as 8-bit RGB, like :func:`read_image`; ``name`` stands for it in errors."""
    return _read(io.BytesIO(content), name, min_side, max_pixels=max_pixels)


def _read(
    file: str | Path | io.BytesIO, name: str, min_side: int | None, upright: bool = True, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    with _opened(file, name, max_pixels) as image:
        if min_side is not None and image.format != "HEIF":  # whose draft may be the thumbnail in the file
            image.draft(None, (min_side, min_side))  # does nothing to other formats than JPEG
        image.load()
        turn = _TURNS.get(_orientation(image)) if upright else None
        if image.format == "PPM" and image.mode == "I":
            image = Image.fromarray(np.asarray(image).astype(np.uint16))  # 16-bit data, which PIL reads as 32-bit
        rgb = to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where metadata are damaged, as the pixels may be sound."""
    try:
        found = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL's reader of metadata raises what it likes
        return 1
    return found if found in _TURNS else 1


@contextmanager
def _opened(file: str | Path | io.BytesIO, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image before its pixels are read; whatever is wrong with it then becomes one sentence."""
    try:
        # PIL warns of oddities in metadata and of large images; either the image is read or the error tells
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_formats()) as image:
            if image.width * image.height > max_pixels:
                raise UserError(f"{name!r} has {image.width}×{image.height} pixels, more than {max_pixels:,}.")
            yield image
    except FileNotFoundError:
        if Path(name).is_symlink():
            raise UserError(f"{name!r} is a link to a file that is not there.") from None
        raise UserError(f"There is no file {name!r}.") from None
    except UnidentifiedImageError:
        start = file.getvalue()[:12] if isinstance(file, io.BytesIO) else _start(Path(file))
        if not start:
            raise UserError(f"{name!r} is empty.") from None
        if "HEIF" not in _formats() and start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS:
            raise UserError(
                f'{name!r} is a HEIC image, for which pillow-heif is needed: pip install "partialnet[heic]"'
            ) from None
        raise UserError(f"{name!r} is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name!r} has more than {MAX_PIXELS:,} pixels.") from None
    except UserError:
        raise
    except Exception as error:  # each of PIL's readers raises what it likes on a damaged file
        raise UserError(f"{name!r} cannot be read as an image: {first_line(error)}") from error


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(12)


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that can be read here."""
    Image.init()
    with suppress(UserError):
        require("pillow_heif", "heic").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_eight_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Values as 8 bits; where they exceed that, 16-bit data is scaled by its full range and other data by its own.

    NaN becomes the least value.
    """
    deep = values.dtype.kind == "u"
    flat, eight = values.ravel(), np.empty(values.size, np.uint8)
    parts = [slice(start, start + _PART) for start in range(0, flat.size, _PART)]
    finite = (flat[part][np.isfinite(flat[part])] for part in parts)
    ranges = [(float(known.min()), float(known.max())) for known in finite if known.size]
    low, high = min((low for low, _ in ranges), default=0.0), max((high for _, high in ranges), default=0.0)
    for part in parts:
        scaled = np.nan_to_num(flat[part].astype(np.float64), nan=low, posinf=high, neginf=low)
        if deep and high > 255:
            scaled /= 257
        elif low < 0 or high > 255:
            scaled = (scaled - low) / max(high - low, 1e-12) * 255
        elif high <= 1:
            scaled *= 255
        eight[part] = scaled.round().clip(0, 255)
    return eight.reshape(values.shape)


def read_images(paths: Iterable[Path]) -> Iterator[tuple[Path, Image.Image | UserError]]:
    """Read images one after another; one that cannot be read yields its error instead."""
    for path in paths:
        try:
            yield path, read_image(path)
        except UserError as error:
            yield path, error
