"""The files from which a run continues: damaged, lost, and on a full disk; signals are for test_training_resume.py."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from commands import Command
from training_runs import Train, tensors, write_photos

import partialnet.training.states
from partialnet.errors import RunInterrupted, UserError
from partialnet.training.classifier import ClassifierTask
from partialnet.training.engine import pictures_may_fail
from partialnet.training.keeper import RunKeeper
from partialnet.training.run import TrainResult


def test_states_hold_no_code(finished_run: TrainResult) -> None:
    for path in (finished_run.folder / "state").iterdir():
        torch.load(path, weights_only=True)


def test_full_disk(train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write = partialnet.training.states.write_atomically
    written: list[Path] = []

    def fills_up(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write(path, content)

    monkeypatch.setattr(partialnet.training.states, "write_atomically", fills_up)
    result = train_tiny(epochs=4)
    told = capsys.readouterr().err
    assert "cannot be written (No space left on device)" in told
    assert str(written[-1]) in told
    assert [path.name for path in (result.folder / "state").iterdir()] == [written[-1].name]
    assert result.epochs == 4


def test_full_disk_for_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    with pictures_may_fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "curves.png")
    assert "The pictures cannot be written (No space left on device)." in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_state(damage: str, train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_tiny(epochs=3)
    whole = tensors(result.folder / "last" / "model.safetensors")
    newest = max((result.folder / "state").iterdir())
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    capsys.readouterr()
    again = train_tiny(epochs=3, resume=True)
    told = capsys.readouterr().err
    assert f"{newest.name}' is damaged" in told
    assert "Continuing with epoch 3." in told
    assert all(torch.equal(whole[n], t) for n, t in tensors(again.folder / "last" / "model.safetensors").items())
    assert len(list((again.folder / "state").iterdir())) == 2


def test_only_damaged_states(train_tiny: Train) -> None:
    result = train_tiny(epochs=2)
    for path in (result.folder / "state").iterdir():
        path.write_bytes(b"nothing")
    before = result.checkpoint.read_bytes()
    with pytest.raises(UserError, match="None of the states"):
        train_tiny(epochs=2, resume=True)
    assert result.checkpoint.read_bytes() == before


def test_lost_states_do_not_cost_the_run(train_tiny: Train) -> None:
    """Nothing is trained anew over a run whose states somebody has deleted."""
    result = train_tiny(epochs=2)
    shutil.rmtree(result.folder / "state")
    before = result.checkpoint.read_bytes()
    with pytest.raises(UserError, match="no state to continue from"):
        train_tiny(epochs=2, resume=True)
    assert result.checkpoint.read_bytes() == before


def test_continuing_without_the_weights_it_began_with(train_tiny: Train, tmp_path: Path) -> None:
    first = train_tiny("first")
    second = train_tiny("second", epochs=2, weights=str(first.folder))
    max((second.folder / "state").iterdir()).unlink()
    expected = tensors(second.folder / "last" / "model.safetensors")
    first.folder.rename(tmp_path / "elsewhere")
    again = train_tiny("second", epochs=2, weights=str(first.folder), resume=True)
    assert all(torch.equal(t, expected[n]) for n, t in tensors(again.folder / "last" / "model.safetensors").items())


def test_everything_is_on_the_device_before_a_stopped_epoch_is_finished(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks come before the task's own hook, and a GPU's network is validated there."""
    order = []

    def bring(task: ClassifierTask) -> None:
        order.append("brought")
        task.progress.validated = False  # as of a run that stopped before the validation
        task.progress.sums += 1

    finish = RunKeeper._finish_epoch
    monkeypatch.setattr(ClassifierTask, "bring_to_device", bring)
    monkeypatch.setattr(RunKeeper, "_finish_epoch", lambda *a, **k: (order.append("finished"), finish(*a, **k))[1])
    train_tiny("run", epochs=1)
    assert order == ["brought", "finished", "finished"]


def lose_reader(monkeypatch: pytest.MonkeyPatch, function: str, signal: str) -> None:
    """What torch raises, wherever a process is, when one that reads for it has been killed."""

    def fail(*arguments: Any, **options: Any) -> NoReturn:
        raise RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {signal}. ")

    monkeypatch.setattr(function, fail)


def test_a_reading_process_is_killed(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_reader(monkeypatch, "lightning.Trainer.fit", "Killed")
    with pytest.raises(
        RunInterrupted, match=r"^A data-loading worker was lost.* Continue with: partialnet train .*--resume"
    ):
        train_tiny()


def test_shared_memory_is_short(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container; a scheduler must not try again and again."""
    lose_reader(monkeypatch, "lightning.Trainer.fit", "Bus error")
    with pytest.raises(UserError, match="--shm-size"):
        train_tiny()


def test_a_reading_process_is_killed_elsewhere(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_reader(monkeypatch, "partialnet.demo.run_demo", "Killed")
    result = command("demo", "-o", tmp_path / "run")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("partialnet: A data-loading worker was lost")


def test_data_is_gone_before_the_validation(train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a disk that is no longer mounted; the run ends as one that was never interrupted once it is back."""
    data, elsewhere = write_photos(tmp_path / "data", 12), tmp_path / "elsewhere"
    validate, epochs = ClassifierTask.validate, []

    def unmount(task: ClassifierTask, *arguments: Any) -> dict[str, float]:
        epochs.append(task.progress.epoch)
        if len(epochs) == 2:
            data.rename(elsewhere)
        return validate(task, *arguments)

    monkeypatch.setattr(ClassifierTask, "validate", unmount)
    with pytest.raises(UserError, match="if the data is gone, bring it back and use --resume"):
        train_tiny(data=data, epochs=2)
    elsewhere.rename(data)
    again, whole = train_tiny(data=data, epochs=2, resume=True), train_tiny("whole", data=data, epochs=2)
    last = [tensors(result.folder / "last" / "model.safetensors") for result in (again, whole)]
    assert all(torch.equal(tensor, last[1][name]) for name, tensor in last[0].items())
    assert not (again.folder / "unreadable_images.txt").exists()
