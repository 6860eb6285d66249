"""After which steps several training processes talk to one another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from partialnet.training import agreement
from partialnet.training.agreement import Agreement

CPU = torch.device("cpu")
SLOW_FROM, ASKED_AT = 200, 260


class Processes(threading.local):
    """Threads in the place of processes: each has a rank, a clock and a part in the sums."""

    rank = 0
    now = 0.0

    def __init__(self, barrier: threading.Barrier, parts: dict[int, Tensor]) -> None:
        self.barrier, self.parts = barrier, parts

    def all_reduce(self, tensor: Tensor) -> None:
        self.parts[self.rank] = tensor.clone()
        self.barrier.wait(10)  # breaks if another one does not come here, too
        tensor.copy_(sum(self.parts.values()))
        self.barrier.wait(10)


@pytest.fixture
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Processes:
    processes = Processes(threading.Barrier(request.param), {})
    monkeypatch.setattr(dist, "all_reduce", processes.all_reduce)
    monkeypatch.setattr(dist, "get_rank", lambda: processes.rank)
    monkeypatch.setattr(agreement, "time", SimpleNamespace(monotonic=lambda: processes.now))
    return processes


@pytest.mark.parametrize("processes", [2], indirect=True)
def test_processes_talk_once_a_second_and_stop_after_the_same_step(processes: Processes) -> None:
    """Steps of 1/64 s, later of 1 s; the second process, whose clock is three times as fast, is asked to stop."""

    def train(rank: int) -> tuple[list[int], list[list[float]]]:
        processes.rank = rank
        common = Agreement(seconds=1)
        exchanges, sums = [], [common.total([rank + 1, 10], CPU)]
        for step in range(1, 1000):
            processes.now += (1 if step > SLOW_FROM else 1 / 64) * (1 + 2 * rank)
            if common.is_due():
                exchanges.append(step)
                sums.append(common.total([0, rank == 1 and step >= ASKED_AT], CPU))
                if sums[-1][1]:
                    break
        return exchanges, sums

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, (0, 1))
    assert first == second
    exchanges, sums = first
    # twice as long each time, up to 64 steps a second; the slow steps from 201 on are noticed at 256
    assert exchanges == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 257, 258, 259, 260]
    assert sums == [[3, 20], *[[0, 0]] * 13, [0, 1]]


@pytest.mark.parametrize("processes", [1], indirect=True)
def test_time_without_steps_does_not_count(processes: Processes) -> None:
    """A long validation between two exchanges leaves the pace of the steps alone."""
    common = Agreement(seconds=1)

    def steps_until_due() -> int:
        for number in range(1, 100):
            processes.now += 1 / 16
            if common.is_due():
                common.total([], CPU)
                return number
        raise AssertionError

    assert [steps_until_due() for _ in range(8)] == [1, 1, 2, 4, 8, 16, 16, 16]
    processes.now += 100
    common.total([], CPU)
    assert [steps_until_due() for _ in range(2)] == [16, 16]
