"""Images and the objects in them, ready for training and evaluation."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from partialnet.data.packed_names import PackedNames
from partialnet.errors import UserError
from partialnet.images import image_sizes, read_image

from .faults import Fault
from .outlines import Outline


class ListedImage(NamedTuple):
    """An image of a data set: its id in the file, its path below the folder of the images, height and width."""

    id: int
    path: str
    height: int
    width: int


class ListedObject(NamedTuple):
    """An object of a data set as it was read.

    Attributes:
        image: Place of its image in the list of images.
        raw_box: Left, top, right and bottom in pixels, as the file has them.
        box: The part of it within the image.
        label: From 1 on.
        area: In pixels.
        crowd: Whether it is a group of objects.
        outline: Polygons or run lengths, as JSON.
    """

    image: int
    raw_box: list[float]
    box: list[float]
    label: int
    area: float
    crowd: bool
    outline: str


@dataclass(frozen=True)
class Instances:
    """Objects on one image, N of them.

    Attributes:
        boxes: Left, top, right and bottom in pixels of the image, within it, (N, 4), float64.
        labels: 1 to the number of classes, as torchvision's detectors want them, (N,), int64.
        areas: As the file gives them, in pixels, (N,), float64.
        crowd: Which are groups of objects instead of single ones, (N,), bool.
        outlines: N polygons or run lengths.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    outlines: tuple[Outline, ...]

    def __len__(self) -> int:
        return len(self.labels)


