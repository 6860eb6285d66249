"""Searches in parallel on the machines of a Ray cluster."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.files import write_atomically
from partialnet.messages import first_line
from partialnet.training.run_folder import STATES_NAME

from .config import SearchConfig
from .plan import PLAN_NAME
from .run import search

#: Time in which the cluster must answer.
_SECONDS_TO_ANSWER = 10.0


def search_on_cluster(address: str, points: Sequence[tuple[SearchConfig, Path]], data: str) -> None:
    """Search each point as a task of its own on whatever machine of a cluster is free; see ``sweep``.

    Every machine needs this package, and the data under the same path. A task works in a temporary folder of its
    machine and hands its files over when it is finished; a machine that is lost costs the points it was at, which Ray
    starts anew elsewhere.

    Args:
        address: Of the cluster, such as ``auto`` or ``ray://host:10001``; ``local`` starts one on this machine.
        points: What to search, each with its run folder, which has the search's files afterwards.
        data: What to learn from; see ``partialnet.data.sources.open_data``.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or a search says what does not fit; other points
            that are finished by then are kept.
    """
    ray = require("ray", "ray")
    if points:
        with _connected(ray, address):
            _collect(ray, _start(ray, points, data))


@contextmanager
def _connected(ray: ModuleType, address: str) -> Iterator[None]:
    """Ray's tasks run on the cluster of an address.

    Raises:
        UserError: It cannot be reached.
    """
    _check_reachable(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(None if address == "local" else address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"The Ray cluster {address!r} cannot be reached: {first_line(error)}") from error
    finally:
        # Ray puts a handler of its own in its place, which it never takes away
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _start(ray: ModuleType, points: Sequence[tuple[SearchConfig, Path]], data: str) -> dict[Any, Path]:
    """Hand all points to the cluster; the folder of each task."""
    folders: dict[Any, Path] = {}
    for config, folder in points:
        resources = {"num_cpus": config.threads or 1, "num_gpus": 0 if config.device == "cpu" else _gpus(ray)}
        task = ray.remote(**resources)(_search_in_temporary_folder)
        folders[task.remote(config, data, Path.cwd())] = folder
    return folders


def _collect(ray: ModuleType, folders: Mapping[Any, Path]) -> None:
    """Write each task's files into its folder as soon as it is finished.

    Raises:
        UserError: A task failed.
    """
    with tqdm(total=len(folders), desc="searches", unit="θ") as bar:
        running = list(folders)
        while running:
            finished, running = ray.wait(running, timeout=1)
            for task in finished:
                try:
                    files = ray.get(task)
                except ray.exceptions.RayError as error:
                    raise UserError(_reason(error)) from error
                _write(folders[task], files)
                bar.update()
            bar.refresh()


def _reason(error: Exception) -> str:
    """What went wrong in a task. Ray's own text is the task's traceback, also where the error is one of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return str(cause)
    text = first_line(error)
    if isinstance(cause, BaseException):
        text = "".join(traceback.format_exception_only(cause)).splitlines()[0]
    return f"A search on the cluster failed: {text}"


def _search_in_temporary_folder(config: SearchConfig, data: str, start: Path) -> dict[str, bytes]:
    """On a machine of the cluster: search, and return the run folder's files but for its states.

    Args:
        config: How to search.
        data: What to learn from.
        start: The folder that relative paths are from; a machine without it can search in data that is no file.
    """
    with suppress(FileNotFoundError):
        os.chdir(start)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        search(config, data, folder)
        files = (path for path in folder.rglob("*") if path.is_file())
        found = {str(path.relative_to(folder)): path for path in files}
        return {name: path.read_bytes() for name, path in found.items() if not name.startswith(STATES_NAME)}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write a run folder, the plan last: its being there says that the point is finished."""
    for name in sorted(files, key=lambda name: name == PLAN_NAME):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, files[name])


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens, which Ray would try for minutes.

    Raises:
        UserError: Nobody does.
    """
    found = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address)
    if found is None:
        return  # "auto" and the like, which Ray looks up
    try:
        socket.create_connection((found[1], int(found[2])), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"The Ray cluster {address!r} cannot be reached: {error}.") from error


def _gpus(ray: ModuleType) -> int:
    """One GPU for each search, where the cluster has any."""
    return min(1, int(ray.cluster_resources().get("GPU", 0)))
