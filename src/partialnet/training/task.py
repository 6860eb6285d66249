"""What one training step is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..data.labelled_images import ImageData
from .batches import Batch, train_loader
from .config import TrainConfig
from .finite import FiniteCheck
from .network import classifier_parameters
from .optimization import create_optimizer, create_schedule, scaled_lr
from .progress import Progress
from .sync_batchnorm import convert_sync_batchnorm
from .teacher import Teacher, distillation_loss


class ClassifierTask(L.LightningModule):
    """Training of a classifier, (B, 3, H, W) → (B, classes).

    All randomness follows from the seed, the epoch, the batch and the process, so that a run which continues in the
    middle of an epoch needs no generator's state.

    Args:
        checkpoint: The network, and how it wants its images.
        config: How to train it.
        data: What to learn from.
        num_batches: Batches of an epoch, in each process.
        teacher: A network to learn from as well.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        data: ImageData,
        num_batches: int,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.data = data
        self.num_batches = num_batches
        self.input_config = checkpoint.input_config
        self.network = checkpoint.model
        self.progress = Progress()
        self.finite = FiniteCheck()
        self.callbacks: list[L.Callback] = []
        self._schedule: Scheduler | None = None
        # In tuples, as neither is for Lightning's state dict or DDP: the teacher does not change, the average is no
        # part of the step
        self._teacher = (teacher,)
        self._ema: tuple[ModelEmaV3 | None] = (None,)

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

    def configure_callbacks(self) -> list[L.Callback]:
        """What Lightning is to call besides the task."""
        return self.callbacks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimiser, whose schedule ``optimizer_step`` follows."""
        lr, _ = scaled_lr(self.config, self.trainer.world_size)
        optimizer = create_optimizer(self.network, self.config, lr)
        updates = -(-self.num_batches // self.config.accumulate)
        self._schedule = create_schedule(optimizer, self.config, lr, updates)
        return optimizer

    def train_dataloader(self) -> EpochBatches:
        """The batches of whatever epoch is next, from where the run stands in it."""
        return EpochBatches(self)

    def on_fit_start(self) -> None:
        """Bring to the device what Lightning does not know of."""
        for module in (*self._teacher, *self._ema):
            if module is not None:
                module.to(self.device)
        self.progress.sums = self.progress.sums.to(self.device)
        self.network.train()
        if self.config.freeze_backbone:
            self.network.eval()  # statistics of the frozen layers stay as they are

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what the step draws: stochastic depth and dropout."""
        place = (self.config.seed % 2**64, self.progress.epoch, self.progress.batch, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        config = self.config
        images = batch.images
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.network(images)
        # soft targets are smoothed already
        smoothing = config.label_smoothing if batch.targets.ndim == 1 else 0.0
        loss = F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)
        if (teacher := self._teacher[0]) is not None:
            distance = distillation_loss(logits, teacher(images), config.teacher_temperature)
            loss = (1 - config.teacher_weight) * loss + config.teacher_weight * distance
        with torch.no_grad():
            right = (logits.argmax(1) == batch.labels).sum()
            number = loss.new_full((), len(batch))  # unlike torch.tensor, this does not make a GPU wait
            self.progress.sums += torch.stack((loss.detach() * number, right, number)).double()
        self.finite.note_loss(loss, batch.indices)
        return loss

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
        self.finite.check(self.data.train, wait=self.device.type == "cpu")

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
        """Highest learning rate of the last step, over the groups of parameters."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        return max(float(group["lr"]) for group in optimizer.param_groups)  # type: ignore[union-attr]

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

    def __init__(self, task: ClassifierTask) -> None:
        self.task = task

    def __len__(self) -> int:
        return self.task.num_batches

    def __iter__(self) -> Iterator[Batch]:
        # a generator's body runs when the first batch is asked for, and then the place in the run is certain
        task = self.task
        place = {"epoch": task.progress.epoch, "first_batch": task.progress.batch}
        processes = {"rank": task.trainer.global_rank, "world_size": task.trainer.world_size}
        yield from train_loader(task.data.train, task.config, task.input_config, **place, **processes)


def trained_parameters(task: ClassifierTask) -> str:
    """Number of the parameters that learn, in words."""
    every = sum(p.numel() for p in task.network.parameters())
    learn = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
    head = f" (only {', '.join(sorted(classifier_parameters(task.network)))})" if task.config.freeze_backbone else ""
    return f"{learn / 1e6:.2f} M of {every / 1e6:.2f} M parameters learn{head}."
