"""Everything that a detection command can take as its data, in the COCO, YOLO or Pascal VOC format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialnet.data.splits import HELD_OUT, choose_by_name, first_part
from partialnet.errors import UserError
from partialnet.messages import listed

from . import coco, voc, yolo
from .annotation_file import Part
from .annotations import DetectionImages, DetectionSubset
from .faults import shortened

#: What ``open_evaluation`` takes as the name of all images of data without parts.
ALL = "all"
_FORMATS = f"{coco.LAYOUTS}; {yolo.LAYOUTS}; or {voc.LAYOUTS}"


@dataclass(frozen=True)
class DetectionData:
    """Training and held-out images with their objects.

    Attributes:
        train: What is learnt from.
        validation: What is never learnt from.
        split: How they were told apart, in words.
        num_empty: Training images without an object to learn, which were left out.
    """

    train: DetectionImages
    validation: DetectionImages
    split: str
    num_empty: int = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of label 1, 2, …."""
        return self.train.class_names

    def notes(self, with_masks: bool = True) -> list[str]:
        """A sentence for whatever is wrong with the data, mended, left out or as it is.

        Args:
            with_masks: Whether masks matter; else nothing is wrong with objects that have none.
        """
        parts = [("training", self.train), ("validation", self.validation)]
        if isinstance(self.train, DetectionSubset) and self.train.faults is self.validation.faults:
            parts = [("data", self.train)]
        readings = {images.reading: name for name, images in parts}
        if len(readings) == 1:
            readings = {self.train.reading: "data"}
        found = [f"{name}: {reading}" for reading, name in readings.items() if reading]
        found += [
            f"{name}: {fault}"
            for name, images in parts
            for fault in images.faults
            if with_masks or fault.kind != "no outline"
        ]
        if self.num_empty:
            verb = "image has" if self.num_empty == 1 else "images have"
            left_out = "is" if self.num_empty == 1 else "are"
            found.append(f"training: {self.num_empty:,} {verb} no object to learn and {left_out} left out.")
        if names := self._names_without_objects():
            has, it = ("has", "it") if len(names) == 1 else ("have", "them")
            found.append(
                f"training: {len(names):,} of {len(self.class_names):,} categories {has} no object to learn "
                f"({listed(names, 3)}); the detector will not find {it}."
            )
        if learnt := self._learnt_validation_images():
            are = "is a training image" if len(learnt) == 1 else "are training images"
            found.append(
                f"validation: {len(learnt):,} of {len(self.validation):,} images {are}, too ({listed(learnt, 3)}); the "
                "figures say less about other photographs."
            )
        return found

    def _names_without_objects(self) -> list[str]:
        """Names of the categories that no training image shows, as of a whole vocabulary that a tool lists."""
        return [name for name, count in zip(self.class_names, self.train.objects_of_labels(), strict=True) if not count]

    def _learnt_validation_images(self) -> list[str]:
        """Names of the validation images whose files the training part lists as well."""
        learnt = set(_files(self.train))
        found = [index for index, file in enumerate(_files(self.validation)) if file in learnt]
        return [shortened(self.validation.name(index)) for index in found]


