"""What happens between the steps of a run: validating, writing checkpoints and states, stopping when asked to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import torch.distributed as dist
from tqdm import tqdm

from ..checkpoint import Checkpoint
from ..errors import RunInterrupted, UserError
from ..files import write_atomically, write_csv
from .batches import Batch, eval_loader
from .progress import EpochMetrics
from .signals import StopSignals
from .states import StateFiles, describe
from .task import ClassifierTask
from .validation import validate

METRICS_NAME = "metrics.csv"
BROKEN_NAME = "broken_images.txt"
LAST_NAME = "last"


class RunKeeper(L.Callback):
    """Keeps a run: ``metrics.csv``, checkpoints of the best and the last epoch, and states to continue from.

    Args:
        folder: The run folder.
        checkpoint: What checkpoints say besides the weights.
        states: Where states go.
        signals: What asks the run to stop.
        run: Configuration and data of the run, for its states.
        resume_command: What continues the run.
        say: Takes a sentence for the user.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        states: StateFiles,
        signals: StopSignals,
        run: dict[str, Any],
        resume_command: str,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.states = states
        self.run = run
        self.resume_command = resume_command
        self.say = say
        self.signals = signals
        self._epoch_start = 0.0
        self._last_save = time.monotonic()
        self._known_broken = 0

    # -- hooks, in the order in which they come ------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the run is to its state."""
        checkpoint["run"] = self.run

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up a run where it stopped."""
        task = _task(pl_module)
        if trainer.is_global_zero and task.progress.rows:
            self._write_metrics(task)  # the file may be ahead of the state, or lost
        if not task.progress.validated:
            # the run stopped between an epoch's training and its validation
            self._finish_epoch(trainer, task, save=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, after Lightning did, and stop if one has come already."""
        self.signals.install()
        stop, _ = self._agree(trainer, _task(pl_module), False)
        if stop:
            self.interrupt("before the first step")
        self._start_clock(_task(pl_module))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start_clock(_task(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """After a change of the weights, save and stop where that is due."""
        task = _task(pl_module)
        progress = task.progress
        progress.batch += 1
        progress.broken.update(task.data.train.name(index) for index in batch.broken)
        last = progress.batch >= task.num_batches
        if progress.batch % task.config.accumulate and not last:
            return  # gradients in the middle of an addition are in no state
        due = time.monotonic() - self._last_save > 60 * task.config.save_minutes
        stop, due = self._agree(trainer, task, due)
        if (stop or due) and not last:  # after the last batch the epoch's end does it
            self._save(trainer, task)
        if stop and not last:
            self.interrupt(f"after batch {progress.batch} of epoch {progress.epoch + 1}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate and write checkpoints."""
        task = _task(pl_module)
        task.progress.seconds += time.perf_counter() - self._epoch_start
        task.progress.lr = task.lr
        task.progress.epoch += 1
        task.progress.batch = 0
        task.progress.validated = False
        stop, _ = self._agree(trainer, task, False)
        if stop:
            self._save(trainer, task)
            self.interrupt(f"after epoch {task.progress.epoch}, before its validation")
        self._finish_epoch(trainer, task, save=True)
        stop, _ = self._agree(trainer, task, False)
        if stop and task.progress.epoch < task.config.epochs:
            self.interrupt(f"after epoch {task.progress.epoch}")

    # -- the end of an epoch -------------------------------------------------------------------------------------------

    def _finish_epoch(self, trainer: L.Trainer, task: ClassifierTask, save: bool) -> None:
        """Validate the epoch that was trained last, and write all there is to write."""
        task.finite.check(task.data.train, wait=True)
        progress = task.progress
        train_loss, train_right, train_images = trainer.strategy.reduce(progress.sums, reduce_op="sum").tolist()
        loss, right, images = self._validate(trainer, task, stoppable=save)
        row = EpochMetrics(
            epoch=progress.epoch,
            train_loss=train_loss / train_images,
            train_accuracy=train_right / train_images,
            val_loss=loss / images,
            val_accuracy=right / images,
            lr=progress.lr,
            seconds=progress.seconds,
            images_per_second=train_images / max(progress.seconds, 1e-9),
        )
        if not math.isfinite(row.val_loss) and trainer.is_global_zero:
            self.say(f"The validation loss of epoch {row.epoch} is {row.val_loss}: answers of the network overflow.")
        progress.rows.append(row)
        progress.validated = True
        progress.sums = torch.zeros_like(progress.sums)
        progress.seconds = 0.0
        if trainer.is_global_zero:
            self._write_metrics(task)
            self._log(trainer, row)
            self._write_checkpoints(task, row)
        if save:
            self._save(trainer, task)

    def _validate(self, trainer: L.Trainer, task: ClassifierTask, stoppable: bool) -> list[float]:
        """Loss times images, images that were right, images: of all processes."""
        if trainer.world_size > 1:
            # each process has BatchNorm statistics of its own; the first one's are those that are kept
            for buffer in task.evaluated.buffers():
                dist.broadcast(buffer, 0)
        batches = eval_loader(
            task.data.validation,
            task.config,
            task.input_config,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

        def stop_if_asked() -> None:
            # the processes have different numbers of batches, so several cannot agree on one to stop after
            if stoppable and self.signals.received and trainer.world_size == 1:
                self._save(trainer, task)
                self.interrupt(f"in the validation of epoch {task.progress.epoch}")

        quiet = None if trainer.is_global_zero else True  # None shows it on a terminal, but not in a file
        bar = tqdm(batches, desc="validating", unit="batch", leave=False, delay=2, disable=quiet)
        with task.evaluation_mode() as network, trainer.precision_plugin.forward_context():
            device = trainer.strategy.root_device
            result = validate(network, bar, device, task.config.channels_last, stop_if_asked)
        task.progress.broken.update(task.data.validation.name(index) for index in result.broken)
        self._agree(trainer, task, False)
        sums = trainer.strategy.reduce(result.sums, reduce_op="sum").tolist()
        if not sums[2]:
            raise UserError("None of the validation images can be read.")
        return sums

    def _write_metrics(self, task: ClassifierTask) -> None:
        rows = [_rounded(asdict(row)) for row in task.progress.rows]
        self._try(METRICS_NAME, lambda: write_csv(self.folder / METRICS_NAME, rows, list(rows[0])))

    def _log(self, trainer: L.Trainer, row: EpochMetrics) -> None:
        values = asdict(row)
        epoch = values.pop("epoch")
        for logger in trainer.loggers:
            self._try(type(logger).__name__, lambda logger=logger: logger.log_metrics(values, step=epoch))  # type: ignore[misc]

    def _write_checkpoints(self, task: ClassifierTask, row: EpochMetrics) -> None:
        progress = task.progress
        training = {**self.run, "epoch": row.epoch, "val_accuracy": row.val_accuracy}
        checkpoint = replace(self.checkpoint, model=task.evaluated, training=training)
        self._try("checkpoint of the last epoch", lambda: checkpoint.save(self.folder / LAST_NAME))
        if row.val_accuracy > progress.best_accuracy and self._try(
            "checkpoint of the best epoch", lambda: checkpoint.save(self.folder)
        ):
            progress.best_epoch, progress.best_accuracy = row.epoch, row.val_accuracy

    def _try(self, what: str, write: Callable[[], Any]) -> bool:
        """Write what the next epoch writes again; a full disk is told but does not stop the training."""
        try:
            self.states.write_with_room(write)
        except (OSError, UserError) as error:
            self.say(
                f"The {what} cannot be written ({describe(error)}); what was there before stays, and training goes on."
            )
            return False
        return True

    # -- stopping and saving -------------------------------------------------------------------------------------------

    def _agree(self, trainer: L.Trainer, task: ClassifierTask, due: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether a state is due; look at the broken images, too.

        Raises:
            UserError: More than the allowed share of the images is broken.
        """
        progress = task.progress
        stop, broken = self.signals.received is not None, len(progress.broken)
        if trainer.world_size > 1:
            flags = torch.tensor([stop, due, broken], dtype=torch.float64, device=trainer.strategy.root_device)
            dist.all_reduce(flags)
            stop, due, broken = bool(flags[0]), bool(flags[1]), int(flags[2])
        if broken > self._known_broken:
            self._known_broken = broken
            self._report_broken(trainer, task)
        return stop, due

    def _report_broken(self, trainer: L.Trainer, task: ClassifierTask) -> None:
        """List the broken images of all processes; stop if they are too many."""
        names = _gathered(trainer, task.progress.broken)
        total = len(task.data.train) + len(task.data.validation)
        path = self.folder / BROKEN_NAME
        if trainer.is_global_zero:
            text = "".join(f"{name}\n" for name in sorted(names))
            self._try(BROKEN_NAME, lambda: write_atomically(path, text.encode()))
        if len(names) > task.config.max_broken_share * total:
            raise UserError(
                f"{len(names)} of {total} images cannot be read, more than max_broken_share="
                f"{task.config.max_broken_share:g} allows; they are listed in {str(path)!r}."
            )

    def _save(self, trainer: L.Trainer, task: ClassifierTask) -> None:
        """Write a state of the run; all processes must come here together."""
        task.finite.check(task.data.train, wait=True)
        progress = task.progress
        if trainer.world_size > 1:
            # the first process writes what all have counted
            sums = trainer.strategy.reduce(progress.sums.clone(), reduce_op="sum")
            progress.sums = sums if trainer.is_global_zero else torch.zeros_like(sums)
            progress.broken = _gathered(trainer, progress.broken)
            self._known_broken = len(progress.broken) * trainer.world_size
        if progress.batch:
            now = time.perf_counter()
            progress.seconds += now - self._epoch_start
            self._epoch_start = now
        trainer.save_checkpoint(self.states.next_path(progress.epoch, progress.batch))
        self._last_save = time.monotonic()

    def interrupt(self, where: str) -> NoReturn:
        """Stop the run."""
        name = self.signals.received or "a signal to another process"
        raise RunInterrupted(f"Stopped by {name} {where}. Continue with: {self.resume_command}")

    def _start_clock(self, task: ClassifierTask) -> None:
        self._epoch_start = time.perf_counter()


def _task(module: L.LightningModule) -> ClassifierTask:
    assert isinstance(module, ClassifierTask)
    return module


def _gathered(trainer: L.Trainer, names: set[str]) -> set[str]:
    """The names of all processes."""
    if trainer.world_size == 1:
        return names
    parts: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(parts, names)
    return set().union(*parts)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
