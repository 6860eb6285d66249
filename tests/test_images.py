"""Image files of every kind become upright 8-bit RGB; what cannot be read is told in one sentence."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from partialnet import images
from partialnet.errors import UserError
from partialnet.images import FORMATS, MAX_PIXELS, decode_image, read_image, read_images, to_rgb

images._formats()  # from here on PIL writes HEIC, too

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def pixels(path: Path) -> np.ndarray:
    """(height, width, 3), after checks that hold for every image; no warning may reach the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    values = np.asarray(image)
    assert values.dtype == np.uint8
    assert values.shape == (image.height, image.width, 3)
    return values


def grey(values: np.ndarray) -> np.ndarray:
    """The one channel of an image whose three channels are the same."""
    assert (values == values[:, :, :1]).all()
    return values[:, :, 0]


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_image(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# -- kinds of images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".webp", ".gif", ".jpg", ".avif", ".heic"])
def test_format(suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 24), RED)
    image.paste(BLUE, (20, 0, 40, 24))
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    values = pixels(save(image, tmp_path / f"image{suffix}", **options))
    assert values.shape == (24, 40, 3)
    tolerance = 12 if suffix in (".jpg", ".avif", ".heic") else 0
    for column, color in ((4, RED), (35, BLUE)):
        assert np.abs(values[12, column].astype(int) - color).max() <= tolerance


def test_grayscale(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (grey(pixels(save(Image.fromarray(values), tmp_path / "grey.png"))) == values).all()


def test_one_bit(tmp_path: Path) -> None:
    values = np.indices((9, 7)).sum(0) % 2 == 1
    for name in ("bits.png", "bits.tif", "bits.bmp", "bits.gif"):
        read = grey(pixels(save(Image.fromarray(values).convert("1"), tmp_path / name)))
        assert (read == np.where(values, 255, 0)).all()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, color in enumerate([(*RED, 255), (*RED, 0), (0, 0, 0, 128)]):
        image.putpixel((x, 0), color)
    values = pixels(save(image, tmp_path / "rgba.png"))[0]
    assert values[0].tolist() == [255, 0, 0]
    assert values[1].tolist() == [255, 255, 255]
    assert np.abs(values[2].astype(int) - 127).max() <= 1


def test_grayscale_with_transparency(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1))
    image.putpixel((0, 0), (40, 255))
    image.putpixel((1, 0), (40, 0))
    assert grey(pixels(save(image, tmp_path / "la.png"))).tolist() == [[40, 255]]


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palette_with_transparency(suffix: str, tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        image.putpixel((x, 0), x)
    values = pixels(save(image, tmp_path / f"palette{suffix}", transparency=1))
    assert values[0].tolist() == [list(RED), list(WHITE), list(BLUE)]


def test_palette_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert pixels(save(image, tmp_path / "palette.png"))[0].tolist() == [list(RED), list(GREEN)]


def test_palette_with_half_transparent_entries(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLACK, *RED])
    image.putpixel((1, 0), 1)
    values = pixels(save(image, tmp_path / "palette.png", transparency=bytes([128, 255])))[0]
    assert np.abs(values[0].astype(int) - 127).max() <= 1
    assert values[1].tolist() == list(RED)


