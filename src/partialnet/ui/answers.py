"""What networks make of a photograph, as values that become JSON: classes, maps, gates, attention and speed."""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from partialnet.checkpoint import Checkpoint
from partialnet.errors import UserError
from partialnet.explain import Explainer, Gates, read_gates
from partialnet.explain.drawing import small_image
from partialnet.images import decode_image
from partialnet.layers import GaussianSE, SelfAttention2d, SpatialGate
from partialnet.preprocessing import Region
from partialnet.sources import device_for, is_exported, open_source, short_names

from .pictures import attention_picture, class_map_picture, data_url, tile_picture
from .speed import measure_folding

#: Pixels of a photograph at most: 64 million take up to a gigabyte on their way to the networks.
MAX_PIXELS = 64_000_000
#: Bytes of the photographs that are remembered for further questions, with what was found in them.
MAX_MEMORY = 256 * 2**20
#: Questions that may wait for the networks.
MAX_WAITING = 16
#: Most probable classes that are shown.
TOP = 5
_BINS = 20
_NOT_TIMED = (
    "Exported files are not timed here; `partialnet bench --runtime` times the run they came from in their runtime."
)

_Answer = TypeVar("_Answer")


class Busy(Exception):
    """Too many requests are waiting for the networks already."""


class Forgotten(Exception):
    """The photograph that was asked for is no longer in memory."""


@dataclass(frozen=True)
class Network:
    """A network on the page.

    Attributes:
        name: What it is called there.
        explainer: The network, ready to answer.
        untrained: Whether its weights are random, behind a model name.
        exported: Whether it runs in another runtime than PyTorch, which gives classes only.
    """

    name: str
    explainer: Explainer
    untrained: bool = False
    exported: bool = False

    @property
    def checkpoint(self) -> Checkpoint:
        """The network with what is needed to use it."""
        return self.explainer.checkpoint

    def describe(self) -> dict[str, Any]:
        """What the page says of it before any photograph."""
        checkpoint = self.checkpoint
        kinds = {"spatial": SpatialGate, "channel": GaussianSE, "attention": SelfAttention2d}
        modules = [] if self.exported else list(self.explainer.model.modules())
        return {
            "name": self.name,
            "architecture": checkpoint.architecture,
            "untrained": self.untrained,
            "input_size": list(self.explainer.input_size),
            "num_classes": self.explainer.num_classes,
            "params_m": None if self.exported else sum(p.numel() for p in self.explainer.model.parameters()) / 1e6,
            "stages": self._stages(),
            "has": [kind for kind, layer in kinds.items() if any(isinstance(module, layer) for module in modules)],
            "notes": self._notes(),
        }

    def _stages(self) -> list[int]:
        if self.exported:
            return []
        try:
            return sorted(self.explainer.layers)
        except UserError:  # no layer gives a map; the message takes the map's place
            return []

    def _notes(self) -> list[str]:
        notes = []
        if self.untrained:
            notes.append(
                "This is the name of an untrained network: its weights are random, and so is everything it answers."
            )
        if self.exported:
            notes.append("An exported file gives classes only; open the run it came from to see maps and gates.")
        elif self.checkpoint.folded:
            notes.append("This network is folded, so its gates are merged; open the run it came from to see them.")
        if not self.explainer.num_classes:
            notes.append("This network gives features, no classes; its map is of the strongest pattern (EigenCAM).")
        return notes


def open_networks(sources: Sequence[str], device: str | None = "cpu", img_size: int | None = None) -> list[Network]:
    """Open what is to be compared, each with a name of its own.

    Args:
        sources: Run folders, checkpoints, exported files or model names.
        device: Where they run, by name; None for the GPU where there is one. Exported files run on the CPU.
        img_size: Height and width of their input; their own if None.

    Raises:
        UserError: One of them cannot be used, or not on that device.
    """
    networks: list[Network] = []
    for source, name in short_names(sources).items():
        exported, place = is_exported(source), device_for(source, device)
        checkpoint = open_source(source)
        if img_size is not None and exported:
            raise UserError(f"The image size of {source!r} is fixed; leave --img-size out.")
        explainer = Explainer(checkpoint.resized(img_size), place)
        networks.append(Network(name, explainer, not Path(source).exists(), exported))
    return networks


