"""How fast networks are before and after folding, measured in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from partialnet.bench.contestants import Setting, eager_forms, fastest_form
from partialnet.bench.timing import interleave, synchronizer
from partialnet.bench.torch_settings import torch_settings
from partialnet.checkpoint import Checkpoint
from partialnet.folding import fold


def measure_folding(
    checkpoints: Mapping[str, Checkpoint], device: torch.device, seconds: float = 4.0
) -> dict[str, Any]:
    """Time of one image through every network unfolded and folded, A B A B …, in eager PyTorch and float32.

    Each runs in the memory layout that is faster for it, folded on a GPU in the faster of two forms. A network that is
    folded already has that form only.

    Args:
        checkpoints: Networks by name, one at least; they stay as they are.
        device: Where to run.
        seconds: Time to spend, all together.

    Returns:
        ``rows`` with the ``network``, its ``form`` and the fields of ``bench.timing.Timing``, whose ratios are to
        the first row; the ``threads``, ``device`` and ``sizes`` (H, W) that they hold for.

    Raises:
        UserError: Times are not measured on such a device.
    """
    wait = synchronizer(device)
    threads = torch.get_num_threads()
    contestants: dict[tuple[str, str], Callable[[], object]] = {}
    sizes = {}
    with torch_settings(threads):
        for name, checkpoint in checkpoints.items():
            channels, height, width = checkpoint.input_config["input_size"]
            setting = Setting(threads=threads, device=str(device))
            image = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
            sizes[name] = [height, width]
            if not checkpoint.folded:
                contestants[name, "unfolded"] = fastest_form([checkpoint.model], image, setting)
            folded = [fold(checkpoint.model, (height, width), form) for form in eager_forms(setting)]
            contestants[name, "folded"] = fastest_form(folded, image, setting)
        keys = {f"{name}\n{form}": (name, form) for name, form in contestants}
        timings = interleave(
            {key: contestants[pair] for key, pair in keys.items()},
            next(iter(keys)),
            seconds,
            synchronize=wait,
            progress=False,
        )
    rows = [{"network": keys[key][0], "form": keys[key][1], **vars(timing)} for key, timing in timings.items()]
    return {"rows": rows, "threads": threads, "device": str(device), "sizes": sizes}
