"""Files are written whole or not at all, whatever fails or kills the process."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Randomize
from stored_networks import tiny

from partialnet.checkpoint import load
from partialnet.checkpoint.stored_network import CONFIG_NAME, WEIGHTS_NAME
from partialnet.errors import UserError
from partialnet.files import check_destinations, distinct_files, write_atomically, write_csv, write_json


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second, longer", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_for_people_and_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"rows": [1, None]})
    expected = '{\n "rows": [\n  1,\n  null\n ]\n}\n'
    assert path.read_text() == expected
    with pytest.raises(TypeError):
        write_json(path, {"rows": object()})
    assert path.read_text() == expected


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_written_file_has_usual_permissions(mask: int, tmp_path: Path) -> None:
    """Those of a file made by open(), so that others can read a run folder; a temporary file's are stricter."""
    previous = os.umask(mask)
    try:
        write_atomically(tmp_path / "ours", b"")
        (tmp_path / "usual").write_bytes(b"")
        assert os.umask(mask) == mask
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "usual")}
    assert modes == {0o666 & ~mask}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_write_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, call, fail)
    if call == "replace":
        monkeypatch.setattr(Path, call, fail)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(path, b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_failing_save_leaves_the_old_checkpoint(
    own_run: Path, randomize: Randomize, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = {file.name: file.read_bytes() for file in own_run.iterdir()}
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        tiny(randomize).save(own_run)
    assert {file.name: file.read_bytes() for file in own_run.iterdir()} == before


def test_results_for_a_folder_that_takes_no_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_destinations(tmp_path / "results.json", None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"results.json' cannot be written: Permission denied\."):
        check_destinations(tmp_path / "results.json")
    check_destinations(Path(os.devnull), Path("/dev/stdout"))


def test_a_file_that_is_read_only_stays(tmp_path: Path) -> None:
    path, link = tmp_path / "results.json", tmp_path / "link.json"
    write_atomically(path, b"old")
    path.chmod(0o444)
    for write in (lambda: write_atomically(path, b"new"), lambda: check_destinations(path)):
        with pytest.raises(UserError, match=r"results.json' cannot be written: it is read-only\.$"):
            write()
    assert path.read_bytes() == b"old"
    link.symlink_to(path)
    write_atomically(link, b"new")  # of a link only the link is replaced
    assert (path.read_bytes(), link.read_bytes()) == (b"old", b"new")


def test_distinct_files_on_any_disk(tmp_path: Path) -> None:
    files = distinct_files(tmp_path, ["a-2", "a", "a", "A", "b"], ".png")
    assert [file.name for file in files] == ["a-2.png", "a.png", "a-3.png", "A-4.png", "b.png"]


def test_table_of_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", [{"name": os.fsdecode(b"caf\xe9.jpg"), "value": 1}], ["name", "value"])
    assert (tmp_path / "table.csv").read_bytes() == b"name,value\ncaf\xe9.jpg,1\n"


def test_interrupt_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


#: For each line it reads, a child process that saves over and over until it is killed. Every save has one number in
#: all its tensors and in its class names.
WRITER = """
import itertools, os, sys
import torch
torch.set_num_threads(1)
from partialnet.checkpoint import Checkpoint, create_checkpoint

network = create_checkpoint("partialnet_t0", num_classes=2)

def save(value):
    for tensor in network.model.state_dict().values():
        tensor.fill_(value)
    names = (str(value),) * 2
    Checkpoint(network.model, "partialnet_t0", network.model_args, names, network.input_config).save(sys.argv[1])

save(0)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        for value in itertools.count(int(line)):
            save(value % 1000)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    """SIGKILL at random moments: the file is always a whole one, of a single save."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    draw, seen, cut_short = random.Random(0), set(), 0
    try:
        assert writer.stdout.readline() == "ready\n"
        for kill in range(80):
            if kill >= 10 and cut_short and len(seen) > 3:
                break  # a kill that falls into the writing of a file is a matter of luck
            writer.stdin.write(f"{100 * kill + 1}\n")
            child = int(writer.stdout.readline())
            time.sleep(draw.uniform(0.05, 0.3))
            os.kill(child, signal.SIGKILL)
            assert writer.stdout.readline() == "ended\n"
            checkpoint = load(tmp_path)
            values = {float(tensor.double().min()) for tensor in checkpoint.model.state_dict().values()}
            values |= {float(tensor.double().max()) for tensor in checkpoint.model.state_dict().values()}
            values |= {float(name) for name in checkpoint.class_names}
            assert len(values) == 1
            seen |= values
            unfinished = [file for file in tmp_path.iterdir() if file.name not in (WEIGHTS_NAME, CONFIG_NAME)]
            cut_short += bool(unfinished)
            for file in unfinished:
                file.unlink()
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) > 3  # it did save
    assert cut_short  # and was killed in the middle of it


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_standard_output_in_a_file_keeps_its_order(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    program = """
from pathlib import Path
from partialnet.files import write_atomically
print("printed before")
write_atomically(Path("/dev/stdout"), b"content\\n")
write_atomically(Path("/dev/fd/1"), b"more\\n")
print("after")
"""
    out.write_text("there already\n")
    with out.open("r+") as file:
        file.seek(0, os.SEEK_END)
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert out.read_text() == "there already\nprinted before\ncontent\nmore\nafter\n"


def test_devices_stay_devices() -> None:
    write_atomically(Path("/dev/null"), b"content")
    assert Path("/dev/null").is_char_device()
