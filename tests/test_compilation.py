"""A compiler that fails, as on a file that a killed process has written half, is told with the folder of its files."""

from __future__ import annotations

import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch._inductor.exc import InductorError
from training_runs import Train

from partialnet.bench.contestants import why_not_run
from partialnet.errors import RunInterrupted, UserError


@pytest.fixture
def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InductorError:
    """What the compiler says of a file that it cannot load."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return InductorError(ImportError("6q/c6q.so: file too short.\nfurther lines"), None)


def told(folder: Path) -> str:
    """What users are told of it."""
    killed = f"If an earlier compilation was killed, its files may be damaged: delete {str(folder)!r}."
    return f"ImportError: 6q/c6q.so: file too short. {killed}"


def test_training(failure: InductorError, tmp_path: Path, train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: Any, **options: Any) -> None:
        raise failure

    monkeypatch.setattr(L.Trainer, "fit", fit)
    with pytest.raises(UserError) as error:
        train_tiny(compile=True)
    assert str(error.value) == f"The network cannot be trained with --compile: {told(tmp_path)}"


@pytest.mark.parametrize("raised", ["failure", "broken"])
def test_training_is_stopped_while_compiling(
    raised: str, failure: InductorError, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal of a whole process group ends the compiler's processes, which our own process then misses."""

    def fit(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise failure if raised == "failure" else BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(L.Trainer, "fit", fit)
    with pytest.raises(RunInterrupted, match="Stopped by SIGTERM while the network was compiled"):
        train_tiny(compile=True)


def test_bench(failure: InductorError, tmp_path: Path) -> None:
    assert why_not_run(failure) == told(tmp_path)
