"""Measure a few networks beside one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from partialnet.checkpoint import load
from partialnet.complexity import measure
from partialnet.errors import UserError

from .contestants import Setting, default_peer, open_and_prepare, why_not_run
from .report import Row
from .timing import Timing, interleave, synchronizer
from .torch_settings import torch_settings


def measure_models(
    models: Sequence[str],
    settings: Sequence[Setting] = (Setting(),),
    against: str | None = None,
    seconds: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
    on_failure: Callable[[str], None] | None = None,
) -> list[Row]:
    """Count and time networks in turn, ready for inference, as ``partialnet bench`` does.

    Args:
        models: Whatever ``partialnet.checkpoint.load`` takes: names, run folders, checkpoints.
        settings: Under what to time, one after another; all for images of the same size.
        against: Network that the ratios refer to, which is measured with the others. By default it is timm's FasterNet
            of the first model's size where there is one, otherwise the first model.
        seconds: Time to spend on measuring under each setting, all networks together.
        say: Takes a sentence on what is going on.
        on_failure: Takes a sentence on each network that a runtime cannot run, while the others go on. Without it, the
            first is raised, and what was measured before is lost.

    Returns:
        A row for each setting and network that could be measured. A setting under which the reference cannot be run has
        none.

    Raises:
        UserError: A network does not exist, a runtime does not offer the setting, or see ``on_failure``. Settings are
            checked before anything is timed.

    Example:
        >>> from partialnet.bench.report import as_table
        >>> rows = measure_models(["partialnet_t0", "resnet18"], [Setting("onnxruntime", threads=2)])  # doctest: +SKIP
        >>> print(as_table(rows))  # doctest: +SKIP
    """
    per_setting = measure_each_setting(models, settings, against, seconds, say, on_failure)
    return [row for rows in per_setting for row in rows]


def measure_each_setting(
    models: Sequence[str],
    settings: Sequence[Setting],
    against: str | None,
    seconds: float,
    say: Callable[[str], None],
    on_failure: Callable[[str], None] | None,
) -> Iterator[list[Row]]:
    """The rows of one setting after another, as soon as they are measured; see ``measure_models``."""
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
    for setting in settings:
        say(f"Preparing {len(names)} networks for {setting.runtime} …")
        with torch_settings(setting.threads):
            timings = _time(names, reference, setting, seconds, say, on_failure)
        yield [
            Row(model, reference, setting, inputs[model], timing, sizes[model].params_m, sizes[model].macs_g)
            for model, timing in timings.items()
        ]


def _time(
    names: Sequence[str],
    reference: str,
    setting: Setting,
    seconds: float,
    say: Callable[[str], None],
    on_failure: Callable[[str], None] | None,
) -> dict[str, Timing]:
    """Timings by name of the networks that can be run under one setting; see ``measure_models``."""
    contestants: dict[str, Callable[[], object]] = {}
    for name in sorted(names, key=lambda name: name != reference):  # the reference first, as nothing counts without it
        try:
            contestants[name] = open_and_prepare(name, setting)
        except UserError as error:
            if on_failure is None:
                raise
            on_failure(str(error))  # which holds no memory, as the frames of an error do
            if name == reference and len(names) > 1:
                say(f"Nothing is timed in {setting.runtime}, as all ratios refer to {reference}.")
            if name == reference:
                return {}
    in_turn = {name: contestants[name] for name in names if name in contestants}
    wait = synchronizer(torch.device(setting.device))
    try:
        return interleave(in_turn, reference, seconds, synchronize=wait, description=setting.runtime)
    except Exception as error:  # a GPU's memory may hold each network but not all of them
        failure = f"The networks cannot be timed in {setting.runtime}: {why_not_run(error)}"
        if on_failure is None:
            raise UserError(failure) from error
        on_failure(failure)
        return {}