class DetectionImages:
    """Images with the objects on them, opened when they are asked for.

    It can be pickled, as it is sent to reading processes; everything about the objects is packed into a few arrays.

    Attributes:
        class_names: Name of label 1, 2, ….
        category_ids: The file's category id of label 1, 2, …, (number of classes,), int64.
        image_ids: The file's id of each image, (number of images,), int64.
        sizes: Height and width of each image as its annotations count its pixels, (number of images, 2), int64.
        num_instances: Objects on each image that are not crowds, (number of images,), int64.
        has_outlines: Whether any object that is no crowd has an outline of its own, so that masks can be learnt and
            evaluated.
        faults: What was wrong with the file.
        reading: How the file was read where its format leaves that open, in a sentence, or nothing.
    """

    def __init__(
        self,
        root: Path,
        class_names: tuple[str, ...],
        category_ids: Sequence[int],
        images: Sequence[ListedImage],
        objects: Sequence[ListedObject],
        has_outlines: bool,
        faults: tuple[Fault, ...],
        reading: str = "",
    ) -> None:
        """Pack what was read.

        Args:
            root: Folder of the images.
            class_names: Name of each label.
            category_ids: The file's id of each label.
            images: In any order.
            objects: Sorted by the place of their image.
            has_outlines: See the class.
            faults: See the class.
            reading: See the class.
        """
        self.root = root
        self.class_names = class_names
        self.category_ids = np.array(category_ids, np.int64)
        self.image_ids = np.array([image.id for image in images], np.int64)
        self.sizes = np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2)
        self.has_outlines = has_outlines
        self.faults = faults
        self.reading = reading
        self._names = PackedNames(image.path for image in images)
        places = np.array([found.image for found in objects], np.int64)
        self._ends = np.searchsorted(places, np.arange(len(images)), side="right")
        self._raw_boxes = np.array([found.raw_box for found in objects], float).reshape(-1, 4)
        self._boxes = np.array([found.box for found in objects], float).reshape(-1, 4)
        self._labels = np.array([found.label for found in objects], np.int64)
        self._areas = np.array([found.area for found in objects], float)
        self._crowd = np.array([found.crowd for found in objects], bool)
        self._outlines = PackedNames(found.outline for found in objects)
        self.num_instances = np.bincount(places[~self._crowd], minlength=len(images))

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """Path of image ``index`` below the root."""
        return self._names[index]

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` as 8-bit RGB, turned as its annotations need it.

        Some tools give boxes for the upright photograph, others for the pixels as a phone stores them; the size in the
        file shows which. Where both have the same size, the photograph is taken upright.

        Args:
            index: Number of the image.
            min_side: What height and width need at least; a larger JPEG may be read in a smaller size.

        Raises:
            UserError: It cannot be read, or has not the size that the file gives.
        """
        path = self.root / self.name(index)
        stored, upright = image_sizes(path)
        height, width = self.sizes[index].tolist()
        if (width, height) not in (upright, stored):
            raise UserError(
                f"{str(path)!r} has {upright[0]}×{upright[1]} pixels, but its annotations are for {width}×{height}."
            )
        return read_image(path, min_side, upright=(width, height) == upright)

    def remarks(self) -> list[str]:
        """How the file was read, and what was wrong with it, in sentences."""
        return [*filter(None, [self.reading]), *map(str, self.faults)]

    def instances(self, index: int) -> Instances:
        """The objects on image ``index``, crowds too."""
        of_image = self._annotations(index)
        outlines = tuple(json.loads(self._outlines[number]) for number in range(of_image.start, of_image.stop))
        return Instances(
            self._boxes[of_image], self._labels[of_image], self._areas[of_image], self._crowd[of_image], outlines
        )

    def ground_truth(self) -> dict[str, Any]:
        """Everything in the COCO format, as an evaluator wants it: boxes as they were read, ids of annotations from 1.

        An id of 0, which some tools give, means "no match" to the reference evaluator.
        """
        images = [
            {"id": int(image_id), "file_name": self.name(index), "height": int(size[0]), "width": int(size[1])}
            for index, (image_id, size) in enumerate(zip(self.image_ids, self.sizes, strict=True))
        ]
        annotations = []
        for index, image_id in enumerate(self.image_ids.tolist()):
            of_image = self._annotations(index)
            for number in range(of_image.start, of_image.stop):
                left, top, right, bottom = self._raw_boxes[number].tolist()
                annotations.append(
                    {
                        "id": number + 1,
                        "image_id": image_id,
                        "category_id": int(self.category_ids[self._labels[number] - 1]),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": float(self._areas[number]),
                        "iscrowd": int(self._crowd[number]),
                        "segmentation": json.loads(self._outlines[number]),
                    }
                )
        names = zip(self.category_ids.tolist(), self.class_names, strict=True)
        categories = [{"id": category_id, "name": name} for category_id, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}

    def objects_of_labels(self) -> np.ndarray:
        """Objects of label 1, 2, … that are not crowds, (number of classes,), int64."""
        counts = np.zeros(len(self.class_names) + 1, np.int64)
        for index in range(len(self)):
            of_image = self._annotations(index)
            np.add.at(counts, self._labels[of_image][~self._crowd[of_image]], 1)
        return counts[1:]

    def fingerprint(self) -> str:
        """A short text that other images, by their ids and sizes, or other objects on them do not share."""
        digest = hashlib.sha256(self.image_ids.tobytes() + self.sizes.tobytes())
        for index in range(len(self)):
            of_image = self._annotations(index)
            digest.update(f"{index}:{of_image.stop - of_image.start}".encode())
            for array in (self._raw_boxes, self._labels, self._areas, self._crowd):
                digest.update(array[of_image].tobytes())
        return digest.hexdigest()[:16]

    def outline_fingerprint(self) -> str:
        """A short text that other outlines of the same objects, or other names of the images, do not share."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            of_image = self._annotations(index)
            digest.update(os.fsencode(self.name(index)) + b"\0")
            digest.update(self._outlines.joined(of_image.start, of_image.stop) + b"\0")
        return digest.hexdigest()[:16]

    def _annotations(self, index: int) -> slice:
        return slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))


class DetectionSubset(DetectionImages):
    """Some of other images, in the order of ``indices``."""

    def __init__(self, images: DetectionImages, indices: Sequence[int] | np.ndarray) -> None:
        self.__dict__.update(images.__dict__)
        self.whole = images
        self.indices = np.asarray(indices, np.int64)
        self.image_ids, self.sizes, self.num_instances = (
            array[self.indices] for array in (images.image_ids, images.sizes, images.num_instances)
        )

    def name(self, index: int) -> str:
        """Path of image ``index`` of the subset below the root."""
        return self.whole.name(int(self.indices[index]))

    def _annotations(self, index: int) -> slice:
        return self.whole._annotations(int(self.indices[index]))
