"""The pointing game: does the most important place of a class lie on an object of that class?

Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, Sec. 4.1. They allow a peak 15
pixels beside an object; here it has to lie in one of the boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from partialnet.detection.annotation_file import read_lists
from partialnet.errors import UserError
from partialnet.images import UnreadableImage, read_image
from partialnet.messages import similar_names
from partialnet.preprocessing import Region

from .cam import Explainer

#: Objects that cover less of the image than this, beside others, are the difficult ones.
_DIFFICULT_AREA = 1 / 4


@dataclass(frozen=True)
class ImageBoxes:
    """The objects of one image.

    Attributes:
        size: Width and height.
        boxes: Of each category that occurs, (number, 4), left, top, right, bottom in pixels.
    """

    size: tuple[int, int]
    boxes: dict[str, np.ndarray]


@dataclass(frozen=True)
class BoxSet:
    """The boxes of a COCO-format file: images by file name, and the names of all categories."""

    images: dict[str, ImageBoxes]
    categories: tuple[str, ...]

    def of(self, path: Path) -> ImageBoxes | None:
        """The boxes of an image file, found by its path's end, as ``file_name`` may hold folders; None without any."""
        parts = path.parts
        names = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self.images[name] for name in names if name in self.images), None)


@dataclass(frozen=True)
class Point:
    """One round of the game: the peak of one category's map in one image.

    Attributes:
        path: The image.
        category: Category whose boxes count.
        peak: x and y in pixels; None where nothing in the image spoke for the class, which is a miss.
        hit: Whether the peak lies in a box.
        center_hit: Whether the middle of what the network sees does.
        area: Share of what the network sees that the boxes cover: how often a random point hits.
        difficult: The boxes cover less than a quarter of it, and other categories are there.
    """

    path: Path
    category: str
    peak: tuple[float, float] | None
    hit: bool
    center_hit: bool
    area: float
    difficult: bool


