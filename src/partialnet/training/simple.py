"""Training of a classifier, on Lightning."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.digits import Split
from ..files import write_csv


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr: Highest learning rate of AdamW; reached after a linear warm-up, then lowered along a cosine to 0.
        weight_decay: Decay of matrices and kernels; biases and norms do not decay.
        warmup: Share of the steps that warm up.
        label_smoothing: Probability spread over the wrong classes.
        seed: Seed of initialisation, order and augmentation.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.02
    warmup: float = 0.15
    label_smoothing: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class EpochMetrics:
    """One row of ``metrics.csv``; losses are cross-entropies, accuracies shares in [0, 1]."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    lr: float
    seconds: float


class ClassifierTask(L.LightningModule):
    """Cross-entropy training of a classifier, (B, C, H, W) → (B, classes)."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe

    def forward(self, images: Tensor) -> Tensor:
        """Class logits, (B, classes)."""
        return self.model(images.to(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self._log_metrics("train", loss, logits, labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of one held-out batch."""
        images, labels = batch
        logits = self(images)
        self._log_metrics("test", F.cross_entropy(logits, labels), logits, labels)

    def _log_metrics(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        accuracy = (logits.argmax(1) == labels).float().mean()
        values = {f"{split}_loss": loss, f"{split}_accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up and a cosine decay, stepped every batch."""
        optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=self.recipe.lr, weight_decay=self.recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.recipe.lr,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=self.recipe.warmup,
            anneal_strategy="cos",
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class MetricsFile(L.Callback):
    """Keep ``metrics.csv`` up to date, a row an epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[EpochMetrics] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file anew with the finished epoch."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = EpochMetrics(
            epoch=trainer.current_epoch + 1,
            train_loss=logged["train_loss"],
            train_accuracy=logged["train_accuracy"],
            test_loss=logged["test_loss"],
            test_accuracy=logged["test_accuracy"],
            lr=float(trainer.optimizers[0].param_groups[0]["lr"]),
            seconds=time.perf_counter() - self._start,
        )
        self.rows.append(row)
        rows = (
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
            for row in self.rows
        )
        write_csv(self.path, rows, list(asdict(row)))


class ProgressBar(L.Callback):
    """One bar for the whole training: steps, time left, last loss and test accuracy."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        total = int(trainer.estimated_stepping_batches)
        self._bar = tqdm(total=total, desc="training", unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance a step."""
        self._bar.update()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the epoch's figures."""
        metrics = trainer.callback_metrics
        self._bar.set_postfix_str(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, loss {float(metrics['train_loss']):.3f}, "
            f"test accuracy {float(metrics['test_accuracy']):.1%}"
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.close()


def train(model: nn.Module, split: Split, recipe: Recipe, metrics_path: Path) -> list[EpochMetrics]:
    """Train ``model`` in place on the CPU and leave it in evaluation mode.

    Returns:
        The rows written to ``metrics_path``, one for each epoch.
    """
    model.to(memory_format=torch.channels_last)
    metrics = MetricsFile(metrics_path)
    with _quiet_lightning():
        L.seed_everything(recipe.seed, verbose=False)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=recipe.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            callbacks=[metrics, ProgressBar()],
        )
        # one thread: a second gains little on small images, and costs a lot where the cores are shared
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            trainer.fit(
                ClassifierTask(model, recipe),
                DataLoader(split.train, recipe.batch_size, shuffle=True, drop_last=True),
                DataLoader(split.test, recipe.batch_size),
            )
        except SystemExit:
            # Lightning turns an interrupt into exit code 1; our callers are to see the interrupt
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            torch.set_num_threads(threads)
    model.eval()
    return metrics.rows


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's start-up notes, which are about devices and workers, off a user's screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
