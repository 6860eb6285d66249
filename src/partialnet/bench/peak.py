"""The fastest convolution that a machine runs, to which each network's speed is compared."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from partialnet.errors import UserError

from .runners import TorchRunner, check_openvino, exported_runner
from .timing import synchronizer
from .torch_settings import torch_settings


@dataclass(frozen=True)
class Peak:
    """Best speed of a large convolution, in 10⁹ floating-point operations a second (two for each multiply–add).

    Attributes:
        gflops: The speed.
        precision: "fp32" or "bf16".
        runtime: What ran it.
        gflop: Operations of one run in 10⁹.
        convolution: Which convolution was the fastest.
        threads: CPU threads.
    """

    gflops: float
    gflop: float
    precision: str
    runtime: str
    convolution: str
    threads: int


#: kernel, channels, height and width, images: large enough for a CPU to show what it can do
_CONVOLUTIONS = ((1, 512, 28, 4), (3, 256, 28, 1), (3, 512, 14, 1))
_LAYERS = 4
#: the number of images is multiplied by this on a GPU, which a few do not keep busy
_GPU_IMAGES = 128


def measure_peak(
    threads: int = 1, precision: str = "fp32", device: str = "cpu", seconds: float = 1.0
) -> tuple[Peak, Callable[[], object]]:
    """Time large convolutions in OpenVINO where it is installed and has the precision, else (and on GPUs) in PyTorch.

    Args:
        threads: CPU threads.
        precision: "bf16", or anything else for fp32.
        device: "cpu" or "cuda".
        seconds: Time to spend on each of the convolutions.

    Returns:
        The fastest by its shortest time, and what runs it once, to be timed again beside a network.
    """
    precision = "bf16" if precision == "bf16" else "fp32"
    runtime = "openvino" if device == "cpu" and _openvino_computes_in(precision) else "eager"
    found = []
    for kernel, channels, size, batch in _CONVOLUTIONS:
        convolutions = [nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(_LAYERS)]
        batch *= _GPU_IMAGES if device.startswith("cuda") else 1
        images = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
        run = _runner(nn.Sequential(*convolutions).eval(), images, runtime, precision, threads, device)
        gflop = 2 * _LAYERS * batch * size**2 * channels**2 * kernel**2 / 1e9
        with torch_settings(threads):
            gflops = gflop / _shortest(run, seconds, synchronizer(torch.device(device)))
        name = f"{kernel}×{kernel}, {channels} channels, {size}×{size}, batch {batch}"
        found.append((Peak(gflops, gflop, precision, runtime, name, threads), run))
    return max(found, key=lambda pair: pair[0].gflops)


def _openvino_computes_in(precision: str) -> bool:
    if importlib.util.find_spec("openvino") is None:
        return False
    try:
        check_openvino(precision)
    except UserError:  # it would compute in another precision, which is no measure of this one
        return False
    return True


def _runner(
    model: nn.Module, images: torch.Tensor, runtime: str, precision: str, threads: int, device: str
) -> Callable[[], object]:
    if runtime == "eager":
        return TorchRunner(model, images, precision, device, torch.channels_last)
    return exported_runner(model, images, runtime, precision, threads)


def _shortest(run: Callable[[], object], seconds: float, wait: Callable[[], None]) -> float:
    """Seconds of the fastest of several runs."""
    run()
    wait()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - start)
    return best