@dataclass(frozen=True)
class PointingGame:
    """Result of the game.

    Attributes:
        points: One for each image and category.
        unseen: Image and category whose boxes all lie outside what the network sees, which are left out.
        unreadable: Images that could not be read, or have another size than the file says.
    """

    points: tuple[Point, ...]
    unseen: tuple[tuple[Path, str], ...] = ()
    unreadable: tuple[UnreadableImage, ...] = ()
    classes: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Shares of hits over all points and as the mean over categories, beside the middle and chance."""
        categories = {}
        for name in sorted({point.category for point in self.points}):
            categories[name] = _summary([point for point in self.points if point.category == name])
        mean = {
            f"mean_{key}": float(np.mean([figures[key] for figures in categories.values()])) if categories else None
            for key in ("hits", "center_hits", "chance")
        }
        difficult = [point for point in self.points if point.difficult]
        return {
            **_summary(self.points),
            **mean,
            "difficult": _summary(difficult),
            "categories": categories,
            "classes": self.classes,
            "num_unseen": len(self.unseen),
            "unreadable": [asdict(one) for one in self.unreadable],
        }


def read_boxes(path: str | Path) -> BoxSet:
    """Read the boxes of a COCO-format ``instances`` file.

    Raises:
        UserError: The file is missing, no JSON, or not of that format.
    """
    path = Path(path)
    content = read_lists(path)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        files = {entry["id"]: entry for entry in content["images"]}
        found: dict[Any, dict[str, list[tuple[float, float, float, float]]]] = {key: {} for key in files}
        for annotation in content["annotations"]:
            left, top, width, height = (float(value) for value in annotation["bbox"])
            if width > 0 and height > 0:
                boxes = found[annotation["image_id"]].setdefault(names[annotation["category_id"]], [])
                boxes.append((left, top, left + width, top + height))
        images = {
            str(entry["file_name"]): ImageBoxes(
                (int(entry["width"]), int(entry["height"])),
                {name: np.array(boxes) for name, boxes in found[key].items()},
            )
            for key, entry in files.items()
        }
    except KeyError as error:
        raise UserError(
            f"{str(path)!r} is not a COCO file of instances: {error} is missing or refers to nothing."
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is not a COCO file of instances: {error}") from error
    return BoxSet(images, tuple(names.values()))


def match_categories(explainer: Explainer, boxes: BoxSet, given: Sequence[tuple[str, str]] = ()) -> dict[str, int]:
    """Which class of the network stands for a category: the one of its name, and those given.

    Args:
        explainer: The network.
        boxes: Boxes with the names of the categories.
        given: Classes, by name or number, each with a category; these go before equal names.

    Returns:
        Index of the class by the name of the category.

    Raises:
        UserError: A given name does not exist, or no class stands for any category.
    """
    classes: dict[str, int] = {}
    own: dict[str, int] = {}
    for index, name in reversed(list(enumerate(explainer.class_names))):
        own |= {_plain(part): index for part in name.split(",")}
    if explainer.names_known:
        classes |= {category: own[_plain(category)] for category in boxes.categories if _plain(category) in own}
    for name, category in given:
        if category not in boxes.categories:
            raise UserError(f"The boxes have no category {category!r}.{similar_names(category, boxes.categories)}")
        classes[category] = explainer.find_class(name)
    if not classes:
        raise UserError(
            "No class of the network has the name of a category of the boxes "
            f"({', '.join(boxes.categories[:5])}, …); say which belong together with --category CLASS=CATEGORY."
        )
    return classes


def play_pointing_game(
    explainer: Explainer,
    paths: Iterable[Path],
    boxes: BoxSet,
    classes: Mapping[str, int],
    method: str | None = None,
    stage: int | None = None,
) -> PointingGame:
    """Point at every category that an image holds and the network has a class for, whatever it predicts.

    Args:
        explainer: The network.
        paths: Images; those without boxes in the file are passed over.
        boxes: The boxes.
        classes: Class of each category; see ``match_categories``.
        method: One of ``cam.METHODS``.
        stage: Stage whose output is looked at.
    """
    points: list[Point] = []
    unseen: list[tuple[Path, str]] = []
    unreadable: list[UnreadableImage] = []
    for path in paths:
        truth = boxes.of(path)
        present = [] if truth is None else [name for name in truth.boxes if name in classes]
        if truth is None or not present:
            continue
        try:
            image = read_image(path)
        except UserError as error:
            unreadable.append(UnreadableImage(str(path), str(error)))
            continue
        if image.size != truth.size:
            width, height = truth.size
            reason = f"{str(path)!r} has {image.width}×{image.height} pixels, but its boxes are for {width}×{height}."
            unreadable.append(UnreadableImage(str(path), reason))
            continue
        region = _within(explainer.preprocess.region(image.size), image.size)
        for category in present:
            area = _covered(truth.boxes[category], region)
            if area == 0:
                unseen.append((path, category))
                continue
            found = explainer.class_map(image, classes[category], method, stage)
            peak = None if found.empty else found.peak
            middle = (region[0] + region[2]) / 2, (region[1] + region[3]) / 2
            points.append(
                Point(
                    path,
                    category,
                    peak,
                    peak is not None and _lies_in(peak, truth.boxes[category]),
                    _lies_in(middle, truth.boxes[category]),
                    area,
                    area < _DIFFICULT_AREA and len(truth.boxes) > 1,
                )
            )
    names = {category: explainer.class_names[index] for category, index in classes.items()}
    return PointingGame(tuple(points), tuple(unseen), tuple(unreadable), names)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _summary(points: Sequence[Point]) -> dict[str, Any]:
    if not points:
        return {"num_points": 0, "hits": None, "center_hits": None, "chance": None}
    return {
        "num_points": len(points),
        "hits": float(np.mean([point.hit for point in points])),
        "center_hits": float(np.mean([point.center_hit for point in points])),
        "chance": float(np.mean([point.area for point in points])),
    }


def _lies_in(point: tuple[float, float], boxes: np.ndarray) -> bool:
    x, y = point
    return bool(((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])).any())


def _within(region: Region, size: tuple[int, int]) -> Region:
    """The part of a region that is image, not border."""
    left, top, right, bottom = region
    return max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1]))


def _covered(boxes: np.ndarray, region: Region) -> float:
    """Share of a region that boxes cover, exactly: a grid along all their edges."""
    left, top, right, bottom = region
    across = np.unique(np.concatenate((boxes[:, 0], boxes[:, 2], [left, right])).clip(left, right))
    down = np.unique(np.concatenate((boxes[:, 1], boxes[:, 3], [top, bottom])).clip(top, bottom))
    middle_x, middle_y = (across[1:] + across[:-1]) / 2, (down[1:] + down[:-1]) / 2
    inside_x = (boxes[:, 0, None] <= middle_x) & (middle_x <= boxes[:, 2, None])  # (boxes, columns)
    inside_y = (boxes[:, 1, None] <= middle_y) & (middle_y <= boxes[:, 3, None])
    covered = (inside_y[:, :, None] & inside_x[:, None, :]).any(0)
    areas = np.outer(np.diff(down), np.diff(across))
    return float((areas * covered).sum() / areas.sum())
