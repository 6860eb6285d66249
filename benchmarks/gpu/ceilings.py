"""The device's ceilings, measured: copying memory and multiplying large matrices."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from .runs import set_precision
from .timing import WARM_UP_SECONDS, Run, Stopwatch

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


def measure_ceilings(device: torch.device, precisions: tuple[str, ...], quick: bool = False) -> dict[str, Any]:
    """Copy bandwidth in GB/s, bytes read plus bytes written, and TFLOP/s of a square product in each precision.

    Random numbers throughout, because products of zeros draw less power and run faster.
    """
    copy_mib, side = (8, 256) if quick else (2048, 8192)
    return {
        "copy_mib": copy_mib,
        "copy_gb_per_s": copy_rate(device, copy_mib),
        "gemm_side": side,
        "gemm_tflops": {precision: gemm_rate(device, precision, side) for precision in precisions},
    }


def copy_rate(device: torch.device, mib: int) -> float:
    """GB/s, read and written, of copying ``mib`` MiB within the device's memory."""
    source = torch.randn(mib * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_ms(device, lambda: target.copy_(source)) / 1e6


def gemm_rate(device: torch.device, precision: str, side: int) -> float:
    """TFLOP/s of a product of two square matrices."""
    set_precision(precision)
    left, right = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / _median_ms(device, lambda: torch.mm(left, right, out=out)) / 1e9


def _median_ms(device: torch.device, run: Run) -> float:
    stopwatch = Stopwatch(device)
    end = time.perf_counter() + (WARM_UP_SECONDS if device.type == "cuda" else 0.0)
    stopwatch(run)
    while time.perf_counter() < end:
        stopwatch(run)
    return float(np.median([stopwatch(run) for _ in range(15)]))
