"""Pictures of detections: boxes, masks, names and scores on photographs; ground truth beside prediction; precision."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from partialnet.fonts import OWN_BOLD_FONT, font_file
from partialnet.plots import image_axes, save, shorten

from .annotations import DetectionImages
from .evaluator import IOU_THRESHOLDS, RECALLS, Detection, DetectionEvaluation
from .outlines import Outline, draw_masks

#: Detections of lower scores are not drawn.
MIN_SCORE = 0.5
#: Objects drawn on one image at most, those of the highest scores.
MAX_OBJECTS = 40
#: Pictures are enlarged to the first length of the longer side, so that names can be read, or reduced to the second.
MIN_SIDE, MAX_SIDE = 800, 1600
_MASK_OPACITY = 0.45
#: How much larger than usual captions are in pictures that a grid shows at about half their size.
REDUCED_TEXT = 1.6
#: Names are left out of boxes smaller than this many lines of text each way, where more than a few objects are drawn.
_SMALL_BOX, _FEW = 1.2, 6


@dataclass(frozen=True)
class DrawnObjects:
    """What is drawn on one image, N objects.

    Attributes:
        boxes: Left, top, right and bottom in pixels of the image, (N, 4).
        labels: From 1 on; they choose the colours, (N,).
        captions: N texts.
        outlines: N polygons or run lengths; empty draws boxes only.
    """

    boxes: np.ndarray
    labels: Sequence[int]
    captions: Sequence[str]
    outlines: Sequence[Outline] = ()

    def __len__(self) -> int:
        return len(self.labels)


def truth_of(images: DetectionImages, index: int) -> DrawnObjects:
    """The annotated objects of image ``index``, crowds marked as such."""
    known = images.instances(index)
    labels = known.labels.tolist()
    captions = [
        images.class_names[label - 1] + (" (crowd)" if crowd else "")
        for label, crowd in zip(labels, known.crowd, strict=True)
    ]
    return DrawnObjects(known.boxes, labels, captions, known.outlines if images.has_outlines else ())


def found_on(images: DetectionImages, index: int, detections: Iterable[Detection]) -> DrawnObjects:
    """The surest of the detections on image ``index``."""
    image_id = int(images.image_ids[index])
    label_of = {category_id: label for label, category_id in enumerate(images.category_ids.tolist(), 1)}
    found = [one for one in detections if one["image_id"] == image_id and one["score"] >= MIN_SCORE]
    found = sorted(found, key=lambda one: -one["score"])[:MAX_OBJECTS]
    labels = [label_of[one["category_id"]] for one in found]
    captions = [f"{images.class_names[label - 1]} {one['score']:.0%}" for label, one in zip(labels, found, strict=True)]
    boxes = np.array([one["bbox"] for one in found], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    with_masks = images.has_outlines and all("segmentation" in one for one in found)
    return DrawnObjects(boxes, labels, captions, [one["segmentation"] for one in found] if with_masks else ())


def draw_objects(image: Image.Image, objects: DrawnObjects, text_size: float = 1.0) -> Image.Image:
    """A copy of an RGB image with boxes, translucent masks and captions; small images are enlarged, large ones reduced.

    Each class has a colour of its own. Large objects are drawn first, so that small ones on them are seen. Captions
    stand on plates of the class's colour where they do not cover each other; in crowded pictures those of tiny objects
    are left out.

    Args:
        image: RGB.
        objects: What is on it.
        text_size: Size of the captions, as a factor of the usual one.
    """
    width, height = image.size
    scale = min(max(1.0, MIN_SIDE / max(image.size)), MAX_SIDE / max(image.size))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    boxes = objects.boxes * (np.tile(size, 2) / np.tile((width, height), 2))
    line = max(3, round(max(size) / 300))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind="stable").tolist()
    if len(objects.outlines):
        masks = draw_masks(objects.outlines, (height, width), (size[1], size[0])).numpy().astype(bool)
        pixels = np.array(picture)
        for number in order:
            _tint(pixels, masks[number], class_color(objects.labels[number]), line)
        picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for number in order:
        color = class_color(objects.labels[number])
        left, top, right, bottom = boxes[number].tolist()
        # a dark line around the coloured one is seen on a background of the same colour
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=line + 1)
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
    _write_captions(draw, picture.size, boxes, objects, line, text_size)
    return picture


def class_color(label: int) -> tuple[int, int, int]:
    """A colour for a label: steps of the golden angle around the circle of hues, in three degrees of brightness."""
    hue = (0.58 + 0.618034 * (label - 1)) % 1
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.75))[(label - 1) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _tint(pixels: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], line: int) -> None:
    """Lay a colour over a mask, and a line along its edge, in place."""
    if not mask.any():
        return
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside, part = mask[window], pixels[window]
    part[inside] = (part[inside] * (1 - _MASK_OPACITY) + np.array(color) * _MASK_OPACITY).astype(np.uint8)
    inner = inside.copy()
    for _ in range(max(1, line // 2)):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    part[inside & ~inner] = color


def _write_captions(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: np.ndarray,
    objects: DrawnObjects,
    line: int,
    text_size: float,
) -> None:
    font_size = round(text_size * max(15, max(size) / 48))
    _, _, _, text_height = draw.textbbox((0, 0), "Ág", font=_font(OWN_BOLD_FONT, font_size))
    taken: list[tuple[float, float, float, float]] = []
    for number, caption in enumerate(objects.captions):
        left, top, right, bottom = boxes[number].tolist()
        if len(objects) > _FEW and min(right - left, bottom - top) < _SMALL_BOX * text_height:
            continue
        caption = shorten(caption, 32)
        font = _font(font_file(caption), font_size)
        text_width = draw.textlength(caption, font=font)
        width, height = text_width + 8, text_height + 4
        places = [
            (left - line, top - height),
            (left, top),
            (right - width, top - height),
            (left, bottom - height),
            (right - width, bottom - height),
            (left - line, bottom),
        ]
        plates = [_plate(place, width, height, size) for place in places]
        free = [plate for plate in plates if not any(_overlap(plate, other) for other in taken)]
        if not free and len(objects) > _FEW:
            continue
        plate = (free or plates)[0]
        taken.append(plate)
        color = class_color(objects.labels[number])
        draw.rectangle(plate, fill=color)
        light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 128
        draw.text((plate[0] + 4, plate[1] + 1), caption, fill="black" if light else "white", font=font)


def _plate(
    place: tuple[float, float], width: float, height: float, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A rectangle at a place, moved into the picture."""
    left = max(0.0, min(place[0], size[0] - width))
    top = max(0.0, min(place[1], size[1] - height))
    return left, top, left + width, top + height


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@lru_cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def comparison_grid(
    path: Path,
    images: DetectionImages,
    indices: Sequence[int],
    detections: Sequence[Detection],
    title: str,
) -> None:
    """Ground truth on the left, detections on the right, for some of the images; two pairs in a row.

    Args:
        path: File to write.
        images: The ground truth.
        indices: Which of the images.
        detections: Of any images.
        title: Heading.
    """
    columns = max(1, min(2, len(indices)))
    rows = max(1, -(-len(indices) // columns))
    figure = Figure(figsize=(9.2 * columns, 3.7 * rows + 0.8), layout="constrained")
    grid = image_axes(figure, rows, 2 * columns)
    for place, index in enumerate(indices):
        row, column = divmod(place, columns)
        image = images.read(index)
        for side, (objects, name) in enumerate(
            (
                (truth_of(images, index), "ground truth"),
                (found_on(images, index, detections), f"detections above {MIN_SCORE:.0%}"),
            )
        ):
            axes = grid[row, 2 * column + side]
            axes.imshow(np.asarray(draw_objects(image, objects, REDUCED_TEXT)), interpolation="antialiased")
            axes.set_title(f"{name}: {len(objects) or 'none'}", fontsize=15, parse_math=False)
    figure.suptitle(title, fontsize=18, parse_math=False)
    save(figure, path)


def precision_recall_plot(path: Path, evaluation: DetectionEvaluation, title: str) -> None:
    """Draw precision over recall, mean over the categories, a curve for each IoU threshold, as PNG.

    Args:
        path: File to write.
        evaluation: Of boxes, and of masks beside them where the detector has them.
        title: Heading.
    """
    panels = [("Boxes", evaluation.boxes, evaluation.box_precision)]
    if evaluation.masks is not None and evaluation.mask_precision is not None:
        panels.append(("Masks", evaluation.masks, evaluation.mask_precision))
    figure = Figure(figsize=(7.6 * len(panels), 5.4), layout="constrained")
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(IOU_THRESHOLDS)))
    every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (name, numbers, precision) in zip(every, panels, strict=True):
        for threshold, color, curve in zip(IOU_THRESHOLDS, colors, precision, strict=True):
            main = threshold in (0.5, 0.75)
            label = f"{threshold:.2f}   {curve.mean():.1%}"
            axes.plot(RECALLS, curve, color=color, linewidth=3 if main else 1.6, label=label)
        axes.set_xlabel("recall", fontsize=13)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
        ap = "–" if numbers.ap is None else f"{numbers.ap:.1%}"
        axes.set_title(f"{name}: AP {ap}", fontsize=15)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=12)
        axes.legend(
            title="IoU    AP",
            fontsize=11,
            title_fontsize=11,
            alignment="left",
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1, 1),
        )
    every[0].set_ylabel("precision", fontsize=13)
    figure.suptitle(title, fontsize=16, parse_math=False)
    save(figure, path)
