"""Class activation maps of images, by Grad-CAM and its relatives.

The methods are those of the library "grad-cam" (extra ``explain``); here are the layers that they look at, the
checkpoint's preprocessing, and the way back from the network's input to the image.

Source: paper, Fig. 6; Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.messages import did_you_mean
from partialnet.prediction import PhotoNetwork, finite
from partialnet.preprocessing import Region

from .layers import TargetLayer, target_layers

#: Methods by name, each with its class in the library; the first is the default.
METHODS: dict[str, str] = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "elementwise": "GradCAMElementWise",
    "eigengradcam": "EigenGradCAM",
    "shapleycam": "ShapleyCAM",
    "scorecam": "ScoreCAM",
    "eigencam": "EigenCAM",
    "kpcacam": "KPCA_CAM",
}
#: Those that look at the features alone, not at a class.
CLASSLESS_METHODS = ("eigencam", "kpcacam")


@dataclass(frozen=True)
class ClassMap:
    """Where in an image a network finds a class.

    Attributes:
        at_input: The map at the resolution of the network's input, float32 in [0, 1]; 1 at the most important place.
        region: The part of the image that fills the network's input, in pixels.
        size: Width and height of the image.
        target: Index of the class; None for methods that look at no class.
        probability: What the network gives that class, in [0, 1]; None without a class.
        method: One of ``METHODS``.
        stage: Number of the stage whose output was looked at.
        layer: Its last layer.
    """

    at_input: np.ndarray
    region: Region
    size: tuple[int, int]
    target: int | None
    probability: float | None
    method: str
    stage: int
    layer: str

    @cached_property
    def values(self) -> np.ndarray:
        """The map over the image, (H, W), float32; 0 where the network does not look."""
        return to_image(self.at_input, self.region, self.size)

    @property
    def empty(self) -> bool:
        """Whether nothing in the image speaks for the class."""
        return not bool(self.at_input.max() > 0)

    @property
    def peak(self) -> tuple[float, float]:
        """x and y of the most important place, in pixels of the image.

        The middle of what the network sees where the map is empty. A map is constant between the outermost positions of
        the layer and the border, so a peak there is a plateau; of all its pixels that is taken which is nearest to the
        middle of what the network sees, the layer's position.
        """
        middle_x, middle_y = (self.region[0] + self.region[2]) / 2, (self.region[1] + self.region[3]) / 2
        if self.empty:
            return middle_x, middle_y
        rows, columns = np.nonzero(self.values == self.values.max())
        nearest = np.argmin((rows + 0.5 - middle_y) ** 2 + (columns + 0.5 - middle_x) ** 2)
        return float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5

    def resized(self, size: tuple[int, int]) -> ClassMap:
        """The same map on the image resized to ``size`` (width, height)."""
        across, down = size[0] / self.size[0], size[1] / self.size[1]
        left, top, right, bottom = self.region
        return replace(self, region=(left * across, top * down, right * across, bottom * down), size=size)

    def statistics(self) -> dict[str, Any]:
        """Figures that describe the map.

        ``peak_x``, ``peak_y`` and ``center_x``, ``center_y`` (of mass) in pixels of the image; ``mean``; ``area_half``,
        the share of what the network sees that has at least half of the peak; ``empty``.
        """
        weights = self.values / max(float(self.values.sum()), 1e-12)
        rows, columns = (np.arange(length) + 0.5 for length in self.values.shape)
        x, y = self.peak
        return {
            "peak_x": x,
            "peak_y": y,
            "center_x": float(weights.sum(0) @ columns),
            "center_y": float(weights.sum(1) @ rows),
            "mean": float(self.at_input.mean()),
            "area_half": float((self.at_input >= 0.5).mean()),
            "empty": self.empty,
        }


class Explainer(PhotoNetwork):
    """A checkpoint ready to explain its answers; see ``PhotoNetwork`` for its arguments.

    Of a network that returns features, and so has no classes, only ``CLASSLESS_METHODS`` apply.
    """

    @cached_property
    def layers(self) -> dict[int, TargetLayer]:
        """The last layer of each stage, by the number of the stage, from 1.

        Raises:
            UserError: No layer gives a map of more than one position.
        """
        try:
            return target_layers(self.model, (3, *self.input_size))
        except ValueError as error:
            raise UserError(str(error)) from error

    @property
    def default_method(self) -> str:
        """Grad-CAM, or EigenCAM for a network without classes."""
        return "gradcam" if self.num_classes else "eigencam"

    def target_layer(self, stage: int | None = None) -> TargetLayer:
        """The last layer of a stage; the last stage's without a number.

        Raises:
            UserError: There is no such stage.
        """
        stage = max(self.layers) if stage is None else stage
        if stage not in self.layers:
            have = f"stages 1 to {max(self.layers)}" if len(self.layers) > 1 else "one stage only, number 1"
            raise UserError(f"There is no stage {stage}: {self.checkpoint.architecture} has {have}.")
        return self.layers[stage]

    def find_class(self, text: str) -> int:
        """Index of the class with a name, one of its synonyms (between commas) or a number.

        Raises:
            UserError: There is no such class; the message gives the nearest names.
        """
        if not self.num_classes:
            raise UserError("This network has no classes, it gives features only; leave the target out.")
        exact = {name: index for index, name in reversed(list(enumerate(self.class_names)))}
        synonyms = {part.strip(): index for name, index in exact.items() for part in name.split(",")}
        lower = {part.lower(): part for part in synonyms}
        if text in exact:
            return exact[text]
        if text.strip().lower() in lower:
            return synonyms[lower[text.strip().lower()]]
        if text.isdecimal() and int(text) < self.num_classes:
            return int(text)
        near = [lower[part] for part in get_close_matches(text.lower(), lower, n=3)] if self.names_known else []
        hint = f" Similar names: {', '.join(near)}." if near else ""
        allowed = "give the name of a class or " if self.names_known else "its classes have no names; give "
        raise UserError(
            f"{self.checkpoint.architecture} has no class {text!r}: {allowed}a number from 0 to "
            f"{self.num_classes - 1}.{hint}"
        )

    def class_map(
        self, image: Image.Image, target: int | None = None, method: str | None = None, stage: int | None = None
    ) -> ClassMap:
        """Where in an image the network finds a class.

        Args:
            image: RGB.
            target: Index of the class; the most probable one if None.
            method: One of ``METHODS``; ``default_method`` if None.
            stage: Stage whose output is looked at, from 1; the last if None.

        Raises:
            UserError: The library is not installed, or method, stage or class do not exist or do not fit the network.
        """
        method = method or self.default_method
        layer = self.target_layer(stage)
        if not self.num_classes and method not in CLASSLESS_METHODS:
            raise UserError(
                f"This network has no classes, which {method} needs; choose {' or '.join(CLASSLESS_METHODS)}."
            )
        batch, probability = self.prepare([image]), None
        if method in CLASSLESS_METHODS:
            target = None
        else:
            probabilities = finite(self.probabilities(batch)[0])
            target = int(probabilities.argmax()) if target is None else target
            if not 0 <= target < self.num_classes:
                raise UserError(f"There is no class {target}: the network has {self.num_classes}.")
            probability = float(probabilities[target])
        at_input = self._map(batch, target, method, layer)
        region = self.preprocess.region(image.size)
        return ClassMap(at_input, region, image.size, target, probability, method, layer.stage, layer.name)

    def _map(self, batch: Tensor, target: int | None, method: str, layer: TargetLayer) -> np.ndarray:
        """The library's map, (H, W) of the input, in [0, 1]."""
        create, class_target = library_class(method)
        cam: Any = create(self.model, [layer.module], layer.to_map)
        targets = [] if target is None else [class_target(target)]
        # not the library's context manager, which hides IndexErrors
        try:
            # Score-CAM draws a progress bar of its own
            with _frozen(self.model), torch.enable_grad(), redirect_stderr(io.StringIO()):
                values: np.ndarray = cam(batch.requires_grad_(), targets)[0]
        except RuntimeError as error:
            if "does not require grad" not in str(error) and "in-place" not in str(error):
                raise
            raise UserError(
                f"No gradients pass through this network; choose {' or '.join(CLASSLESS_METHODS)}."
            ) from error
        except (AttributeError, IndexError, TypeError) as error:
            # the library finds no gradient, or a layer's output that is no map
            raise UserError(f"{method} cannot use the layer {layer.name}: {error}") from error
        finally:
            cam.activations_and_grads.release()
        if not np.isfinite(values).all():
            raise UserError(f"{method} of the layer {layer.name} is not a number (NaN): the network overflows.")
        return np.ascontiguousarray(values, dtype=np.float32).clip(0, 1)


