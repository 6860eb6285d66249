"""Classification data sets of torchvision, downloaded when they are first asked for."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from partialnet.errors import UserError
from partialnet.images import to_rgb
from partialnet.messages import first_line

from .labelled_images import ImageData, LabelledImages
from .splits import HELD_OUT, split_by_class

#: These have the arguments of a classification data set, but no class for each image.
_OTHER_TASKS = {"SBU", "WIDERFace", "LFWPairs"}


class TorchvisionImages(LabelledImages):
    """A torchvision data set.

    Args:
        name: Class name within ``torchvision.datasets``.
        dataset: The data set without transforms; an item is a PIL image and a class number.
        labels: Class of each item.
    """

    def __init__(self, name: str, dataset: Any, labels: np.ndarray) -> None:
        self.labels = labels
        names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
        if len(names) <= labels.max():
            names = range(int(labels.max()) + 1)
        self.class_names = tuple(map(str, names))
        self._name = name
        self._dataset = dataset

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` as 8-bit RGB."""
        try:
            return to_rgb(self._dataset[index][0])
        except Exception as error:  # each data set reads in its own way
            raise UserError(f"{self.name(index)} cannot be read: {error}") from error

    def name(self, index: int) -> str:
        """Data set and number."""
        return f"{self._name}/{index}"


def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's data sets that can be downloaded and have one class for each image."""
    return tuple(sorted(name for name in torchvision.datasets.__all__ if _classifies(name)))


def open_torchvision(name: str, val_share: float, seed: int, root: str | Path = "data") -> ImageData:
    """Training and held-out part of torchvision's data set ``name``, from ``root`` or downloaded to it.

    One process downloads while others wait. What torchvision calls val or test is held out; a data set without parts
    is split.

    Args:
        name: Name of the class in torchvision.
        val_share: Share of each class to hold out where the data set has no parts.
        seed: Of the choice of images to hold out.
        root: Folder for downloads.

    Raises:
        UserError: There is no such data set, or it cannot be downloaded.
    """
    if name not in (names := torchvision_names()):
        folded = {known.lower(): known for known in names}
        near = get_close_matches(name.lower(), folded, 1)
        hint = f"did you mean torchvision:{folded[near[0]]}?" if near else f"there are {', '.join(names)}."
        raise UserError(f"torchvision has no classification data set {name!r}; {hint}")
    builder = getattr(torchvision.datasets, name)
    parameters = inspect.signature(builder.__init__).parameters
    Path(root).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(root) / f".{name}.lock"):
        if "train" in parameters:
            train, held_out = ({"train": True}, "train"), ({"train": False}, "test")
        elif "split" in parameters:
            default = parameters["split"].default
            train = {"split": default}, default
            held_out = _held_out(builder, root, ("test",) if default == "trainval" else HELD_OUT)
        else:
            return split_by_class(_open(builder, root, name, {}), val_share, seed)
        training, validation = (_open(builder, root, f"{name}/{part}", options) for options, part in (train, held_out))
    return ImageData(training, validation, f"{name}'s parts {train[1]} and {held_out[1]}")


def _held_out(builder: Any, root: str | Path, candidates: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The first part that the data set knows."""
    for part in candidates:
        try:
            builder(root, split=part, download=False)
        except ValueError:  # what torchvision raises where there is no such part
            continue
        except Exception:  # not downloaded yet
            pass
        return {"split": part}, part
    raise UserError(f"torchvision's {builder.__name__} has no part to hold out.")


def _open(builder: Any, root: str | Path, name: str, options: dict[str, Any]) -> TorchvisionImages:
    try:
        dataset = builder(root, **options, download=True)
    except Exception as error:  # of the network, the server, the disk, a missing reader of its format
        reason = first_line(error).rstrip(".")
        raise UserError(f"torchvision:{builder.__name__} cannot be loaded from {str(root)!r}: {reason}.") from error
    return TorchvisionImages(name, dataset, _labels(builder, root, dataset, options))


def _labels(builder: Any, root: str | Path, dataset: Any, options: dict[str, Any]) -> np.ndarray:
    """Class of each item, without decoding images where that is possible."""
    for attribute in ("targets", "labels"):
        if (labels := getattr(dataset, attribute, None)) is not None and len(labels) == len(dataset):
            break
    else:
        if "loader" in inspect.signature(builder.__init__).parameters:
            dataset = builder(root, **options, loader=_no_image)
        numbers = tqdm(range(len(dataset)), desc=f"{builder.__name__}'s classes", delay=2)
        labels = [dataset[index][1] for index in numbers]
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"torchvision:{builder.__name__} has no class for each image.")
    return labels.astype(np.int64)


def _no_image(path: Any) -> None:
    """A reader for when only the classes are wanted."""


def _classifies(name: str) -> bool:
    builder = getattr(torchvision.datasets, name)
    if not inspect.isclass(builder) or name in _OTHER_TASKS:
        return False
    parameters = inspect.signature(builder).parameters
    if not {"root", "download", "transform", "target_transform"} <= set(parameters):
        return False
    if any(p.default is p.empty for p in parameters.values() if p.name != "root"):
        return False
    target = parameters.get("target_type") or parameters.get("target_types")
    return target.default == "category" if target else "transforms" not in parameters