@pytest.mark.parametrize(("mode", "colour", "transparent"), [("L", 7, 7), ("RGB", RED, RED), ("1", 0, 0)])
def test_one_transparent_colour(mode: str, colour: Any, transparent: Any, tmp_path: Path) -> None:
    """PNG may name one colour that is transparent, without an alpha channel."""
    path = save(Image.new(mode, (2, 2), colour), tmp_path / "image.png", transparency=transparent)
    assert (pixels(path) == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grayscale(suffix: str, tmp_path: Path) -> None:
    values = (RAMP * 65535).round().astype(np.uint16)
    read = grey(pixels(save(Image.fromarray(values), tmp_path / f"deep{suffix}")))
    assert np.abs(read.astype(int) - RAMP * 255).max() <= 1
    assert (read[0, 0], read[-1, -1]) == (0, 255)


def test_a_large_16_bit_image_takes_little_memory_beside_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(1000 * 1000, dtype=np.uint32).reshape(1000, 1000).astype(np.uint16)
    monkeypatch.setattr(images, "_PART", 70_001)
    tracemalloc.start()
    rgb = to_rgb(Image.fromarray(values))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (np.asarray(rgb) == (values / 257).round()[:, :, None]).all()
    assert peak < 10 * values.size  # scaled all at once, in float64, it took 32


def test_16_bit_big_endian(tmp_path: Path) -> None:
    """The TIFF of microscopes and of Macs, written by hand."""
    values = (RAMP * 65535).round().astype(">u2")
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, values.nbytes)]
    directory = struct.pack(">H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack(">HHI", tag, kind, count) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    path = tmp_path / "big.tif"
    path.write_bytes(b"MM\0*" + struct.pack(">I", 8 + values.nbytes) + values.tobytes() + directory + bytes(4))
    assert np.abs(grey(pixels(path)).astype(int) - RAMP * 255).max() <= 1


def test_16_bit_colour(tmp_path: Path) -> None:
    """A PNG of 16-bit RGB, which PIL cannot write: made of its chunks."""
    rows = b"".join(b"\0" + struct.pack(">6H", 65535, 0, 0, 0, 0, 65535) for _ in range(2))
    path = png(tmp_path / "deep.png", 2, 2, depth=16, color=2, data=rows)
    assert pixels(path)[0].tolist() == [list(RED), list(BLUE)]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0, 255), (0, 1000), (0, 65535), (0, 1e6), (-1, 1), (-500, 500), (1000, 3000)],
)
def test_float(low: float, high: float, tmp_path: Path) -> None:
    """Values in [0, 1] or [0, 255] are taken as they are, others are scaled to their own range."""
    path = save(Image.fromarray((low + RAMP * (high - low)).astype(np.float32)), tmp_path / "float.tif")
    read = grey(pixels(path)).astype(int)
    assert np.abs(read - RAMP * 255).max() <= 1


def test_float_within_8_bits_keeps_its_values(tmp_path: Path) -> None:
    path = save(Image.fromarray((RAMP * 100).astype(np.float32)), tmp_path / "float.tif")
    assert np.abs(grey(pixels(path)).astype(int) - RAMP * 100).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_float_with_missing_values(value: float, tmp_path: Path) -> None:
    """Scientific images mark missing pixels so; the others must not suffer."""
    values = RAMP.astype(np.float32)
    values[3, 3] = value
    read = grey(pixels(save(Image.fromarray(values), tmp_path / "float.tif"))).astype(int)
    difference = np.abs(read - RAMP * 255)
    difference[3, 3] = 0
    assert difference.max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.5, 7.0, 1e6, -3.0])
def test_constant_float(value: float, tmp_path: Path) -> None:
    path = save(Image.fromarray(np.full((4, 4), value, np.float32)), tmp_path / "float.tif")
    assert np.ptp(pixels(path)) == 0


