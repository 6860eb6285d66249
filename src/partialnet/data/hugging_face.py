"""Image classification data sets of the Hugging Face hub, by the package ``datasets``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.images import decode_image, read_image
from partialnet.messages import first_line, listed

from .labelled_images import ImageData, LabelledImages
from .splits import HELD_OUT, TRAINING, first_part, split_by_class

#: What ``save_to_disk`` leaves in a folder: one for a data set, the other for its parts together.
_SAVED = ("state.json", "dataset_dict.json")
#: Names of columns of images that are not of type Image, the first found is taken.
IMAGE_COLUMNS = ("image", "img")
#: Names of columns of classes that are not of type ClassLabel, the first found is taken; "cls" is WebDataset's.
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")


class HuggingFaceImages(LabelledImages):
    """One part of a data set of the hub.

    Args:
        name: What errors call it.
        rows: The part; its images are not decoded (``datasets.Image(decode=False)``).
        image_column: Column of the images.
        labels: Class of each row.
        class_names: Name of each class.
    """

    def __init__(
        self, name: str, rows: Any, image_column: str, labels: np.ndarray, class_names: tuple[str, ...]
    ) -> None:
        self.class_names = class_names
        self.labels = labels
        self._name = name
        self._rows = rows
        self._image_column = image_column

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index`` as 8-bit RGB; a JPEG perhaps in a smaller size.

        Raises:
            UserError: It cannot be read, or the row has none.
        """
        image = self._rows[index][self._image_column]
        if image is None:
            raise UserError(f"{self.name(index)!r} has no image.")
        if image.get("bytes"):
            return decode_image(image["bytes"], self.name(index), min_side)
        return read_image(image["path"], min_side)

    def name(self, index: int) -> str:
        """Data set, part and row."""
        return f"{self._name}/{index}"


def open_hugging_face(name: str, val_share: float, seed: int) -> ImageData:
    """Training and held-out part of the hub's data set ``name``, or of one in folder ``name``.

    A folder is one that ``save_to_disk`` wrote, or holds files as they lie on the hub, such as Parquet. One of several
    configurations is chosen by ``NAME:CONFIGURATION``.

    The image column is the first of type Image, else one that is named as in ``IMAGE_COLUMNS`` and holds paths or the
    content of files; the class column is the first of type ClassLabel, else one that is named as in ``LABEL_COLUMNS``
    and holds texts or numbers.

    Args:
        name: Name or folder, perhaps with a configuration.
        val_share: Share of each class to hold out where the data set has no held-out part.
        seed: Of the choice of images to hold out.

    Raises:
        UserError: ``datasets`` is not installed, the data set cannot be loaded or holds no labelled images.
    """
    datasets = require("datasets", "hf")
    if not name:
        raise UserError("hfds/ needs the name of a data set or a folder after it, such as hfds/ethz/food101.")
    path, configuration = _configuration(name)
    loaded = _load(datasets, name, path, configuration)
    training = first_part(loaded, TRAINING)
    if training is None:
        raise UserError(f"Data set {name!r} has no part 'train', only {', '.join(map(repr, loaded))}.")
    features = loaded[training].features
    columns = _columns(datasets, name, features)
    given = tuple(map(str, getattr(features[columns.labels], "names", None) or ()))
    labelled = _labelled_parts(name, loaded, training, columns, len(given))
    names = given or _class_names(np.concatenate([part.classes for part in labelled.values()]))
    # what is held out follows from the images' names, and a folder may move
    prefix = "" if Path(path).is_dir() else f"{name}/"
    images = []
    for part, found in labelled.items():
        rows = _images_alone(datasets, name, loaded[part], columns.images)
        if len(found.rows) < len(rows):
            rows = rows.select(found.rows)
        labels = found.classes if given else _numbers(names, found.classes)
        images.append(HuggingFaceImages(f"{prefix}{part}", rows, columns.images, labels.astype(np.int64), names))
    if len(images) == 1:
        return split_by_class(images[0], val_share, seed)
    return ImageData(images[0], images[1], f"{name}'s parts {' and '.join(labelled)}")


def _configuration(name: str) -> tuple[str, str | None]:
    """A data set's name or folder, and the configuration behind a colon."""
    if ":" not in name or Path(name).exists():
        return name, None
    path, _, configuration = name.rpartition(":")
    return path, configuration