@dataclass(frozen=True)
class Photo:
    """An uploaded photograph, and what was found in it.

    Attributes:
        name: The file's name where it came from, for messages.
        content: The file.
        small: The photograph as pictures show it.
        size: Its width and height in pixels.
        gates: Of each network; None where they cannot be read.
        target: Name of the class that is shown by default where a network has it.
    """

    name: str
    content: bytes
    small: Image.Image
    size: tuple[int, int]
    gates: tuple[Gates | None, ...]
    target: str | None

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        found = [gate for gates in self.gates if gates for gate in (*gates.spatial, *gates.channel, *gates.attention)]
        return len(self.content) + 3 * math.prod(self.small.size) + sum(gate.values.nbytes for gate in found)


class Viewer:
    """Answers questions about photographs.

    All methods may be called from any thread. One thread of its own decodes and runs the networks, one question after
    the other: their hooks and gradients do not bear two at a time, and PyTorch keeps a pool of threads for every
    thread that calls it.

    Args:
        networks: What is compared.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = tuple(networks)
        self._photos: OrderedDict[str, Photo] = OrderedDict()
        self._worker = ThreadPoolExecutor(1, "networks")
        self._places = BoundedSemaphore(MAX_WAITING)

    def close(self) -> None:
        """Drop what waits, and end after the question in hand."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, Any]:
        """The networks, before any photograph, and the colours of the maps from 0 to 1."""
        described = self._in_turn(lambda: [network.describe() for network in self.networks])
        return {"networks": described, "heat": tile_picture(np.linspace(0, 1, 64)[None], 0, 1)}

    def add_photo(self, content: bytes, name: str, stage: int | None = None) -> dict[str, Any]:
        """Look at a photograph: classes, maps and gates of every network, and a key for further questions.

        Args:
            content: The image file.
            name: What messages call it.
            stage: Stage of the maps; the last if None.

        Raises:
            UserError: It is no image, damaged or too large.
            Busy: Too many questions wait.
        """
        return self._in_turn(lambda: self._add_photo(content, name, stage))

    def maps(self, photo: str, stage: int | None = None, target: str | None = None) -> list[dict[str, Any]]:
        """Every network's map of a class at a stage; the last stage and the predicted class by default."""
        return self._in_turn(lambda: self._maps(photo, stage, target))

    def attention(self, photo: str, x: float, y: float) -> list[dict[str, Any]]:
        """Every network's attention from a place, given as shares of the photograph's width and height."""
        return self._in_turn(lambda: self._attention(photo, x, y))

    def speed(self) -> dict[str, Any]:
        """Time of every network, folded and unfolded, in turn, and a ``note`` on those that are left out.

        Raises:
            UserError: All of them are exported, and would be left out.
        """
        timed = [network for network in self.networks if not network.exported]
        if not timed:
            raise UserError(_NOT_TIMED)
        checkpoints = {network.name: network.checkpoint for network in timed}
        measured = self._in_turn(lambda: measure_folding(checkpoints, timed[0].explainer.device))
        return {**measured, "note": _NOT_TIMED if len(timed) < len(self.networks) else ""}

    def _in_turn(self, work: Callable[[], _Answer]) -> _Answer:
        if not self._places.acquire(blocking=False):
            raise Busy("The networks are busy with other questions; try again in a moment.")
        try:
            return self._worker.submit(work).result()
        except (CancelledError, RuntimeError) as error:
            if isinstance(error, CancelledError) or "after shutdown" in str(error):
                raise Busy("The page is being closed.") from error
            raise
        finally:
            self._places.release()

    def _add_photo(self, content: bytes, name: str, stage: int | None) -> dict[str, Any]:
        image = decode_image(content, name, max_pixels=MAX_PIXELS)
        answers = []
        gates: list[Gates | None] = []
        target: str | None = None
        for network in self.networks:
            answer = _classify(network, image)
            if target is None and network.explainer.names_known and answer["classes"]:
                target = answer["classes"][0]["name"]
            found = _read_gates(network, image)
            gates.append(found)
            answer["gates"] = _show_gates(found)
            answers.append(answer)
        small = small_image(image)
        key = secrets.token_urlsafe(12)
        self._photos[key] = Photo(name, content, small, image.size, tuple(gates), target)
        while len(self._photos) > 1 and sum(photo.num_bytes for photo in self._photos.values()) > MAX_MEMORY:
            self._photos.popitem(last=False)
        maps = [_class_map(network, image, small, stage, target) for network in self.networks]
        for answer, shown in zip(answers, maps, strict=True):
            answer["map"] = shown
        picture = data_url(np.asarray(small, dtype=np.float32) / 255)
        return {"photo": key, "width": image.width, "height": image.height, "picture": picture, "networks": answers}

    def _find(self, key: str) -> Photo:
        if key not in self._photos:
            raise Forgotten("That photograph is no longer remembered, as others came after it; choose it again.")
        self._photos.move_to_end(key)
        return self._photos[key]

    def _maps(self, key: str, stage: int | None, target: str | None) -> list[dict[str, Any]]:
        photo = self._find(key)
        image = decode_image(photo.content, photo.name, max_pixels=MAX_PIXELS)
        return [_class_map(network, image, photo.small, stage, target or photo.target) for network in self.networks]

    def _attention(self, key: str, x: float, y: float) -> list[dict[str, Any]]:
        photo = self._find(key)
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise UserError("The place must lie in the photograph.")
        # the last pixel's far edge still belongs to it
        point = min(x, 1 - 1e-9) * photo.size[0], min(y, 1 - 1e-9) * photo.size[1]
        return [_show_attention(gates, photo, point) for gates in photo.gates]