def test_32_bit_integers(tmp_path: Path) -> None:
    values = (RAMP * 1e6).astype(np.int32)
    read = grey(pixels(save(Image.fromarray(values), tmp_path / "int.tif"))).astype(int)
    assert np.abs(read - RAMP * 255).max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (48, 16))
    for index, color in enumerate((RED, WHITE, BLUE)):
        image.paste(color, (16 * index, 0, 16 * index + 16, 16))
    values = pixels(save(image.convert("CMYK"), tmp_path / f"cmyk{suffix}"))
    for index, color in enumerate((RED, WHITE, BLUE)):
        assert np.abs(values[8, 16 * index + 8].astype(int) - color).max() <= 12


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "RGBX", "RGBa", "PA", "CMYK", "I", "F", "I;16", "I;16B"])
def test_mode(mode: str) -> None:
    assert to_rgb(Image.new(mode, (5, 4))).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".heic"])
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    """The stored image is upright after what the EXIF standard says for its orientation."""
    corners = np.zeros((64, 96, 3), np.uint8)  # upright: red, green / blue, white
    corners[:32, :48], corners[:32, 48:], corners[32:, :48], corners[32:, 48:] = RED, GREEN, BLUE, WHITE
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],  # shown mirrored
        3: lambda a: a[::-1, ::-1],  # shown turned by 180°
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),  # shown turned by 90° clockwise
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),  # shown turned by 90° counterclockwise
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = (
        {"lossless": True} if suffix == ".webp" else {"quality": 95} if suffix in (".jpg", ".heic") else {}
    )
    stored = Image.fromarray(np.ascontiguousarray(store(corners)))
    values = pixels(save(stored, tmp_path / f"photo{suffix}", exif=exif.tobytes(), **options))
    assert values.shape == (64, 96, 3)
    for (row, column), color in {(10, 10): RED, (10, 85): GREEN, (53, 10): BLUE, (53, 85): WHITE}.items():
        assert np.abs(values[row, column].astype(int) - color).max() <= 12


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_senseless_orientation_is_ignored(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(save(Image.new("RGB", (9, 5), RED), tmp_path / "photo.jpg", exif=exif)).shape == (5, 9, 3)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_first_frame_of_an_animation(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE, GREEN)]
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    path = save(frames[0], tmp_path / f"moving{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (pixels(path) == RED).all()


def test_wrong_suffix_is_no_hindrance(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "image.jpg", format="PNG")
    assert (pixels(tmp_path / "image.jpg") == RED).all()


def test_path_as_text(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (4, 4), RED), tmp_path / "a name with spaces, ümläute and 猫.png")
    assert read_image(str(path)).size == (4, 4)


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (2, 2)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_odd_size(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    assert pixels(save(Image.new("RGB", size, BLUE), tmp_path / f"image{suffix}")).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_large_photo(suffix: str, tmp_path: Path) -> None:
    path = save(Image.new("RGB", (6000, 5000), BLUE), tmp_path / f"large{suffix}")
    start = time.perf_counter()
    assert pixels(path).shape == (5000, 6000, 3)
    assert time.perf_counter() - start < 10


def test_panorama_of_allowed_size_is_read_quietly(tmp_path: Path) -> None:
    """92 million pixels, fewer than our limit."""
    path = save(Image.new("1", (9600, 9600)), tmp_path / "panorama.png")
    assert MAX_PIXELS > 9600 * 9600
    assert pixels(path).shape == (9600, 9600, 3)


def png(path: Path, width: int, height: int, depth: int = 8, color: int = 0, data: bytes = bytes(100)) -> Path:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (16000, 16000)])
def test_decompression_bomb(size: tuple[int, int], tmp_path: Path) -> None:
    start = time.perf_counter()
    assert f"{MAX_PIXELS:,}" in refused(png(tmp_path / "bomb.png", *size))
    assert time.perf_counter() - start < 1


