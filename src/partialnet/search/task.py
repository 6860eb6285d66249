"""One step of a search, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.data.labelled_images import ImageData
from partialnet.layers import DPConv
from partialnet.layers.dp_conv import known_gates
from partialnet.training.batches import Batch
from partialnet.training.classifier import ClassifierTask
from partialnet.training.teacher import Teacher

from .config import SearchConfig
from .network import dynamic_layers, settle
from .objective import Objective
from .plan import planned_network

#: Columns of metrics.csv that hold a layer's split ratio start with this.
RATIO_PREFIX = "split_ratio/"


class SearchTask(ClassifierTask):
    """Training of a classifier whose partial convolutions learn how many channels they convolve (paper, Sec. 3.2).

    Args:
        checkpoint: A network with ``DPConv`` layers, and how it wants its images.
        config: How to search.
        data: What to learn from.
        num_batches: Batches of an epoch, in each process.
        teacher: A network to learn from as well.
    """

    num_sums = 5
    kept_as: ClassVar[str] = "kept"  # not the best: the latest, see score

    config: SearchConfig

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: SearchConfig,
        data: ImageData,
        num_batches: int,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(checkpoint, config, data, num_batches, teacher)
        #: Updates of the gates that began with too high a complexity; a part of the saved state.
        self.updates_above = 0

    @property
    def objective(self) -> Objective:
        """The objective, its α grown by the share of the search's updates that found the complexity too high.

        It grows to −1 at most, where the objective is the loss times ζ/κ.
        """
        objective, growth = self.config.objective, self.config.alpha_growth
        grown = objective.alpha * growth ** (self.updates_above / self.gate_updates)
        return replace(objective, alpha=max(grown, min(objective.alpha, -1.0)) if objective.alpha else 0.0)

    @property
    def gate_updates(self) -> float:
        """How often the gates change in the whole search."""
        updates = -(-self.num_batches // self.config.accumulate)
        return max(1.0, (self.config.epochs - self.config.warmup_epochs) * updates)

    @property
    def warms_up(self) -> bool:
        """Whether the learning rate still warms up, during which the gates stay."""
        return self.progress.epoch + self.progress.batch / self.num_batches < self.config.warmup_epochs

    @property
    def layers(self) -> dict[str, DPConv]:
        """The searched layers by name."""
        return dynamic_layers(self.network)

    def create_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """As for any classifier, but the gates are a group of their own: another learning rate, no decay."""
        optimizer = super().create_optimizer(lr)
        gates = [layer.gates for layer in self.layers.values()]
        taken = {id(gate) for gate in gates}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
        # Adam's steps are about as long as the learning rate, whose mean over a schedule is about half the highest
        factor = self.config.gate_travel / (self.gate_updates * lr / 2) if lr else 0.0
        # timm's schedule multiplies by lr_scale, as for the layers of layer_decay
        optimizer.add_param_group({"params": gates, "weight_decay": 0.0, "lr_scale": factor})
        return optimizer

    def training_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The objective (Eq. 9); and the sums of loss, images that were right, objective and ψ, and the images."""
        layers = list(self.layers.values())
        with known_gates(layers):
            loss, sums = super().training_loss(batch)
        objective = self.objective(loss, layers)
        loss_sum, right, number = sums
        psi = self.objective.order_loss(layers).detach()
        return objective, torch.stack((loss_sum, right, objective.detach() * number, psi * number, number))

    def configure_gradient_clipping(self, *arguments: Any, **options: Any) -> None:
        """While the learning rate warms up, the gates stay; then look at the gradients and clip them as ever."""
        if self.warms_up:
            for layer in self.layers.values():
                layer.gates.grad = None
        super().configure_gradient_clipping(*arguments, **options)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """One change of weights and gates.

        Gates stay within [−1, 1], where they have a gradient. At an epoch's end they are put in order, so that there is
        a network to validate and to keep.
        """
        layers = list(self.layers.values())
        with known_gates(layers):  # which the batch is computed with, before they change
            if not self.warms_up and not self.objective.is_met(layers):
                self.updates_above += 1
            super().optimizer_step(*arguments, **options)
        for layer in layers:
            layer.clamp_gates()
            if self.progress.batch + 1 == self.num_batches:
                layer.put_gates_in_order()

    def validate(self, after_batch: Callable[[], None]) -> dict[str, float]:
        """As for any classifier."""
        with known_gates(self.layers.values()):
            return super().validate(after_batch)

    def metrics(self, sums: list[float], validation: dict[str, float]) -> dict[str, float]:
        """Those of a classifier; the objective; ζ, κ and α; ψ, the mean of the epoch; and each layer's split ratio."""
        loss, right, objective, psi, number = sums
        layers = list(self.layers.values())
        return {
            **super().metrics([loss, right, number], validation),
            "objective": objective / number,
            "zeta": self.objective.zeta(layers).item(),
            "kappa": self.objective.kappa(layers),
            "alpha": self.objective.alpha,
            "psi": psi / number,
            **{f"{RATIO_PREFIX}{name}": layer.split_ratio for name, layer in self.layers.items()},
        }

    def score(self, row: dict[str, float]) -> float:
        """The latest epoch that keeps to the complexity, or where none does, the latest."""
        return row["epoch"] + (1e9 if row["zeta"] <= row["kappa"] else 0)

    def summary(self, row: dict[str, float]) -> str:
        """A classifier's metrics, the complexity, and the mean split ratio."""
        ratios = [value for name, value in row.items() if name.startswith(RATIO_PREFIX)]
        return (
            f"{super().summary(row)}  ζ/κ {row['zeta'] / row['kappa']:.2f}  ψ {row['psi']:.2g}  "
            f"mean ratio {sum(ratios) / len(ratios):.3f}"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how far α has grown, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["updates_above"] = self.updates_above

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        self.updates_above = checkpoint["updates_above"]

    def checkpoint(self, training: dict[str, Any]) -> Checkpoint:
        """The static network with the ratios and weights of an epoch's end, where the gates are in order.

        If the search went without attention, that of the static network is freshly drawn.
        """
        settled = settle(self.network)
        architecture, arguments = planned_network(self.start, settled)
        # a network built from the arguments shows that they suffice
        built = create_checkpoint(architecture, self.start.class_names, **arguments).model
        built.load_state_dict(settled.state_dict(), strict=self.config.attention)
        return replace(self.start, model=built, architecture=architecture, model_args=arguments, training=training)
