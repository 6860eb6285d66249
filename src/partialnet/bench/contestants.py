"""Prepare networks, ours and others alike, to run as fast as each runtime lets them."""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from partialnet.checkpoint import Checkpoint, load
from partialnet.compilation import why_not_compiled
from partialnet.deploy.library_messages import quiet
from partialnet.devices import find_device
from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.folding import fold
from partialnet.folding.batch_norms import is_batch_norm
from partialnet.layers.inference import Runtime
from partialnet.messages import first_line

from .runners import TorchRunner, check_openvino, exported_runner
from .timing import synchronizer

#: Runtimes, and what tables and pictures call them.
RUNTIMES = {
    "eager": "eager PyTorch",
    "compile": "torch.compile",
    "onnxruntime": "onnxruntime",
    "openvino": "OpenVINO",
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
#: Which form of the layers suits a runtime on the CPU.
_FORMS: dict[str, Runtime] = {
    "eager": "torch",
    "compile": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}


@dataclass(frozen=True)
class Setting:
    """The conditions under which all contestants run.

    Attributes:
        runtime: One of ``RUNTIMES``.
        precision: One of ``PRECISIONS``; int8 is calibrated on noise, which is enough for its speed.
        threads: CPU threads.
        batch_size: Images at a time.
        img_size: Height and width in pixels; None takes each network's own, 224 for most.
        device: "cpu", "cuda", "cuda:1", …
    """

    runtime: str = "eager"
    precision: str = "fp32"
    threads: int = 1
    batch_size: int = 1
    img_size: int | None = None
    device: str = "cpu"

    @property
    def on_cpu(self) -> bool:
        """Whether it is the CPU that computes, not a GPU, whichever of several."""
        return self.device.partition(":")[0] == "cpu"

    def check(self) -> None:
        """Raise UserError for a combination that the runtime does not offer, or does not on this machine."""
        if self.precision == "bf16" and self.runtime == "onnxruntime":
            raise UserError("onnxruntime has no bf16 convolutions on the CPU; use eager, compile or openvino.")
        if self.precision == "int8" and self.runtime in ("eager", "compile"):
            raise UserError(
                f"int8 is measured in onnxruntime and openvino, whose quantisers make it, not in {self.runtime}."
            )
        if self.precision == "fp16" and self.runtime in ("eager", "compile") and self.on_cpu:
            raise UserError("PyTorch's fp16 is made for GPUs; on the CPU use bf16, or fp16 in onnxruntime or openvino.")
        if not self.on_cpu and self.runtime not in ("eager", "compile"):
            raise UserError(f"{self.runtime} is measured on the CPU only; use eager or compile on {self.device}.")
        synchronizer(find_device(self.device))
        if self.runtime == "openvino":
            check_openvino(self.precision)
            if self.precision == "int8":
                require("nncf", "quantize")


def prepare(checkpoint: Checkpoint, setting: Setting) -> Callable[[], object]:
    """What runs a copy of the network once on one batch of random images under ``setting``.

    Both this and what it returns are to be called within ``torch_settings``.
    """
    channels, height, width = checkpoint.input_config["input_size"]
    size = (setting.img_size or height, setting.img_size or width)
    images = torch.randn(setting.batch_size, channels, *size, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(checkpoint.model).eval()
    _shift_fresh_norms(model)
    if setting.runtime == "eager":
        return fastest_form([fold(model, size, form) for form in eager_forms(setting)], images, setting)
    model = fold(model, size, _FORMS[setting.runtime] if setting.on_cpu else None)
    if setting.runtime == "compile":
        layout = _layout_to_compile(model, images, setting)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
            return TorchRunner(model, images, setting.precision, setting.device, layout)
    return exported_runner(model, images, setting.runtime, setting.precision, setting.threads)


def eager_forms(setting: Setting) -> tuple[Runtime | None, ...]:
    """The forms in which networks may run in eager PyTorch; where there are two, the faster one counts.

    On a GPU, matrix products save the kernels that add a convolution's bias, but each merging of patches costs a copy.
    """
    return (_FORMS["eager"],) if setting.on_cpu else (None, _FORMS["eager"])


def _shift_fresh_norms(model: nn.Module) -> None:
    """Give BatchNorms that have seen no images means other than 0, in place.

    They would fold to biases of 0, which exporters leave out, and a network would be faster than when it is trained.
    """
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        mean: Any = getattr(norm, "running_mean", None)
        if is_batch_norm(norm) and not mean.any():
            mean.copy_(0.1 * torch.randn(mean.shape, generator=generator))


def _layout_to_compile(model: nn.Module, images: Tensor, setting: Setting) -> torch.memory_format:
    """The layout to compile a network in: on a GPU the one in which it is faster uncompiled.

    On the CPU PyTorch's compiler lays convolutions out in channels_last whatever it is given (``decide_layout_opt`` in
    torch/_inductor/graph.py), so that other tensors would only have to be converted.
    """
    return torch.channels_last if setting.on_cpu else fastest_form([model], images, setting).layout


def fastest_form(models: Sequence[nn.Module], images: Tensor, setting: Setting) -> TorchRunner:
    """What runs a copy of the fastest of a network's forms, each in contiguous and in channels_last memory.

    They take turns, and the best of a few runs counts, which other programs disturb least. To be called within
    ``torch_settings``.

    Args:
        models: The forms, in evaluation mode; they stay as they are.
        images: A batch that all of them take, (B, C, H, W).
        setting: Precision and device.
    """
    runs = [
        TorchRunner(copy.deepcopy(model), images, setting.precision, setting.device, layout)
        for model in models
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    wait = synchronizer(torch.device(setting.device))
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(6):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            wait()
            times.append(time.perf_counter() - start)
    return runs[int(np.argmin([min(times[1:]) for times in seconds]))]


def default_peer(name: str) -> str | None:
    """timm's FasterNet of the same size for one of our variants."""
    peer = name.replace("partialnet", "fasternet")
    return peer if peer != name and timm.is_model(peer) else None


def open_and_prepare(name: str, setting: Setting) -> Callable[[], object]:
    """What runs the network of a name once under ``setting``; see ``prepare_and_run``.

    Raises:
        UserError: There is no such network, or it cannot be run in the runtime.
    """
    return prepare_and_run(name, load(name), setting)


def prepare_and_run(name: str, checkpoint: Checkpoint, setting: Setting) -> Callable[[], object]:
    """What runs a network once under ``setting``, after a first run; see ``prepare``.

    Args:
        name: What errors call it.
        checkpoint: The network.
        setting: The conditions.

    Raises:
        UserError: It cannot be run in the runtime.
    """
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # compilers print tables of all kernels they have tried
            run = prepare(checkpoint, setting)
            run()  # compilers begin here
    except UserError:
        raise
    except Exception as error:  # whatever a runtime makes of a network that it cannot run
        raise UserError(f"{name} cannot be run in {setting.runtime}: {why_not_run(error)}") from error
    return run


def why_not_run(error: Exception) -> str:
    """Why a runtime could not run what it was given, in a few words."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU is out of memory; use smaller images, or fewer at a time (a smaller batch size)."
    if isinstance(error, BackendCompilerFailed):
        return why_not_compiled(error)
    return first_line(error)
