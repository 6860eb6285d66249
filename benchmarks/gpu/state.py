"""What is known of a GPU besides its name: what it is, and how fast and warm it ran."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import Any

import torch

#: What nvidia-smi calls a few facts that NVIDIA's drivers of all ages know.
_FACTS = {"driver": "driver_version", "max_sm_clock_mhz": "clocks.max.sm", "power_limit_w": "power.limit"}


def device_facts(device: torch.device) -> dict[str, Any]:
    """What the device is, for the result file."""
    if device.type != "cuda":
        return {"device": device.type, "gpu": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": device.type,
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **_facts_of_the_driver(str(getattr(properties, "uuid", ""))),
    }


def _facts_of_the_driver(uuid: str) -> dict[str, str]:
    """What nvidia-smi says; nothing where it is absent or does not answer."""
    which = [f"--id={uuid if uuid.startswith('GPU-') else f'GPU-{uuid}'}"] if uuid else []
    command = ["nvidia-smi", f"--query-gpu={','.join(_FACTS.values())}", "--format=csv,noheader,nounits", *which]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_FACTS, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=False))


def device_state(device: torch.device) -> dict[str, float]:
    """Clock, temperature and power just after a measurement; only what NVIDIA's library for Python (pynvml) tells."""
    state: dict[str, float] = {}
    if device.type == "cuda":
        with suppress(Exception):  # the library is absent, or the driver does not tell
            state["sm_clock_mhz"] = torch.cuda.clock_rate(device)
            state["temperature_c"] = torch.cuda.temperature(device)
            state["power_w"] = torch.cuda.power_draw(device) / 1e3
    return state
