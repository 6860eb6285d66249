"""Metrics reach other services' own files, and a run that continues is the same run there."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from partialnet.errors import UserError
from partialnet.training.config import TrainConfig
from partialnet.training.loggers import TRACKED_NAME, create_loggers


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
    with pytest.raises(UserError, match=r"^The logger mlflow (is not installed|cannot begin)[^\n]*$"):
        create_loggers(TrainConfig(loggers=("mlflow",)), "photos", tmp_path / "run", first_epoch=1, continues=False)
