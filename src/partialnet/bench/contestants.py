"""Make networks ready to run as fast as each runtime lets them, ours and everybody else's alike."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.fx.experimental import optimization

from partialnet.checkpoint import Checkpoint, load
from partialnet.deploy.export import quiet, write_onnx
from partialnet.deploy.runtimes import require
from partialnet.errors import UserError
from partialnet.fold import fold
from partialnet.layers.inference import Runtime
from partialnet.models import PartialNet

from .timing import synchronizer

RUNTIMES = ("eager", "compile", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """Under what all contestants run.

    Attributes:
        runtime: One of ``RUNTIMES``.
        precision: One of ``PRECISIONS``; bf16 is for eager, compile and OpenVINO.
        threads: CPU threads.
        batch_size: Images at a time.
        img_size: Height and width in pixels; None takes each network's own, 224 for most.
        device: "cpu" or "cuda".
    """

    runtime: str = "eager"
    precision: str = "fp32"
    threads: int = 1
    batch_size: int = 1
    img_size: int | None = None
    device: str = "cpu"

    def check(self) -> None:
        """Raise UserError for a combination that no runtime offers."""
        if self.precision == "bf16" and self.runtime == "onnxruntime":
            raise UserError("onnxruntime has no bf16 convolutions on the CPU; use eager, compile or openvino.")
        if self.device == "cuda" and self.runtime not in ("eager", "compile"):
            raise UserError(f"{self.runtime} is measured on the CPU only; use eager or compile with --device cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("PyTorch sees no CUDA device here.")
        if self.runtime == "openvino":
            require("openvino", "openvino")


def open_contestant(name: str) -> Checkpoint:
    """A network by model name of timm, run folder or checkpoint; ``torchvision:NAME`` for one of torchvision.

    Raises:
        UserError: There is no such network.
    """
    if not name.startswith("torchvision:"):
        return load(name)
    import torchvision

    try:
        if name.removeprefix("torchvision:") not in torchvision.models.list_models(torchvision.models):
            raise ValueError
        model = torchvision.models.get_model(name.removeprefix("torchvision:"))
    except ValueError:
        raise UserError(f"torchvision has no classifier {name.removeprefix('torchvision:')!r}.") from None
    return Checkpoint(model.eval(), name, {}, (), {"input_size": (3, 224, 224)})


def prepare(checkpoint: Checkpoint, setting: Setting) -> Callable[[], object]:
    """What runs the network once on one batch of random images under ``setting``."""
    channels, height, width = checkpoint.input_config["input_size"]
    size = (setting.img_size or height, setting.img_size or width)
    images = torch.randn(setting.batch_size, channels, *size, generator=torch.Generator().manual_seed(0))
    model = folded(checkpoint.model, size, setting.runtime)
    if setting.runtime == "eager":
        return _fastest_layout(model, images, setting)
    if setting.runtime == "compile":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(mode="max-autotune-no-cudagraphs")
            return _torch_run(model, images, setting, torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(model, images.shape, path)
        return (_onnxruntime_run if setting.runtime == "onnxruntime" else _openvino_run)(path, images, setting)


def folded(model: nn.Module, img_size: tuple[int, int], runtime: str) -> nn.Module:
    """A copy for inference: ours folded, others re-parameterised by timm and, for PyTorch, with BatchNorms folded.

    Our layers take the form that suits the runtime; the compiler gets the plain one. ONNX Runtime and OpenVINO fold the
    BatchNorms of every network themselves.
    """
    model = copy.deepcopy(model).eval()
    if isinstance(model, PartialNet):
        forms: dict[str, Runtime] = {"eager": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}
        return fold(model, img_size, forms.get(runtime))
    model = reparameterize_model(fold(model))
    if runtime not in ("eager", "compile"):
        return model
    try:
        return optimization.fuse(model)
    except Exception as error:  # networks whose forward cannot be traced keep their BatchNorms
        _logger.info("BatchNorms of %s are not folded: %s", type(model).__name__, error)
        return model


def _fastest_layout(model: nn.Module, images: Tensor, setting: Setting) -> Callable[[], object]:
    """The faster of contiguous and channels_last, found by a few runs of each."""
    runs = [
        _torch_run(copy.deepcopy(model), images, setting, layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    wait = synchronizer(torch.device(setting.device))
    seconds: list[list[float]] = [[], []]
    for _ in range(6):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            wait()
            times.append(time.perf_counter() - start)
    return runs[int(np.argmin([np.median(times[1:]) for times in seconds]))]


def _torch_run(model: nn.Module, images: Tensor, setting: Setting, layout: torch.memory_format) -> Callable[[], object]:
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    model = model.to(setting.device, dtype, memory_format=layout)  # type: ignore[call-overload]
    images = images.to(setting.device, dtype).contiguous(memory_format=layout)
    torch.set_num_threads(setting.threads)

    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def _onnxruntime_run(path: Path, images: Tensor, setting: Setting) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _openvino_run(path: Path, images: Tensor, setting: Setting) -> Callable[[], object]:
    openvino = require("openvino", "openvino")
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": setting.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if setting.precision == "bf16" else "f32",
    }
    request = openvino.Core().compile_model(path, "CPU", properties).create_infer_request()
    feed = {0: images.numpy()}
    return lambda: request.infer(feed)


def default_peer(name: str) -> str | None:
    """timm's FasterNet of the same size for one of our variants."""
    peer = name.replace("partialnet", "fasternet")
    return peer if peer != name and timm.is_model(peer) else None


def open_and_prepare(names: list[str], setting: Setting) -> dict[str, Callable[[], object]]:
    """All contestants of one setting, by name."""
    contestants = {}
    for name in names:
        checkpoint = open_contestant(name)
        with quiet():
            contestants[name] = prepare(checkpoint, setting)
    return contestants
