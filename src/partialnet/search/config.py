"""Settings of a search: those of training, and the objective's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from partialnet.errors import UserError
from partialnet.training.config import TrainConfig
from partialnet.training.settings import setting

from .objective import Objective

_search = partial(setting, group="Search")


@dataclass(frozen=True)
class SearchConfig(TrainConfig):
    """Search of split ratios. The gates start to learn when the learning rate's warm-up, ``warmup_epochs``, is over."""

    theta: float = _search(4.0, "how much cheaper the network should be than with all channels convolved (θ)", least=1)
    complexity: str = _search(
        "grouped", "kernels to count: of all groups (Eq. 6) or of the partial convolution alone (Eq. 7)",
        choices=("grouped", "partial"),
    )  # fmt: skip
    kappa_exponent: int = _search(2, "power of θ that the complexity is divided by: 1 or 2", least=1, most=2)
    alpha: float = _search(-0.01, "exponent of the complexity's factor while it is too high (α)", most=0)
    alpha_growth: float = _search(
        1000.0,
        "factor by which α grows, to -1 at most, while the complexity stays too high; 1 as in the paper",
        least=1,
    )
    beta: float = _search(0.9, "weight of gates that are out of order (β)", least=0)
    gate_travel: float = _search(
        10.0, "about how far a gate can move in the whole search, which sets its learning rate; from 1 to -1 is 2",
        least=0,
    )  # fmt: skip
    scope: str | None = _search(
        None, "layers to search: a stage such as stage3, or a regular expression that their names match"
    )
    attention: bool = _search(True, "attend over the channels that are not convolved while searching")

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return Objective(self.theta, self.complexity, self.kappa_exponent, self.alpha, self.beta)

    @property
    def layer_pattern(self) -> str | None:
        """``scope`` as a regular expression; stages count from 1, their names in the network from 0."""
        stage = re.fullmatch(r"stage(\d+)", self.scope or "")
        return rf"^stages\.{int(stage[1]) - 1}\." if stage else self.scope

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UserError: Something does not fit.
        """
        super().check()
        if self.ema is not None:
            raise UserError("ema averages weights, but an average of gates is not a gate; search without it.")
        if self.freeze_backbone:
            raise UserError("freeze_backbone would freeze the gates; search without it.")
        try:
            re.compile(self.scope or "")
        except re.error as error:
            raise UserError(f"scope is {self.scope!r}, which is not a regular expression: {error}.") from None
