"""Whether a run that continues is the one that began: the same settings, data, processes and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from partialnet.errors import UserError

from .config import RunConfig
from .settings import plain, settings_of
from .states import State


def describe_run(
    command: tuple[str, ...], config: RunConfig, data: Mapping[str, Any], processes: int
) -> dict[str, Any]:
    """What a run is, as its states and checkpoints keep it: plain values.

    Args:
        command: Subcommand that trains it.
        config: How it is trained.
        data: What it learns from, as ``RunKind.describe_data`` says.
        processes: Number of training processes.
    """
    return {"command": " ".join(command), "config": plain(asdict(config)), "data": data, "processes": processes}


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig, folder: Path) -> None:
    """Refuse to continue a run with what would make it another one.

    Args:
        before: What it was, as ``describe_run`` says.
        now: What it is to be now, as ``describe_run`` says.
        config: How it is to go on.
        folder: Its folder, for the error.

    Raises:
        UserError: Something differs that may not change; the message says all that does.
    """
    if before.get("command", now["command"]) != now["command"]:
        raise UserError(
            f"{str(folder)!r} holds a run of `partialnet {before['command']}`, which `partialnet {now['command']}` "
            "cannot continue; choose another folder."
        )
    differing = differences(before, config, now["data"])
    if before["processes"] != now["processes"]:
        differing.append(f"the number of processes was {before['processes']} and is {now['processes']}")
    if differing:
        raise UserError(
            f"The run in {str(folder)!r} cannot continue like this: {'; '.join(differing)}. "
            "Continue it as it began, or choose another folder."
        )


def differences(before: Mapping[str, Any], config: RunConfig, data: Mapping[str, Any]) -> list[str]:
    """What makes a run different from what it was, in words.

    Args:
        before: The ``config`` and ``data`` that its states and checkpoints hold.
        config: How it is to go on; settings that may change are passed over.
        data: What it is to learn from now, as ``RunKind.describe_data`` says.
    """
    old, new = before["config"], plain(asdict(config))
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    other_epochs = "epochs" in changed
    for name, setting in settings_of(type(config)).items():
        # whoever asks for other epochs did not ask for what follows from them
        if setting.metadata["may_change"] or (other_epochs and setting.metadata["follows_epochs"]):
            changed.discard(name)
    other_data = [name.replace("_", " ") for name, was in before["data"].items() if was != data.get(name)]
    return [
        *(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in sorted(changed)),
        *(f"{name} of the data differs" for name in other_data),
    ]


def check_same_parameters(state: State, optimizer: Optimizer) -> None:
    """Refuse a state whose optimiser has other groups of parameters than the one that is to go on.

    Raises:
        UserError: It has.
    """
    (before,) = state.content["optimizer_states"]
    if _group_sizes(before) != _group_sizes(optimizer.state_dict()):
        raise UserError(
            f"The state {str(state.path)!r} is of another version of PartialNet, which decayed other parameters; train "
            "anew in another folder."
        )


def _group_sizes(optimizer_state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer_state["param_groups"]]
