"""Where a run's metrics go besides ``metrics.csv``: TensorBoard, and by option W&B and MLflow."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.tensorboard.summary import hparams

from partialnet.errors import UserError
from partialnet.files import write_json

from .config import RunConfig

#: Names under which the run is known to W&B and MLflow, so that its continuation is the same run there.
TRACKED_NAME = "tracked_runs.json"
#: W&B's project and MLflow's experiment where their environment variables name none.
PROJECT = "partialnet"


def create_loggers(config: RunConfig, source: str, folder: Path, first_epoch: int, continues: bool) -> list[Logger]:
    """TensorBoard and what else is asked for; epochs from ``first_epoch`` on replace those logged before.

    A run that continues goes on as the same one at a service, also one that was killed before its first state: its
    name there is kept from the start. Services get ``source``, what is learnt from, among the settings as "data".

    Raises:
        UserError: A logger's library is not installed, or it cannot begin to log.
    """
    settings = {"data": source, **asdict(config)}
    found: list[Logger] = [TensorBoard(folder, first_epoch, settings)]
    if not config.loggers:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    tracked = _tracked(folder) if continues else {}
    create = {"wandb": _wandb, "mlflow": _mlflow}
    for name in config.loggers:
        try:
            logger, run = create[name](folder, tracked.get(name))
            if name not in tracked:
                logger.log_hyperparams(settings)
        except ModuleNotFoundError as error:
            raise UserError(f"The logger {name} is not installed; install it with `pip install {name}`.") from error
        except Exception as error:  # of the service, its library or the network
            raise UserError(f"The logger {name} cannot start: {' '.join(str(error).split())}") from error
        found.append(logger)
        if tracked.get(name) != run:
            tracked[name] = run
            write_json(folder / TRACKED_NAME, tracked)
    return found


class TensorBoard(TensorBoardLogger):
    """Events right in ``RUN/tensorboard``, with the settings for the tab that compares runs by their last metrics."""

    def __init__(self, folder: Path, first_epoch: int, settings: Mapping[str, Any]) -> None:
        purge_step = first_epoch if first_epoch > 1 else None
        super().__init__(folder, name="tensorboard", version="", purge_step=purge_step)
        self._settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """An epoch's metrics; with those of the first one, the settings, and by which metrics to compare."""
        super().log_metrics(dict(metrics), step)
        if step == 1:
            # not by log_hyperparams, which would log the metrics again
            for summary in hparams(self._settings, dict(metrics)):
                self.experiment.file_writer.add_summary(summary)

    def finalize(self, status: str) -> None:
        """Close the file; where that fails, the run must not: `metrics.csv` has it all."""
        with suppress(OSError):
            super().finalize(status)


@contextmanager
def quiet_event_writer() -> Iterator[None]:
    """Suppress tracebacks of TensorBoard's writer thread, as on a full disk; logging the next epoch reports it."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if type(failure.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _wandb(folder: Path, run: str | None) -> tuple[Logger, str]:
    given = os.environ.get
    run = run or given("WANDB_RUN_ID") or uuid.uuid4().hex[:16]  # given by the agent of a sweep
    name, project = given("WANDB_NAME") or folder.name, given("WANDB_PROJECT") or PROJECT
    logger = WandbLogger(name=name, project=project, save_dir=folder, resume="allow", id=run)
    logger.experiment  # noqa: B018 - begins the run, which would otherwise fail after the first epoch
    return logger, run


def _mlflow(folder: Path, run: str | None) -> tuple[Logger, str]:
    # a database, as MLflow no longer keeps runs in plain files
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    logger = MLFlowLogger(experiment, run_name=folder.name, run_id=run, tracking_uri=address)
    return logger, str(logger.run_id)


def _tracked(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / TRACKED_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
