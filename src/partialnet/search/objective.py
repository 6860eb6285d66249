"""What a search minimises: the task's loss, weighted by the network's complexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partialnet.arguments import check_number
from partialnet.layers import DPConv


@dataclass(frozen=True)
class Objective:
    """The loss of Eq. 9: L · (κ/ζ)^α + β·ψ.

    κ = Σ c² / θ^``kappa_exponent`` is the complexity to keep to, ζ that of the current gates, α is ``alpha`` while
    ζ > κ and 0 otherwise, and ψ punishes gates out of order.

    Attributes:
        theta: θ, how much cheaper than convolving all channels the network is to be; at least 1.
        count: "grouped" (Eq. 6) or "partial" (Eq. 7); see ``DPConv.complexity``.
        kappa_exponent: 1 as the text of Sec. 3.2, or 2, which gives the ratios of the paper's Figure 7.
        alpha: Exponent where the complexity is too high.
        beta: Weight of ψ.

    Raises:
        ValueError: θ is below 1, or there is no such count or exponent.
    """

    theta: float = 4.0
    count: str = "grouped"
    kappa_exponent: int = 2
    alpha: float = -0.01
    beta: float = 0.9

    def __post_init__(self) -> None:
        check_number("theta", self.theta, least=1)
        check_number("alpha", self.alpha)
        check_number("beta", self.beta)
        if self.count not in ("grouped", "partial"):
            raise ValueError(f"count={self.count!r} must be 'grouped' or 'partial'.")
        if self.kappa_exponent not in (1, 2):
            raise ValueError(f"kappa_exponent={self.kappa_exponent} must be 1 or 2.")

    def kappa(self, layers: Sequence[DPConv]) -> float:
        """κ, the complexity that is allowed for these layers."""
        return sum(layer.channels**2 for layer in layers) / self.theta**self.kappa_exponent

    def zeta(self, layers: Sequence[DPConv]) -> Tensor:
        """ζ, a scalar: the complexity of the layers' current gates, differentiable."""
        return torch.stack([layer.complexity(self.count) for layer in layers]).sum()

    def is_met(self, layers: Sequence[DPConv]) -> bool:
        """Whether the layers' current gates keep to κ."""
        return sum(layer.num_kernels(self.count) for layer in layers) <= self.kappa(layers)

    def order_loss(self, layers: Sequence[DPConv]) -> Tensor:
        """ψ, a scalar: how much the gates are out of order."""
        return torch.stack([layer.order_loss() for layer in layers]).sum()

    def __call__(self, loss: Tensor, layers: Sequence[DPConv]) -> Tensor:
        """The objective, a scalar, for a task's loss."""
        zeta, kappa = self.zeta(layers), self.kappa(layers)
        # chosen where the gates are: to look at the number here would make a GPU wait
        factor = torch.where(zeta > kappa, (kappa / zeta) ** self.alpha, torch.ones_like(zeta))
        return loss * factor + self.beta * self.order_loss(layers)