def to_image(values: np.ndarray, region: Region, size: tuple[int, int], smooth: bool = True) -> np.ndarray:
    """A map over a network's input, transferred to the image: (h, w) of any resolution to (height, width) of ``size``.

    Args:
        values: The map, floating point.
        region: What the network sees of the image, ``Preprocessing.region``.
        size: Width and height of the image.
        smooth: Interpolate between the map's positions.

    Returns:
        float32; 0 beyond the region.
    """
    left, top, right, bottom = region
    across, down = values.shape[1] / (right - left), values.shape[0] / (bottom - top)
    placed = Image.fromarray(values.astype(np.float32)).transform(
        size,
        Image.Transform.AFFINE,
        (across, 0, -left * across, 0, down, -top * down),
        Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST,
    )
    return np.asarray(placed)


def to_position(point: tuple[float, float], region: Region, resolution: tuple[int, int]) -> tuple[int, int]:
    """Row and column of a map of ``resolution`` (height, width) over the input, of a point (x, y) in the image.

    Raises:
        UserError: The network does not see the point.
    """
    left, top, right, bottom = region
    x, y = point
    if not (left <= x < right and top <= y < bottom):
        raise UserError(
            f"The network does not see the point {x:g},{y:g}: of this image it sees x from {max(left, 0):.0f} to "
            f"{right:.0f} and y from {max(top, 0):.0f} to {bottom:.0f}."
        )
    height, width = resolution
    row, column = int((y - top) / (bottom - top) * height), int((x - left) / (right - left) * width)
    return min(row, height - 1), min(column, width - 1)


def library_class(method: str) -> tuple[Any, Any]:
    """The library's class for a method, and for what it explains.

    Raises:
        UserError: There is no such method, or the library is not installed.
    """
    if method not in METHODS:
        raise UserError(f"There is no method {method!r}.{did_you_mean(method, METHODS)}")
    library = require("pytorch_grad_cam", "explain")
    targets = require("pytorch_grad_cam.utils.model_targets", "explain")
    return getattr(library, METHODS[method]), targets.ClassifierOutputTarget


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients for the parameters, which cost time and memory; the gradients they have are kept."""
    states = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in states:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, learns, gradient in states:
            parameter.requires_grad_(learns)
            parameter.grad = gradient
