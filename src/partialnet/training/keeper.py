"""What happens between the steps of a run: validating, writing checkpoints and states, stopping on request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import torch.distributed as dist

from partialnet.errors import RunInterrupted, UserError
from partialnet.files import as_bytes, write_atomically, write_csv
from partialnet.messages import reason_of

from .agreement import Agreement, gathered
from .protocols import TrainingBatch
from .run_folder import LAST_NAME, METRICS_NAME, UNREADABLE_NAME
from .signals import StopSignals
from .states import StateFiles
from .task import Task

#: Least time between two epochs' pictures, so that drawing takes a small part of short epochs.
SECONDS_BETWEEN_PICTURES = 60.0


class RunKeeper(L.Callback):
    """Keeps a run: ``metrics.csv``, checkpoints of the best and the last epoch, and states to continue from.

    Args:
        folder: The run folder.
        states: Where states go.
        signals: What asks the run to stop.
        run: Configuration and data of the run, for its states.
        resume_command: Subcommand, arguments and options that continue the run.
        say: Takes a sentence for the user.
    """

    def __init__(
        self,
        folder: Path,
        states: StateFiles,
        signals: StopSignals,
        run: dict[str, Any],
        resume_command: tuple[str, ...],
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.states = states
        self.run = run
        self.resume_command = resume_command
        self.say = say
        self.signals = signals
        self._epoch_start = 0.0
        self._last_save = self._last_pictures = time.monotonic()
        self._known_unreadable = 0
        self._agreement = Agreement()

    # -- hooks, in the order in which they come ------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the run is to its state."""
        checkpoint["run"] = self.run

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up a run where it stopped."""
        task = _task(pl_module)
        task.bring_to_device()  # callbacks come before the module's own hook, and an epoch may be left to finish
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
        self._epoch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """After a change of the weights, save and stop where that is due."""
        task = _task(pl_module)
        progress = task.progress
        progress.batch += 1
        progress.unreadable.update(task.data.train.name(index) for index in batch.unreadable)
        last = progress.batch >= task.num_batches
        if progress.batch % task.config.accumulate and not last:
            return  # gradients in the middle of an addition are in no state
        if trainer.world_size > 1 and not self._agreement.is_due():
            return
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

    def _finish_epoch(self, trainer: L.Trainer, task: Task, save: bool) -> None:
        """Validate the epoch that was trained last, and write all there is to write."""
        task.check_finite(wait=True)
        progress = task.progress
        sums = trainer.strategy.reduce(progress.sums, reduce_op="sum").tolist()
        metrics = task.metrics(sums, self._validate(trainer, task, stoppable=save))
        row = {
            "epoch": progress.epoch,
            **metrics,
            "lr": progress.lr,
            "seconds": progress.seconds,
            "images_per_second": sums[-1] / max(progress.seconds, 1e-9),
        }
        for name, value in metrics.items():
            if not math.isfinite(value) and trainer.is_global_zero:
                self.say(f"{name} of epoch {progress.epoch} is {value}: the outputs of the network overflow.")
        progress.rows.append(row)
        progress.validated = True
        progress.sums = torch.zeros_like(progress.sums)
        progress.seconds = 0.0
        if trainer.is_global_zero:
            self._write_metrics(task)
            self._log(trainer, row)
            self._write_checkpoints(task, row, metrics)
            if time.monotonic() - self._last_pictures > SECONDS_BETWEEN_PICTURES:
                self._try("pictures", lambda: task.draw(self.folder))
                self._last_pictures = time.monotonic()
        if save:
            self._save(trainer, task)

    def _validate(self, trainer: L.Trainer, task: Task, stoppable: bool) -> dict[str, float]:
        """The task's metrics of the held-out items."""
        if trainer.world_size > 1:
            # each process has BatchNorm statistics of its own; the first one's are those that are kept
            for buffer in task.evaluated.buffers():
                dist.broadcast(buffer, 0)

        def stop_if_asked() -> None:
            # the processes have different numbers of batches, so several cannot agree on one to stop after
            if stoppable and self.signals.received and trainer.world_size == 1:
                self._save(trainer, task)
                self.interrupt(f"in the validation of epoch {task.progress.epoch}")

        with trainer.precision_plugin.forward_context():
            metrics = task.validate(stop_if_asked)
        self._agree(trainer, task, False)
        return metrics

    def _write_metrics(self, task: Task) -> None:
        rows = [_rounded(row) for row in task.progress.rows]
        self._try(METRICS_NAME, lambda: write_csv(self.folder / METRICS_NAME, rows, list(rows[0])))

    def _log(self, trainer: L.Trainer, row: dict[str, float]) -> None:
        values = {name: value for name, value in row.items() if name != "epoch"}
        epoch = int(row["epoch"])
        for logger in trainer.loggers:
            try:
                logger.log_metrics(values, step=epoch)
            except Exception as error:  # of the disk, the service, its library or the network
                cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
                reason = " ".join(reason_of(cause).split())
                self.say(f"{type(logger).__name__} cannot log epoch {epoch} ({reason}); training goes on.")

    def _write_checkpoints(self, task: Task, row: dict[str, float], metrics: dict[str, float]) -> None:
        progress = task.progress
        checkpoint = task.checkpoint({**self.run, "epoch": progress.epoch, **metrics})
        if checkpoint is None:
            return
        self._try("checkpoint of the last epoch", lambda: checkpoint.save(self.folder / LAST_NAME))
        score = task.score(row)
        if score > progress.best_score and self._try(
            "checkpoint of the best epoch", lambda: checkpoint.save(self.folder)
        ):
            progress.best_epoch, progress.best_score = progress.epoch, score

    def _try(self, what: str, write: Callable[[], object]) -> bool:
        """Write what the next epoch writes again; a full disk is told but does not stop the training."""
        try:
            self.states.write_with_room(write)
        except (OSError, UserError) as error:
            self.say(
                f"The {what} cannot be written ({reason_of(error)}); what was there before stays, and training goes on."
            )
            return False
        return True

    # -- stopping and saving -------------------------------------------------------------------------------------------

    def _agree(self, trainer: L.Trainer, task: Task, due: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether a state is due; look at the unreadable images, too.

        Raises:
            UserError: More than the allowed share of the images is unreadable.
        """
        progress = task.progress
        stop, unreadable = self.signals.received is not None, len(progress.unreadable)
        if trainer.world_size > 1:
            any_stop, any_due, all_unreadable = self._agreement.total(
                [stop, due, unreadable], trainer.strategy.root_device
            )
            stop, due, unreadable = any_stop > 0, any_due > 0, int(all_unreadable)
        if unreadable > self._known_unreadable:
            self._known_unreadable = unreadable
            self._report_unreadable(trainer, task)
        return stop, due

    def _report_unreadable(self, trainer: L.Trainer, task: Task) -> None:
        """List the unreadable images of all processes; stop if they are too many."""
        names = set().union(*gathered(task.progress.unreadable))
        total = len(task.data.train) + len(task.data.validation)
        path = self.folder / UNREADABLE_NAME
        if trainer.is_global_zero:
            text = as_bytes("".join(f"{name}\n" for name in sorted(names)))
            self._try(UNREADABLE_NAME, lambda: write_atomically(path, text))
        if len(names) > task.config.max_unreadable_share * total:
            raise UserError(
                f"{len(names)} of {total} images {task.unreadable}, more than max_unreadable_share="
                f"{task.config.max_unreadable_share:g} allows; they are listed in {str(path)!r}."
            )

    def _save(self, trainer: L.Trainer, task: Task) -> None:
        """Write a state of the run; all processes must come here together."""
        task.check_finite(wait=True)
        progress = task.progress
        if trainer.world_size > 1:
            # the first process writes what all have counted
            sums = trainer.strategy.reduce(progress.sums.clone(), reduce_op="sum")
            progress.sums = sums if trainer.is_global_zero else torch.zeros_like(sums)
            progress.unreadable = set().union(*gathered(progress.unreadable))
            self._known_unreadable = len(progress.unreadable) * trainer.world_size
        if progress.batch:
            now = time.perf_counter()
            progress.seconds += now - self._epoch_start
            self._epoch_start = now
        trainer.save_checkpoint(self.states.next_path(progress.epoch, progress.batch))
        self._last_save = time.monotonic()

    def interrupt(self, where: str) -> NoReturn:
        """Stop the run.

        Raises:
            RunInterrupted: Always.
        """
        name = self.signals.received or "a signal to another process"
        raise RunInterrupted(f"Stopped by {name} {where}.", self.resume_command)


def _task(module: L.LightningModule) -> Task:
    assert isinstance(module, Task)
    return module


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