def _classify(network: Network, image: Image.Image) -> dict[str, Any]:
    try:
        best = network.explainer.most_probable(image, TOP)
    except UserError as error:
        return {"classes": [], "error": str(error)}
    return {"classes": [{"name": name, "probability": probability} for name, probability in best]}


def _class_map(
    network: Network, image: Image.Image, small: Image.Image, stage: int | None, target: str | None
) -> dict[str, Any]:
    """The map as a picture, or why there is none."""
    if network.exported:
        return {"error": "An exported file lets no gradient pass, so it has no map."}
    explainer = network.explainer
    names = explainer.class_names
    try:
        found = explainer.class_map(image, names.index(target) if target in names else None, stage=stage)
    except UserError as error:
        return {"error": str(error)}
    return {
        "picture": class_map_picture(small, found),
        "target": None if found.target is None else names[found.target],
        "probability": found.probability,
        "method": found.method,
        "stage": found.stage,
        "layer": found.layer,
        "empty": found.empty,
    }


def _read_gates(network: Network, image: Image.Image) -> Gates | None:
    if network.exported or network.checkpoint.folded:
        return None
    try:
        gates = read_gates(network.explainer, image)
    except UserError:  # of a network whose stages are unknown; its classes are still worth showing
        return None
    finite = all(np.isfinite(gate.values).all() for gate in (*gates.spatial, *gates.channel, *gates.attention))
    return gates if finite else None


def _show_gates(gates: Gates | None) -> dict[str, Any]:
    """Spatial gates as small pictures in one scale, channel gates as counts in equal bins from 0 to 1."""
    if gates is None:
        return {"spatial": [], "channel": [], "attention": 0}
    low = min((float(gate.values.min()) for gate in gates.spatial), default=0.0)
    high = max((float(gate.values.max()) for gate in gates.spatial), default=1.0)
    return {
        "spatial": [
            {
                "stage": gate.stage,
                "block": gate.index,
                "rows": gate.values.shape[0],
                "columns": gate.values.shape[1],
                "mean": float(gate.values.mean()),
                "picture": tile_picture(gate.values, low, high),
            }
            for gate in gates.spatial
        ],
        "spatial_scale": {
            "low": low,
            "high": high,
            "picture": tile_picture(np.linspace(low, high, 64)[None], low, high),
        },
        "channel": [
            {
                "stage": gate.stage,
                "block": gate.index,
                "channels": len(gate.values),
                "mean": float(gate.values.mean()),
                "counts": np.histogram(gate.values, _BINS, (0, 1))[0].tolist(),
            }
            for gate in gates.channel
        ],
        "attention": len(gates.attention),
    }


def _show_attention(gates: Gates | None, photo: Photo, point: tuple[float, float]) -> dict[str, Any]:
    """Attention of every block from a point: the mean of the heads over the photograph, and each head as a tile."""
    if gates is None or not gates.attention:
        return {"blocks": []}
    try:
        found = gates.attention_from(point)
    except UserError as error:
        return {"blocks": [], "error": str(error)}
    left, top, right, bottom = gates.region
    across, down = photo.small.width / photo.size[0], photo.small.height / photo.size[1]
    region: Region = left * across, top * down, right * across, bottom * down
    blocks = []
    for gate, weights in found:
        mean = weights.mean(0)
        blocks.append(
            {
                "stage": gate.stage,
                "block": gate.index,
                "rows": mean.shape[0],
                "columns": mean.shape[1],
                "max": float(mean.max()),
                "even": 1 / mean.size,
                "picture": attention_picture(photo.small, mean, region),
                "heads": [
                    {"max": float(head.max()), "picture": tile_picture(head, 0, max(float(head.max()), 2e-3))}
                    for head in weights
                ],
            }
        )
    return {"blocks": blocks}
