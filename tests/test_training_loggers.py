"""Metrics reach other services' own files, and a run that continues is the same run there."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from pathlib import Path
from typing import Any, NoReturn

import pytest
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from training_runs import FINISHED, Train, metrics

from partialnet.errors import UserError
from partialnet.training import loggers
from partialnet.training.config import TrainConfig
from partialnet.training.loggers import TRACKED_NAME, create_loggers
from partialnet.training.run import ClassifierRun, TrainResult


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "flowers")
    config = TrainConfig(loggers=("mlflow",))
    for epoch in (1, 2):  # the second time as after an interruption
        logger = create_loggers(config, "photos", tmp_path / "run", first_epoch=epoch, continues=epoch > 1)[-1]
        logger.log_metrics({"val_accuracy": epoch / 4}, step=epoch)
    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as database:
        runs = [run for (run,) in database.execute("select run_uuid from runs")]
        metrics = database.execute("select key, step, value from metrics order by step").fetchall()
        settings = dict(database.execute("select key, value from params").fetchall())
        experiments = {name for (name,) in database.execute("select name from experiments")}
    assert runs == [json.loads((tmp_path / "run" / TRACKED_NAME).read_text())["mlflow"]]
    assert metrics == [("val_accuracy", 1, 0.25), ("val_accuracy", 2, 0.5)]
    assert (settings["model"], settings["data"]) == ("partialnet_t0", "photos")
    assert "flowers" in experiments


def test_wandb_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name, value in (("PROJECT", "flowers"), ("NAME", "roses"), ("RUN_ID", "tulips")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    config = TrainConfig(loggers=("wandb",))
    for epoch in (1, 2):
        logger = create_loggers(config, "photos", tmp_path / "run", first_epoch=epoch, continues=epoch > 1)[-1]
        logger.log_metrics({"val_accuracy": epoch / 4}, step=epoch)
        began = logger.experiment
        assert (began.project, began.name, began.id) == ("flowers", "roses", "tulips")
        assert epoch > 1 or began.config["data"] == "photos"
        wandb.finish()
    wandb.teardown()  # waits for the process that writes the files
    run = json.loads((tmp_path / "run" / TRACKED_NAME).read_text())["wandb"]
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run}/run-{run}.wandb"))
    assert files
    assert all(b"val_accuracy" in file.read_bytes() for file in files)


def test_a_service_that_cannot_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its library is installed or not, the user is told in a sentence before the training."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(UserError, match=r"^The logger mlflow (is not installed|cannot start)[^\n]*$"):
        create_loggers(TrainConfig(loggers=("mlflow",)), "photos", tmp_path / "run", first_epoch=1, continues=False)


def test_killed_before_the_first_state(train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun anew, it is the same run at the service unless its settings are others."""
    begun: list[str] = []

    def begin(folder: Path, run: str | None) -> tuple[Logger, str]:
        begun.append(run or f"run-{len(begun)}")
        return DummyLogger(), begun[-1]

    def kill(*arguments: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(loggers, "_mlflow", begin)
    for seed in (0, 0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(ClassifierRun, "draw_beginning", kill)
            with pytest.raises(KeyboardInterrupt):
                train_tiny(loggers=("mlflow",), resume=True, seed=seed)
    train_tiny(loggers=("mlflow",), resume=True, seed=1)
    assert begun == ["run-0", "run-0", "run-2", "run-2"]
    assert json.loads((tmp_path / "run" / TRACKED_NAME).read_text()) == {"mlflow": "run-2"}


def test_tensorboard_compares_runs(finished_run: TrainResult) -> None:
    """The tab of hyperparameters finds the settings, and the metrics that the scalars of the run are to be read for."""
    events = EventAccumulator(str(finished_run.folder / "tensorboard")).Reload()
    content = {tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()}
    settings = content["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["lr"].number_value == FINISHED.lr
    assert settings["model"].string_value == "partialnet_t0"
    compared = {info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos}
    assert compared == set(events.Tags()["scalars"]) - {"epoch"}
    values = [event.value for event in events.Scalars("val_accuracy")]
    assert values == pytest.approx([row["val_accuracy"] for row in metrics(finished_run.folder)])


def test_the_event_file_cannot_be_written(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its thread dies, which costs the run nothing but TensorBoard's curves."""

    write, written = RecordWriter.write, []

    def fill(writer: RecordWriter, data: bytes) -> None:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(data)
        write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", fill)
    assert train_tiny(epochs=3).epochs == 3
    told = capsys.readouterr().err
    assert "\nTensorBoard cannot log epoch 3 (No space left on device); training goes on." in told
    assert "Traceback" not in told
