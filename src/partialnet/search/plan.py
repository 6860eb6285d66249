"""The result of a search: a split ratio for each layer, and how it was found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from partialnet.checkpoint import Checkpoint
from partialnet.errors import UserError
from partialnet.files import write_json
from partialnet.layers import PATConv
from partialnet.messages import listed
from partialnet.models import PartialNet
from partialnet.models.blocks import MixerSpec

from .network import searchable_layers
from .planned import ARCHITECTURE

FORMAT = "partialnet plan 1"
PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Plan:
    """A network with searched split ratios.

    Attributes:
        model: timm name of the network.
        model_args: Arguments it is built with, the ratios among them.
        split_ratios: Share of channels that is convolved, by layer name, in the network's order.
        theta: θ that the search was given.
        zeta: Complexity of the ratios.
        kappa: Complexity that was allowed.
        params_m: Parameters of the planned network, in millions.
        macs_g: Its multiply–adds for one image, folded, in billions.
        input_size: (C, H, W) of that image.
        search: How it was found: the search's ``config``, ``data``, ``epoch`` and ``val_accuracy``.
    """

    model: str
    model_args: dict[str, Any]
    split_ratios: dict[str, float]
    theta: float
    zeta: float
    kappa: float
    params_m: float
    macs_g: float
    input_size: tuple[int, int, int]
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Name of the network whose ratios were searched; ``model`` may be the entry that builds it with others."""
        return str(self.model_args["network"]) if self.model == ARCHITECTURE else self.model

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that were searched for; empty where the plan does not say."""
        data = self.search.get("data")
        return tuple(data.get("classes", ())) if isinstance(data, Mapping) else ()

    @property
    def satisfied(self) -> bool:
        """Whether the constraint ζ ≤ κ is met."""
        return self.zeta <= self.kappa

    @property
    def mean_ratio(self) -> float:
        """Mean of the split ratios."""
        return sum(self.split_ratios.values()) / len(self.split_ratios)

    @property
    def resolution(self) -> str:
        """Height and width of the image that multiply–adds are counted for, such as "224×224"."""
        return "×".join(map(str, self.input_size[1:]))

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        content = {"format": FORMAT, **asdict(self), "constraint_met": self.satisfied}
        write_json(path, content)


def planned_network(start: Checkpoint, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and arguments with which timm builds a network of the same split ratios.

    Args:
        start: The network that was searched, before its search.
        model: The same network with other split ratios.
    """
    if isinstance(model, PartialNet):
        mixers = [block.mixer for stage in model.stages for block in stage.blocks]  # type: ignore[union-attr]
        ratios = [mixer.split_ratio if isinstance(mixer, PATConv) else 1 / 4 for mixer in mixers]
        arguments = {**start.model_args, "split_ratio": ratios}
        if "mixers" in arguments:
            arguments["mixers"] = [_without_ratio(spec) for spec in arguments["mixers"]]
        return start.architecture, arguments
    found = {name: module.split_ratio for name, module in searchable_layers(model).items()}
    arguments = {"network": start.architecture, **start.model_args}  # of a planned one, its own network comes after
    return ARCHITECTURE, {**arguments, "split_ratios": {**arguments.get("split_ratios", {}), **found}}


def _without_ratio(spec: MixerSpec) -> MixerSpec:
    """A mixer without a ratio of its own, which would take the place of those that were found."""
    return spec if isinstance(spec, str) else {name: value for name, value in spec.items() if name != "split_ratio"}


def load_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: The file is missing, is no plan, or lacks something.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PLAN_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        points = [str(plan.parent) for plan in sorted(path.parent.glob(f"*/{PLAN_NAME}"))]  # of a sweep
        hint = f" Give one of {listed(points)}." if points else ""
        raise UserError(f"There is no plan {str(path)!r}.{hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a plan: {error}.") from None
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise UserError(f"{str(path)!r} is not a plan of split ratios.")
    fields = {name: value for name, value in content.items() if name not in ("format", "constraint_met")}
    try:
        plan = Plan(**{**fields, "input_size": tuple(fields["input_size"])})
        _check(plan)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"Plan {str(path)!r} is not valid: {error}.") from None
    return plan


def _check(plan: Plan) -> None:
    """Refuse values that no search writes.

    Raises:
        ValueError: There is one.
    """
    kinds = {"model": str, "model_args": Mapping, "split_ratios": Mapping, "search": Mapping}
    for name, kind in kinds.items():
        if not isinstance(getattr(plan, name), kind):
            raise ValueError(f"its {name} is {getattr(plan, name)!r}")
    if not plan.split_ratios:
        raise ValueError("it has no split ratios")
    numbers = {name: getattr(plan, name) for name in ("theta", "zeta", "kappa", "params_m", "macs_g")}
    for name, number in numbers.items():
        if not isinstance(number, (int, float)) or not 0 < number < math.inf:
            raise ValueError(f"its {name} is {number!r}, not a positive number")
    if len(plan.input_size) != 3 or not all(isinstance(side, int) and side > 0 for side in plan.input_size):
        raise ValueError(f"its input_size is {list(plan.input_size)}, not channels, height and width")
    for name, ratio in plan.split_ratios.items():
        if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(f"its split ratio of {name} is {ratio!r}, outside (0, 1]")
