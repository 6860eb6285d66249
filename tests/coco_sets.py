"""Small sets of images with objects in the COCO format, made for the tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from partialnet.detection.annotations import DetectionImages
from partialnet.detection.data_sources import open_evaluation

CATEGORIES = [{"id": 7, "name": "square"}, {"id": 3, "name": "kite"}, {"id": 90, "name": "blob"}]


def polygon(category_id: int, left: float, top: float, width: float, height: float) -> list[list[float]]:
    """Corners of a square, or of a kite."""
    right, bottom = left + width, top + height
    if category_id == 3:
        return [[left + width / 2, top, right, top + height / 2, left + width / 2, bottom, left, top + height / 2]]
    return [[left, top, right, top, right, bottom, left, bottom]]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask as uncompressed run lengths."""
    columns = np.concatenate(([0], mask.T.ravel(), [-1]))
    changes = np.flatnonzero(np.diff(columns))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate(([0], changes))).tolist()}


def make_content(count: int, seed: int = 0, crowds: bool = True) -> dict[str, Any]:
    """Images of four sizes with one to five objects each; some are crowds."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        width, height = ((64, 48), (48, 64), (64, 50), (80, 48))[index % 4]
        images.append({"id": 100 + 3 * index, "file_name": f"{index:03}.jpg", "width": width, "height": height})
        for number in range(int(rng.integers(1, 6))):
            category_id = int(rng.choice([7, 3]))
            w, h = (float(side) for side in rng.uniform(6, 40, 2).round(2))
            left, top = round(float(rng.uniform(0, width - w)), 2), round(float(rng.uniform(0, height - h)), 2)
            outline: Any = polygon(category_id, left, top, w, h)
            crowd = crowds and number == 3
            if crowd:
                mask = np.zeros((height, width), np.uint8)
                mask[int(top) : int(top + h), int(left) : int(left + w)] = 1
                outline = run_lengths(mask)
            annotations.append(
                {
                    "id": len(annotations),  # from 0, as some tools write them
                    "image_id": 100 + 3 * index,
                    "category_id": category_id,
                    "bbox": [left, top, w, h],
                    "area": w * h / (2 if category_id == 3 else 1),
                    "iscrowd": int(crowd),
                    "segmentation": outline,
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_images(folder: Path, content: dict[str, Any]) -> None:
    """Noise with the objects' boxes in plain colours."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        rng = np.random.default_rng(entry["id"])
        pixels = rng.integers(0, 90, (entry["height"], entry["width"], 3), dtype=np.uint8)
        for annotation in content["annotations"]:
            if annotation["image_id"] == entry["id"]:
                left, top, width, height = (int(value) for value in annotation["bbox"])
                color = (255, 200, 0) if annotation["category_id"] == 7 else (0, 200, 255)
                pixels[top : top + height, left : left + width] = color
        Image.fromarray(pixels).save(folder / entry["file_name"], quality=95)


def write_set(root: Path, count: int = 12, seed: int = 0, crowds: bool = True) -> str:
    """Images and ``annotations.json`` in a folder; its name as a command takes it."""
    content = make_content(count, seed, crowds)
    write_images(root / "images", content)
    (root / "annotations.json").write_text(json.dumps(content))
    return str(root)


def evaluated_images(data: str, class_names: Sequence[str] | None = None) -> DetectionImages:
    """The images of a data set that detectors are evaluated on."""
    return open_evaluation(data, class_names)[0]