def test_image_below_the_limit_is_not_called_larger(tmp_path: Path) -> None:
    """Its data is missing, but it has no more pixels than we allow."""
    message = refused(png(tmp_path / "image.png", 1000, int(0.8 * MAX_PIXELS) // 1000))
    assert "more than" not in message


# -- what cannot be read ---------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    assert "There is no file" in refused(tmp_path / "missing.png")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"This is a text.\n", b"%PDF-1.4\n", b"GIF89a", b"\xff\xd8\xff", bytes(5000)]
)
@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image"])
def test_no_image(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refused(path).endswith("is empty.") == (not content)
    with pytest.raises(UserError, match="is empty" if not content else f"{name}' (is not|cannot)"):
        decode_image(content, name)


def test_other_formats_of_pil_are_refused(tmp_path: Path) -> None:
    """A file's content decides, and some kinds would start other programs."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.eps")
    Image.open(tmp_path / "image.eps").close()  # PIL knows it
    (tmp_path / "image.eps").rename(tmp_path / "image.jpg")
    assert refused(tmp_path / "image.jpg").endswith("PPM or HEIF image.")


@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg"])
def test_heic_without_its_package(
    name: str, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a telephone has saved, under its own name or another, is told with the extra that reads it."""
    path = save(photo, tmp_path / "photo.heic").rename(tmp_path / name)
    assert pixels(path).shape == (40, 50, 3)
    without = tuple(name for name in FORMATS if name != "HEIF")
    monkeypatch.setattr("partialnet.images._formats", lambda: without)
    with pytest.raises(UserError) as error:
        decode_image(path.read_bytes(), str(path))
    for text in (refused(path), str(error.value)):
        assert text.endswith(
            f'{name}\' is a HEIC image, for which pillow-heif is needed: pip install "partialnet[heic]"'
        )
    path.write_bytes(b"\0\0\0\x18ftypmp42")
    assert refused(path).endswith("PPM or HEIF image.")


def test_folder_is_no_image(tmp_path: Path) -> None:
    refused(tmp_path)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


#: What each writer is given; options beside the name
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": (".jpg", {}),
    "progressive JPEG": (".jpg", {"progressive": True}),
    "PNG": (".png", {}),
    "WebP": (".webp", {}),
    "BMP": (".bmp", {}),
    "GIF": (".gif", {}),
    "TIFF": (".tif", {}),
    "TIFF, LZW": (".tif", {"compression": "tiff_lzw"}),
    "TIFF, deflate": (".tif", {"compression": "tiff_adobe_deflate"}),
    "PPM": (".ppm", {}),
    "AVIF": (".avif", {}),
    "HEIC": (".heic", {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_truncated_image(kind: str, photo: Image.Image, tmp_path: Path) -> None:
    suffix, options = FILES[kind]
    path = save(photo, tmp_path / f"image{suffix}", **options)
    content = path.read_bytes()
    lengths = sorted({*range(40), len(content) // 4, len(content) // 2, 3 * len(content) // 4, len(content) - 100})
    for length in lengths:
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_image(kind: str, photo: Image.Image, tmp_path: Path) -> None:
    """Bytes changed anywhere: an image, or one sentence."""
    suffix, options = FILES[kind]
    path = save(photo, tmp_path / f"image{suffix}", **options)
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 2, 8])):
            changed[draw.randrange(min(draw.choice([40, 400, len(content)]), len(content)))] = draw.randrange(256)
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_image(path).mode == "RGB"
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_one_after_the_other(tmp_path: Path) -> None:
    good = save(Image.new("RGB", (4, 4), RED), tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    results = list(read_images([good, tmp_path / "bad.png", tmp_path / "missing.png", good]))
    assert [path.name for path, _ in results] == ["good.png", "bad.png", "missing.png", "good.png"]
    assert [type(result) for _, result in results] == [Image.Image, UserError, UserError, Image.Image]


def test_files_are_closed(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (4, 4), RED), tmp_path / "image.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = read_image(path)
    path.unlink()
    assert image.getpixel((0, 0)) == RED
    buffer = io.BytesIO()
    image.save(buffer, "PNG")


# -- metadata, containers and folders as they come from elsewhere -----------------------------------------------------


def test_damaged_metadata_do_not_make_a_photograph_unreadable(tmp_path: Path) -> None:
    # orientation 6, and a resolution that is a text where a fraction belongs
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x011A, 2, 5, 38)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4) + b"high\0"
    path = save(Image.new("RGB", (6, 4), RED), tmp_path / "odd.jpg", exif=exif)
    assert pixels(path).shape == (6, 4, 3)


def test_sixteen_bits_are_the_same_in_every_container(tmp_path: Path) -> None:
    values = np.linspace(8000, 20000, 64).astype(np.uint16).reshape(8, 8)
    png = save(Image.fromarray(values), tmp_path / "deep.png")
    (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    assert (pixels(png) == pixels(tmp_path / "deep.pgm")).all()
