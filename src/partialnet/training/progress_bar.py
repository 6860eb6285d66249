"""What a person sees while a network trains."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

from .protocols import TrainingBatch
from .task import Task

#: How often a file is told how far the training is.
SECONDS_BETWEEN_LINES = 60.0


class ProgressBar(L.Callback):
    """One bar for the whole run, with images a second and the time left, and a line for each epoch.

    Where the error stream is a file, the bar is a line now and then.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._lines = 0
        self._in_file = not sys.stderr.isatty()
        self._last_line = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar where the run stands."""
        assert isinstance(pl_module, Task)
        batches, progress = pl_module.num_batches, pl_module.progress
        images = min(pl_module.config.batch_size, len(pl_module.data.train) // trainer.world_size) * trainer.world_size
        done = progress.epoch * batches + progress.batch
        self._lines = len(progress.rows)
        self._bar = tqdm(
            total=pl_module.config.epochs * batches * images,
            initial=done * images,
            desc="training",
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0,  # the mean so far: validation takes a part of the time that is left, too
            disable=not trainer.is_global_zero,
            file=io.StringIO() if self._in_file else sys.stderr,
        )
        self._write_line()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Advance a step."""
        assert isinstance(pl_module, Task)
        self._bar.update(len(batch) * trainer.world_size)
        if batch_idx % 10 == 0:
            self._bar.set_postfix_str(f"epoch {pl_module.progress.epoch + 1}/{pl_module.config.epochs}", refresh=False)
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._write_line()

    def _write_line(self) -> None:
        """The bar as it stands, into a file."""
        self._last_line = time.monotonic()
        if self._in_file and not self._bar.disable:
            print(self._bar, file=sys.stderr, flush=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's figures."""
        assert isinstance(pl_module, Task)
        progress = pl_module.progress
        mark = f" ({pl_module.kept_as})"
        for row in progress.rows[self._lines :] if trainer.is_global_zero else ():
            self._bar.write(
                f"epoch {row['epoch']:>{len(str(pl_module.config.epochs))}}/{pl_module.config.epochs}  "
                f"{pl_module.summary(row)}{mark if row['epoch'] == progress.best_epoch else ''}  "
                f"lr {row['lr']:.2e}  {row['images_per_second']:.3g} images/s",
                file=sys.stderr,
            )
        self._lines = len(progress.rows)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that what follows starts on a line of its own."""
        if self._bar is not None:
            self._bar.close()


def say(sentence: str) -> None:
    """A line on the error stream, above a progress bar if there is one."""
    tqdm.write(sentence, file=sys.stderr)
