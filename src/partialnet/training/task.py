"""What every training run does at each step, whatever it learns."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from partialnet.errors import UserError

from .config import RunConfig
from .finite import FiniteCheck
from .optimization import create_optimizer, create_schedule, scaled_lr
from .progress import Progress
from .protocols import Saves, TrainingData
from .sync_batchnorm import convert_sync_batchnorm


class Task(L.LightningModule):
    """One step of a training run, its validation, and what is kept of it; each kind of run derives from this.

    All randomness follows from the seed, the epoch, the batch and the process, so that a run which continues in the
    middle of an epoch needs no generator's state.

    Args:
        network: What is trained.
        config: How to train it.
        data: What to learn from.
        num_batches: Batches of an epoch, in each process.

    Attributes:
        kept_as: What to call the epoch whose checkpoint is kept because of its ``score``.
        unreadable: What is wrong with the items that ``progress.unreadable`` names, in words.
    """

    kept_as: ClassVar[str] = "best"
    unreadable: ClassVar[str] = "cannot be read"

    def __init__(self, network: nn.Module, config: RunConfig, data: TrainingData, num_batches: int) -> None:
        super().__init__()
        self.config = config
        self.data = data
        self.num_batches = num_batches
        self.network = network
        self.progress = Progress(sums=torch.zeros(self.num_sums, dtype=torch.float64))
        self.finite = FiniteCheck()
        self._schedule: Scheduler | None = None
        # in a tuple, as it is not for Lightning's state dict or DDP: the average is no part of the step
        self._ema: tuple[ModelEmaV3 | None] = (None,)

    # -- what a kind of run says of itself --------------------------------------------------------------------------

    @property
    @abstractmethod
    def num_sums(self) -> int:
        """Length of the sums that ``training_loss`` gives."""

    @abstractmethod
    def batches(self, epoch: int, first_batch: int, rank: int, world_size: int) -> Iterable[Any]:
        """The training batches of one epoch for one process, from number ``first_batch`` on."""

    @abstractmethod
    def training_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Loss of a batch, a scalar; and what to add to the epoch's sums, (num_sums,), its last entry the number of
        items.
        """

    @abstractmethod
    def validate(self, after_batch: Callable[[], None]) -> dict[str, float]:
        """Metrics of the held-out items of all processes; unreadable items are noted in ``progress``.

        Args:
            after_batch: To be called after each batch; may end the run.
        """

    @abstractmethod
    def metrics(self, sums: list[float], validation: dict[str, float]) -> dict[str, float]:
        """An epoch's row of ``metrics.csv``, from its sums over all processes and its validation."""

    @abstractmethod
    def score(self, row: dict[str, float]) -> float:
        """How good an epoch is; the checkpoint of the highest one is kept as the best."""

    @abstractmethod
    def summary(self, row: dict[str, float]) -> str:
        """An epoch's metrics in a few words."""

    @abstractmethod
    def checkpoint(self, training: dict[str, Any]) -> Saves | None:
        """What is kept of the network as it is now; None if nothing can be.

        Args:
            training: How it was trained, for the checkpoint.
        """

    def draw(self, folder: Path) -> None:
        """Pictures of how the run stands after an epoch, for the run folder; a kind of run may have none."""

    def trained_parameters(self) -> str:
        """How many parameters are trained, in words."""
        every = sum(parameter.numel() for parameter in self.network.parameters())
        learn = sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)
        few = f"{learn:,}" if learn < 10_000 else f"{learn / 1e6:.2f} M"  # of a last layer alone
        return f"{few} of {every / 1e6:.2f} M parameters are trained"

    # -- the same for all -------------------------------------------------------------------------------------------

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the average of the weights where there is one."""
        return self.network if self._ema[0] is None else self._ema[0].module

    def configure_model(self) -> None:
        """Bring the network into the form that is trained. Lightning calls this once, in every process."""
        config, on_gpu = self.config, self.trainer.strategy.root_device.type == "cuda"
        if config.sync_bn and self.trainer.world_size > 1:
            self.network = convert_sync_batchnorm(self.network, on_gpu)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if config.ema is not None and self._ema[0] is None:
            # the average warms up, or a short run's would be all of its random beginning
            self._ema = (ModelEmaV3(self.network, decay=config.ema, use_warmup=True),)
        if config.compile:
            self.network.compile()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimiser, whose schedule ``optimizer_step`` follows."""
        lr, _ = self.highest_lr(self.trainer.world_size)
        optimizer = self.create_optimizer(lr)
        updates = -(-self.num_batches // self.config.accumulate)
        self._schedule = create_schedule(optimizer, self.config, lr, updates)
        return optimizer

    def highest_lr(self, world_size: int) -> tuple[float, str]:
        """Highest learning rate, and how it came about, in words."""
        return scaled_lr(self.config, world_size, len(self.data.train), self.num_batches)

    def create_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """timm's optimiser for the network; ``lr`` is the highest learning rate."""
        return create_optimizer(self.network, self.config, lr)

    def train_dataloader(self) -> EpochBatches:
        """The batches of whatever epoch is next, from where the run stands in it."""
        return EpochBatches(self)

    def on_fit_start(self) -> None:
        """Begin to train."""
        self.network.train()

    def bring_to_device(self) -> None:
        """Bring to the network's device what Lightning does not know of."""
        if self._ema[0] is not None:
            self._ema[0].to(self.device)
        self.progress.sums = self.progress.sums.to(self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch on the device of the network. Unlike Lightning's own, this does not make the CPU wait for a GPU."""
        return batch.to(device, non_blocking=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the step draws: stochastic depth and dropout."""
        place = (self.config.seed % 2**64, self.progress.epoch, self.progress.batch, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            UserError: It holds one image, and the network normalises over the images.
        """
        try:
            loss, sums = self.training_loss(batch)
        except ValueError as error:  # of BatchNorm, ours and PyTorch's
            if len(batch.indices) > 1:
                raise
            raise UserError(
                f"{self.config.model} cannot learn from batches of one image, as it normalises over the images of a "
                "batch; give batch_size 2 or more for each process."
            ) from error
        self.progress.sums += sums.detach().double()
        self.finite.note_loss(loss, batch.indices)
        return loss * self._weight

    @property
    def _weight(self) -> float:
        """Factor of the loss, for an epoch's last step may have fewer batches than ``accumulate``, by which Lightning
        divides the sum over them.
        """
        left = self.num_batches % self.config.accumulate
        return self.config.accumulate / left if self.progress.batch >= self.num_batches - left else 1.0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Look for NaN and infinity, and clip.

        Raises:
            UserError: The loss or a gradient is not finite; the message names the batch's files.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.clip_grad is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
        # with fp16 the scaler looks for infinite gradients, which are a part of its search for a scale
        scaled = self.trainer.precision == "16-mixed"
        self.finite.note_step(None if scaled else norm, self._place)
        self.check_finite(wait=self.device.type == "cpu")

    def check_finite(self, wait: bool) -> None:
        """Look whether losses and gradients were finite, as ``FiniteCheck.check`` does."""
        self.finite.check(self.data.train, wait, self.trainer.world_size)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One change of the weights at the schedule's learning rate, and of their average."""
        step = self.trainer.global_step
        assert self._schedule is not None
        self._schedule.step_update(step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._ema[0] is not None:
            self._ema[0].update(self.network, step=step + 1)

    @property
    def lr(self) -> float:
        """Learning rate of the last step, of parameters that do not have a multiple of it."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        group = optimizer.param_groups[0]
        return float(group["lr"] / group.get("lr_scale", 1.0))

    @contextlib.contextmanager
    def evaluation_mode(self) -> Iterator[nn.Module]:
        """The network that is validated, in evaluation mode for a while."""
        network = self.evaluated
        training = network.training
        network.eval()
        try:
            yield network
        finally:
            network.train(training)

    def with_bar(self, batches: Iterable[Any]) -> Iterable[Any]:
        """The batches of a validation, with a progress bar of the first process."""
        hidden = None if self.trainer.is_global_zero else True  # None shows it on a terminal, but not in a file
        return tqdm(batches, desc="validating", unit="batch", leave=False, delay=2, disable=hidden)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to Lightning's state what it does not know of."""
        checkpoint["progress"] = self.progress.state_dict()
        if self._ema[0] is not None:
            checkpoint["ema"] = self._ema[0].module.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        self.progress.load_state_dict(checkpoint["progress"])
        if self.global_rank > 0:
            # the state holds the sums of all processes, and they are added up again
            self.progress.sums = torch.zeros_like(self.progress.sums)
        if self._ema[0] is not None:
            self._ema[0].module.load_state_dict(checkpoint["ema"])

    @property
    def _place(self) -> str:
        return f"epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}"


class EpochBatches:
    """The training batches of one epoch after the other: each iteration starts where ``task.progress`` stands.

    Its length is that of a whole epoch, as Lightning counts the batches before an interruption too.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __len__(self) -> int:
        return self.task.num_batches

    def __iter__(self) -> Iterator[Any]:
        # a generator's body runs when the first batch is asked for, and then the place in the run is certain
        task = self.task
        place = {"epoch": task.progress.epoch, "first_batch": task.progress.batch}
        processes = {"rank": task.trainer.global_rank, "world_size": task.trainer.world_size}
        yield from task.batches(**place, **processes)