def open_detection_data(
    data: str, validation: str | None = None, val_share: float = 0.1, seed: int = 0, keep_empty: bool = False
) -> DetectionData:
    """Training and held-out images of ``data``.

    Args:
        data: A folder in one of the usual layouts (see ``docs/detection.md``); a JSON file; ``IMAGES,JSON``, a
            folder of images and the file with their objects; or a YAML file of Ultralytics.
        validation: The held-out images, in the same forms; None takes them from ``data``.
        val_share: Share of the images to hold out where there is no validation part.
        seed: Of the choice of images to hold out.
        keep_empty: Whether images without any object are trained on, as background.

    Raises:
        UserError: There is no such data, it is damaged, or has no object that can be used.
    """
    parts = _find_parts(data)
    if validation is not None:
        train = _learnt(parts, data).read(None)
        held_out = _held_out(_find_parts(validation), validation).read(train.class_names)
        split = f"{data} and {validation}"
    elif "train" in parts and (name := first_part(parts, HELD_OUT)):
        train = parts["train"].read(None)
        held_out = parts[name].read(train.class_names)
        split = _as_split(parts["train"].path, parts[name].path)
    else:
        whole = _learnt(parts, data).read(None)
        if not 0 < val_share < 1:
            raise UserError(f"The share to hold out must be between 0 and 1, not {val_share}.")
        if len(whole) < 2:
            raise UserError(f"{data!r} has one image only; to hold one out it needs at least two.")
        chosen = _held_out_by_name(whole, val_share, seed)
        train = DetectionSubset(whole, np.flatnonzero(~chosen))
        held_out = DetectionSubset(whole, np.flatnonzero(chosen))
        split = f"{val_share:.0%} of the images held out, seed {seed}"
        _check_each_has_objects(whole, chosen, data)
    for part, images, source in (("training", train, data), ("validation", held_out, validation or data)):
        if not images.num_instances.any():
            raise UserError(f"The {part} images of {source!r} have no object that can be used, crowds aside.")
    empty = train.num_instances == 0
    if keep_empty or not empty.any():
        return DetectionData(train, held_out, split)
    return DetectionData(DetectionSubset(train, np.flatnonzero(~empty)), held_out, split, int(empty.sum()))


def holds_annotations(data: str) -> bool:
    """Whether ``data`` is images with objects in one of the formats, sound or not, rather than photographs alone."""
    path = Path(data)
    if path.is_dir():
        formats = (coco.annotation_files, yolo.recognises, voc.recognises, yolo.seems_meant)
        return any(found(path) for found in formats)
    return path.suffix.lower() in (".json", *yolo.SUFFIXES) if path.is_file() else "," in data


def _check_each_has_objects(whole: DetectionImages, chosen: np.ndarray, data: str) -> None:
    """Refuse held-out images without any object, and training images without, where there are objects at all.

    Raises:
        UserError: All objects are on one side.
    """
    with_objects = whole.num_instances > 0
    for part, there in (("training", ~chosen), ("held-out", chosen)):
        if with_objects.any() and not with_objects[there].any():
            raise UserError(
                f"Only {with_objects.sum()} of the {len(whole)} images of {data!r} have an object that can be used, "
                f"and none of them is among the {there.sum()} {part} ones; choose another val_share or seed."
            )