def _load(datasets: Any, name: str, path: str, configuration: str | None) -> Mapping[str, Any]:
    """The parts of a data set."""
    try:
        saved = any((Path(path) / file).is_file() for file in _SAVED)
        loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, configuration)
    except Exception as error:  # of the network, the hub, the data set's own code
        reason = first_line(error).rstrip(".")
        if configuration is None and reason.startswith("Config name is missing"):
            found = datasets.get_dataset_config_names(name)
            raise UserError(
                f"Data set {name!r} has {len(found)} configurations, {listed(found)}; choose one, as in "
                f"hfds/{name}:{found[0]}."
            ) from error
        where = "" if Path(path).is_dir() else " of the Hugging Face hub"
        raise UserError(f"Data set {name!r}{where} cannot be loaded: {reason}.") from error
    # a format such as torch's is kept with a data set
    parts = loaded.items() if isinstance(loaded, Mapping) else [("train", loaded)]
    return {part: rows.with_format(None) for part, rows in parts}


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of the images and of their classes."""

    images: str
    labels: str


def _columns(datasets: Any, name: str, features: Mapping[str, Any]) -> _Columns:
    """Columns of the images and of their classes."""
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    images += [column for column in IMAGE_COLUMNS if column in features]
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels += [column for column in LABEL_COLUMNS if column in features]
    if not images or not labels:
        missing, known = ("images", IMAGE_COLUMNS) if not images else ("classes", LABEL_COLUMNS)
        raise UserError(
            f"Data set {name!r} has no column of {missing}; it has {', '.join(map(repr, features))}. Rename one to "
            f"{', '.join(known[:-1])} or {known[-1]}."
        )
    return _Columns(images[0], labels[0])


@dataclass(frozen=True)
class _Labelled:
    """The rows of a part whose class is known, and these classes."""

    rows: np.ndarray
    classes: np.ndarray


def _labelled_parts(
    name: str, loaded: Mapping[str, Any], training: str, columns: _Columns, num_names: int
) -> dict[str, _Labelled]:
    """The training part and, where there is one with labelled images, the held-out part.

    Args:
        name: What errors call the data set.
        loaded: All its parts.
        training: The training part.
        columns: Where the images and classes are.
        num_names: Number of the classes that the data set names; 0 where it names none.
    """
    labelled = {training: _labelled(f"{name}/{training}", loaded[training][columns.labels][:], num_names)}
    if not len(labelled[training].rows):
        raise UserError(f"Part {training!r} of data set {name!r} has no labelled image.")
    # competitions publish their test part without classes
    for part in filter(None, (first_part(loaded, (wanted,)) for wanted in HELD_OUT)):
        if {columns.images, columns.labels} <= set(loaded[part].features):
            found = _labelled(f"{name}/{part}", loaded[part][columns.labels][:], num_names)
            if len(found.rows):
                return {**labelled, part: found}
    return labelled


def _labelled(part: str, values: Iterable[Any], num_names: int) -> _Labelled:
    """What is known of a column of classes; the hub marks an unknown one by -1 or leaves it out.

    Args:
        part: What errors call it.
        values: The column.
        num_names: Number of the classes that the data set names; 0 where it names none.
    """
    rows, classes = [], []
    for row, value in enumerate(values):
        if not isinstance(value, (str, int, float, np.generic, type(None))):
            raise UserError(f"Row {row} of {part} has {value!r} for its class; it must be one number or text.")
        number = value if isinstance(value, (int, np.integer)) else None
        if value is None or (number is not None and (number < 0 or (num_names and number >= num_names))):
            continue
        rows.append(row)
        classes.append(value)
    return _Labelled(np.array(rows, np.int64), np.array(classes))


def _images_alone(datasets: Any, name: str, rows: Any, column: str) -> Any:
    """The rows of a part with nothing but their images, which are not decoded."""
    # reading a row reads, and decodes, whatever columns there are
    rows = rows.select_columns([column])
    try:
        return rows.cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # of pyarrow, where the column holds something else
        reason = first_line(error).rstrip(".")
        raise UserError(f"Column {column!r} of data set {name!r} holds no images: {reason}.") from error


def _class_names(values: np.ndarray) -> tuple[str, ...]:
    """The numbers or texts that occur, in their order."""
    found = np.unique(values if values.dtype.kind in "iu" else values.astype(str))
    return tuple(map(str, found.tolist()))


def _numbers(names: tuple[str, ...], values: np.ndarray) -> np.ndarray:
    """Place of each value's class among the names."""
    if values.dtype.kind in "iu":
        return np.searchsorted(np.array(names, dtype=np.int64), values)
    return np.searchsorted(names, values.astype(str))
