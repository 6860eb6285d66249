"""Detectors as checkpoints: stored like classifiers, with categories and image sides instead of classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from torch import nn

from partialnet.checkpoint.stored_network import (
    load_tensors,
    read_network,
    save_network,
    serialize_network,
    using_configuration,
)
from partialnet.errors import UserError
from partialnet.folding import fold
from partialnet.layers.inference import Runtime

from .model import SCORE_THRESH, Detector, create_mask_rcnn

if TYPE_CHECKING:
    from .exported import Canvas

_WITH_MASKS, _WITHOUT_MASKS = "mask_rcnn", "faster_rcnn"
_SETTINGS = {
    name
    for name, parameter in inspect.signature(create_mask_rcnn).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


@dataclass
class DetectorCheckpoint:
    """A detector with everything that is needed to use it.

    Attributes:
        model: torchvision's Mask R-CNN or Faster R-CNN, in evaluation mode; see ``create_mask_rcnn``. Of an exported
            detector a ``Canvas``, which is called like one.
        backbone: Name of its backbone in timm's registry.
        categories: Name of each category by its COCO id, in the order of the labels: label 1 is the first.
        settings: What ``create_mask_rcnn`` is given besides.
        folded: Whether the network is folded for inference.
        training: How it was trained: the run's configuration with its seed, the epoch, the precision it reached.
    """

    model: Detector | Canvas
    backbone: str
    categories: dict[int, str]
    settings: dict[str, Any] = field(default_factory=dict)
    folded: bool = False
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> list[float]:
        """Mean of each RGB channel, of values in [0, 1], that is subtracted from images."""
        return self.model.transform.image_mean

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, by which images are divided."""
        return self.model.transform.image_std

    @property
    def img_size(self) -> tuple[int, int]:
        """Shorter and at most longer side of an image, in pixels."""
        return self.model.transform.img_size

    @property
    def score_thresh(self) -> float:
        """Detections of lower scores are left out; in an exported detector, as the graph was written."""
        heads: Any = getattr(self.model, "roi_heads", None)
        return float(heads.score_thresh if heads is not None else self.settings.get("score_thresh", SCORE_THRESH))

    @property
    def has_masks(self) -> bool:
        """Whether it is a Mask R-CNN; else it is a Faster R-CNN."""
        return bool(self.settings.get("masks", True))

    @property
    def kind(self) -> str:
        """Name of its kind, for people."""
        return "Mask R-CNN" if self.has_masks else "Faster R-CNN"

    def fold(self) -> DetectorCheckpoint:
        """A copy with the network folded for inference; see ``partialnet.fold``."""
        return replace(self, model=cast(Detector, fold(self.model)), folded=True)

    def fold_for(self, canvas: tuple[int, int] | None, runtime: Runtime | None = None) -> nn.Module:
        """The network folded for a runtime, and for images of ``canvas``, (H, W) in pixels, only; None for any size."""
        folded = fold(self.model)
        folded.backbone = fold(self.model.backbone, canvas, runtime)  # type: ignore[arg-type]
        return folded

    def choose(
        self, score_thresh: float, nms_thresh: float | None = None, detections_per_img: int | None = None
    ) -> None:
        """Change in place which of its boxes the detector gives; None leaves a setting as it is.

        Args:
            score_thresh: Boxes down to this score are given; a lower one that the detector has stays.
            nms_thresh: Of two boxes of one category with a higher IoU one is left out.
            detections_per_img: Boxes in one image at most.
        """
        heads: Any = self.model.roi_heads
        heads.score_thresh = min(heads.score_thresh, score_thresh)
        if nms_thresh is not None:
            heads.nms_thresh = nms_thresh
        if detections_per_img is not None:
            heads.detections_per_img = detections_per_img

    def config(self) -> dict[str, Any]:
        """The configuration that a file of it holds."""
        return {
            "task": "detection",
            "detector": _WITH_MASKS if self.has_masks else _WITHOUT_MASKS,
            "architecture": self.backbone,
            "settings": self.settings,
            "categories": [{"id": number, "name": name} for number, name in self.categories.items()],
            "img_size": list(self.img_size),
            "mean": list(self.mean),
            "std": list(self.std),
            **({"folded": True} if self.folded else {}),
            **({"training": self.training} if self.training else {}),
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``model.safetensors`` and ``config.json`` into ``folder``, each in one step; return the former."""
        return save_network(folder, self.model, self.config())

    def serialize(self, dtype: torch.dtype | None = None) -> bytes:
        """The content of a ``.safetensors`` file that ``load_detector`` reads."""
        return serialize_network(self.model, self.config(), dtype)


def create_detector(backbone: str, categories: Mapping[int, str], **settings: Any) -> DetectorCheckpoint:
    """A fresh Mask R-CNN or Faster R-CNN for the categories of a data set.

    Args:
        backbone: Any of timm's whose feature maps make a pyramid.
        categories: Name of each category by its COCO id.
        settings: Keyword arguments of ``create_mask_rcnn``.

    Raises:
        UserError: There is no such backbone, it cannot carry a detector, or a setting is unknown.
    """
    if unknown := sorted(set(settings) - _SETTINGS):
        raise UserError(f"A detector has no setting {unknown[0]!r}; it has {', '.join(sorted(_SETTINGS))}.")
    model = create_mask_rcnn(backbone, len(categories), **settings)
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return DetectorCheckpoint(model, timm.models.split_model_name_tag(backbone)[0], dict(categories), kept)


def load_detector(source: str | Path) -> DetectorCheckpoint:
    """Read a detector's run folder or ``.safetensors`` file, in evaluation mode.

    Raises:
        UserError: Nothing usable is there, or it is no detector; the message says why. No code from a file is ever run.
    """
    stored = read_network(source, "detection")
    config = stored.config
    with using_configuration(stored.path):
        if config["detector"] not in (_WITH_MASKS, _WITHOUT_MASKS):
            raise ValueError(f"the detector {config['detector']!r} is unknown")
        settings = {**config["settings"], "img_size": config["img_size"]}
        detector = create_detector(config["architecture"], parse_categories(config["categories"]), **settings)
        detector.settings = dict(config["settings"])
        transform: Any = detector.model.transform
        transform.image_mean, transform.image_std = (_three_numbers(config, key) for key in ("mean", "std"))
        detector.training = dict(config.get("training") or {})
        if config.get("folded"):
            detector = detector.fold()
    load_tensors(detector.model, stored.tensors, stored.path)
    return detector


def parse_categories(entries: Any) -> dict[int, str]:
    """Categories as COCO's files have them, ``[{"id": 1, "name": "person"}, …]``, to names by id.

    Raises:
        ValueError: It is no such list, or an id comes twice.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError("categories must be a list with at least one entry")
    categories: dict[int, str] = {}
    for entry in entries:
        number, name = entry["id"], entry["name"]
        if not isinstance(number, int) or not isinstance(name, str) or number in categories:
            raise ValueError(f"category {entry!r} needs an id of its own and a name")
        categories[number] = name
    return categories


def _three_numbers(config: Mapping[str, Any], key: str) -> list[float]:
    values = config[key]
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
        raise ValueError(f"{key}={values!r} must hold a number for each channel")
    if key == "std" and min(values) <= 0:
        raise ValueError(f"{key}={values!r} must be above 0")
    return [float(value) for value in values]