def open_evaluation(
    data: str,
    class_names: Sequence[str] | None = None,
    split: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> tuple[DetectionImages, str]:
    """The images of ``data`` to evaluate a detector on, and which these are, in a sentence.

    They are its validation part, else its test part. Data without such parts is taken whole, but if a run was trained
    on it, what that run held out is taken.

    Args:
        data: As for :func:`open_detection_data`.
        class_names: The detector's classes, among which the file's categories are found by their names; None takes
            the file's categories as they are.
        split: Name of another part; ``ALL`` takes all of data without parts.
        training: How the detector was trained, as its checkpoint says.

    Raises:
        UserError: There is no such data or part, it is damaged, has no object, or a category that is no class.
    """
    parts = _find_parts(data)
    name = first_part(parts, HELD_OUT) if split is None else split
    if name is not None and (part := parts.get("" if name == ALL else name)):
        images = part.read(class_names)
        others = "; --split takes another part" if split is None and len(parts) > 1 else ""
        return images, f"Evaluating all {len(images):,} images of {part.path}{others}."
    if split is not None:
        there = listed(sorted(filter(None, parts))) or f"none, so that there is {ALL!r} only"
        raise UserError(f"{data!r} has no part {split!r}; it has {there}.")
    part = _learnt(parts, data)
    whole = part.read(class_names)
    if (held_out := _held_out_by_run(whole, training or {})) is not None:
        others = ALL if "" in parts else "train"
        return held_out, (
            f"Evaluating the {len(held_out):,} of {len(whole):,} images of {part.path} that the training held out; "
            f"--split {others} takes all."
        )
    if "train" in parts:
        raise UserError(f"{data!r} has a training part only; to evaluate on it, give --split train.")
    return whole, f"Evaluating all {len(whole):,} images of {part.path}."


def _held_out_by_name(images: DetectionImages, share: float, seed: int) -> np.ndarray:
    return choose_by_name([images.name(index) for index in range(len(images))], share, seed)


def _held_out_by_run(whole: DetectionImages, training: Mapping[str, Any]) -> DetectionImages | None:
    """The images that a run on ``whole`` held out; None if it was trained on others, or did not choose them itself."""
    try:
        config, (_, fingerprint) = training["config"], training["data"]["objects"]
        if config["validation"] is not None:
            return None
        chosen = _held_out_by_name(whole, config["val_share"], config["seed"])
    except (KeyError, TypeError, ValueError):  # of a detector that no run trained
        return None
    held_out = DetectionSubset(whole, np.flatnonzero(chosen))
    return held_out if held_out.fingerprint() == fingerprint else None


def _files(images: DetectionImages) -> Iterator[str]:
    """The file of each image, by a name that does not depend on how its folder was named."""
    root = os.path.realpath(images.root)
    return (os.path.normpath(os.path.join(root, images.name(index))) for index in range(len(images)))


def _as_split(train: Path, validation: Path) -> str:
    """How two parts were told apart, in words."""
    if train == validation:
        return f"parts of {train.name}"
    if train.name == validation.name:
        return f"folders {train.parent.name} and {validation.parent.name}"
    return f"{'files' if train.is_file() else 'folders'} {train.name} and {validation.name}"


def _learnt(parts: dict[str, Part], data: str) -> Part:
    if (name := first_part(parts, ("train", ""))) is not None:
        return parts[name]
    raise UserError(f"{data!r} has no training part, only {', '.join(sorted(parts))}.")


def _held_out(parts: dict[str, Part], data: str) -> Part:
    if (name := first_part(parts, (*HELD_OUT, ""))) is not None:
        return parts[name]
    raise UserError(f"{data!r} has a training part only; give data with a part to evaluate on.")


def _find_parts(data: str) -> dict[str, Part]:
    """The parts of ``data``: "train", "val", …, or "" for what belongs to none."""
    path = Path(data)
    if path.is_dir():
        return _parts_of_folder(path)
    if path.is_file():
        return yolo.parts_of_yaml(path) if path.suffix.lower() in yolo.SUFFIXES else _parts_of_json(path)
    images, comma, annotations = data.rpartition(",")
    if not comma:
        raise UserError(f"There is no folder or file {data!r}; detection takes {_FORMATS}.")
    if Path(images).is_file() and Path(annotations).is_dir():
        images, annotations = annotations, images
    if not Path(images).is_dir():
        raise UserError(f"There is no folder {images!r}.")
    if not Path(annotations).is_file():
        raise UserError(f"There is no file {annotations!r}.")
    return _parts_of_json(Path(annotations), [Path(images)])


def _parts_of_json(path: Path, folders: Sequence[Path] | None = None) -> dict[str, Part]:
    """A JSON file as data without parts, whatever its name ends in.

    Raises:
        UserError: It is a file of another kind, such as of labels, a list of images, or an image.
    """
    if path.suffix.lower() != ".json" and not coco.is_coco_file(path):
        raise UserError(
            f"{str(path)!r} is no JSON file in the COCO format; give such a file, the folder that holds images and "
            "annotations, or the data.yaml of a YOLO data set."
        )
    return coco.parts_of_file(path, folders)


def _parts_of_folder(root: Path) -> dict[str, Part]:
    """In the format that the folder has; COCO files beat the others', which they may have been made from."""
    files = coco.annotation_files(root)
    if not any(map(coco.has_usual_name, files)):
        other = next((form for form in (yolo, voc) if form.recognises(root)), None)
        if other is not None and not any(map(coco.is_coco_file, files)):
            return other.parts_of_folder(root)
    if files:
        return coco.parts_of_folder(root, files)
    if yolo.seems_meant(root):
        return yolo.parts_of_folder(root)  # which says what is missing
    skipped = coco.other_files(root)
    of_objects = f" of objects ({listed(skipped, 2)} left aside)" if skipped else ""
    raise UserError(f"Folder {str(root)!r} holds no annotations{of_objects}; detection takes {_FORMATS}.")
