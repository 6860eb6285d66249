"""Measure a few networks beside one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from partialnet.checkpoint import load
from partialnet.complexity import measure

from .contestants import Setting, default_peer, open_and_prepare
from .report import Row
from .timing import interleave, synchronizer
from .torch_settings import torch_settings


def measure_models(
    models: Sequence[str],
    settings: Sequence[Setting] = (Setting(),),
    against: str | None = None,
    seconds: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Count and time networks in turn, ready for inference, as ``partialnet bench`` does.

    Args:
        models: Whatever ``partialnet.checkpoint.load`` takes: names, run folders, checkpoints.
        settings: Under what to time, one after another; all for images of the same size.
        against: Network that the ratios refer to, which is measured with the others. By default it is timm's FasterNet
            of the first model's size where there is one, otherwise the first model.
        seconds: Time to spend on measuring under each setting, all networks together.
        say: Takes a sentence on what is going on.

    Returns:
        A row for each setting and network.

    Raises:
        UserError: A network does not exist or cannot be run, or a runtime does not offer the setting.

    Example:
        >>> rows = measure_models(["partialnet_t0", "resnet18"], [Setting("onnxruntime", threads=2)])
        >>> print(as_table(rows))  # from partialnet.bench.report
    """
    for setting in settings:
        setting.check()
    reference = against or default_peer(models[0]) or models[0]
    names = list(dict.fromkeys([*models, reference]))
    sizes, inputs = {}, {}
    for name in names:
        checkpoint = load(name).resized(settings[0].img_size)
        channels, height, width = checkpoint.input_config["input_size"]
        inputs[name] = (channels, height, width)
        sizes[name] = measure(checkpoint.model, inputs[name]).folded
    if len(set(inputs.values())) > 1:
        each = ", ".join(f"{name} {height}×{width}" for name, (_, height, width) in inputs.items())
        say(f"Warning: image sizes differ ({each}); --img-size sets one for all.")
    rows = []
    for setting in settings:
        say(f"Preparing {len(names)} networks for {setting.runtime} …")
        with torch_settings(setting.threads):
            contestants = open_and_prepare(names, setting)
            wait = synchronizer(torch.device(setting.device))
            timings = interleave(contestants, reference, seconds, synchronize=wait, description=setting.runtime)
        rows += [
            Row(model, reference, setting, inputs[model], timing, sizes[model].params_m, sizes[model].macs_g)
            for model, timing in timings.items()
        ]
    return rows
