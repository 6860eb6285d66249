"""Data-loading workers that make whole batches, and end when the training process wants them to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from partialnet.errors import RunInterrupted, UserError

from .seeding import REPLACEMENT, generator
from .signals import STOP_SIGNALS

#: Images tried in place of an unreadable one before the data set as a whole is taken for unreadable.
MAX_REPLACEMENTS = 100

_Read = TypeVar("_Read")
_Batch = TypeVar("_Batch")
_Batch_co = TypeVar("_Batch_co", covariant=True)


def read_or_replace(
    read: Callable[[int], _Read],
    wanted: int,
    count: int,
    seed: int,
    unreadable: dict[int, str],
) -> tuple[int, _Read]:
    """Image ``wanted`` or, where it is unreadable, another one that its number determines; and its index.

    Args:
        read: Reads an image; raises ``UserError`` if it is unreadable.
        wanted: Index of the image.
        count: Number of images there are.
        seed: Of the run.
        unreadable: The indices of unreadable images are added to it, with why.

    Raises:
        UserError: One after the other is unreadable.
    """
    index = wanted
    others = None
    tried = set()  # of few images the same one may come again
    for _ in range(MAX_REPLACEMENTS):
        try:
            return index, read(index)
        except UserError as error:
            unreadable[index] = str(error)
        tried.add(index)
        others = others or generator(REPLACEMENT, seed, wanted)
        index = int(others.integers(count))
    raise UserError(
        f"None of {len(tried)} images could be read; the first: {unreadable[wanted]} If the data is gone, bring "
        "it back and continue with --resume."
    )


def lost_reader(error: BaseException, resume_command: Sequence[str] = ()) -> UserError | RunInterrupted | None:
    """What to raise, instead of torch's error, where a worker was lost; None if the error is another one.

    Args:
        error: What torch has raised.
        resume_command: Subcommand, arguments and options that continue the run, if it is one.
    """
    if not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")):
        return None
    if "Bus error" in str(error):  # it would come again and again
        return UserError(
            "A data-loading worker ran out of shared memory; give the container more (--shm-size), or use --workers 0."
        )
    return RunInterrupted(
        "A data-loading worker was lost; the system may have killed it for its memory, so try fewer --workers.",
        resume_command,
    )


class Batches(Protocol[_Batch_co]):
    """Makes batches from their numbers; it must be possible to pickle it."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> _Batch_co: ...


def batch_loader(batches: Batches[_Batch], workers: int, pin_memory: bool, first: int = 0) -> DataLoader[_Batch]:
    """All batches in order; a ``UserError`` that making one raises is raised here.

    Args:
        batches: Makes them.
        workers: Number of worker processes; 0 reads in this one.
        pin_memory: Whether to bring the batches into page-locked memory, for a GPU.
        first: Number of the batch to start with; from the length on there is none.
    """
    numbers = range(len(batches))[first:]
    workers = min(workers, len(numbers))
    return _BatchLoader(
        _Handed(batches),
        batch_size=None,  # an item of the data set is a whole batch
        sampler=numbers,
        num_workers=workers,
        worker_init_fn=_follow_parent if workers else None,
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator(),  # the loader draws a seed for its workers; not from the training's generator
    )


class _Handed(Dataset[Any]):
    """Batches as readers hand them over: a user's mistake as an item; torch would wrap its message in a traceback."""

    def __init__(self, batches: Batches[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.batches[number]
        except UserError as error:
            return error


class _BatchLoader(DataLoader[Any]):
    """A loader of ``_Handed`` batches."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, UserError):
                raise item
            yield item

    def check_worker_number_rationality(self) -> None:
        """Nothing: torch warns of more readers than cores, in three lines for each loader, also of our default."""


def _follow_parent(worker: int) -> None:
    """Let the training process alone decide when a worker ends.

    Ctrl-C, a closed terminal and a cluster's pre-emption reach all processes of a job. The training process then
    finishes its step and stops its readers; if they ended before, that step would fail. If the training process is
    killed, they end at once: torch's own watch over it begins too late for one that is killed while its readers start.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
