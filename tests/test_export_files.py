"""Files of exports: what they replace, which belong together, and what is left where writing fails or is stopped."""

import errno
import os
import shutil
import signal
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from commands import Command, assert_mistake
from exports import MEANS_INPUT, means

from partialnet.deploy.export import export, write_onnx
from partialnet.deploy.exported_files import (
    SUFFIXES,
    prepare_output,
    put_in_place,
    save_onnx,
    save_openvino,
    write_report,
)
from partialnet.deploy.photos import collect_photos
from partialnet.deploy.runtimes import load_exported, openvino_core
from partialnet.errors import UserError

pytestmark = pytest.mark.usefixtures("converted_once")


def test_a_run_is_not_overwritten_by_its_export(exportable, tmp_path, command: Command):
    weights = exportable.save(tmp_path)
    before = weights.read_bytes()
    assert_mistake(command("export", tmp_path, "-f", "torch", "-o", weights))
    assert weights.read_bytes() == before


def test_a_report_replaces_neither_the_export_nor_what_it_is_made_from(exportable, tmp_path, command: Command):
    weights = exportable.save(tmp_path)
    before = weights.read_bytes()
    for format, file, report in (
        ("torch", "net.safetensors", "net.safetensors"),
        ("openvino", "net.xml", "net.bin"),
        ("torch", "net.safetensors", weights.name),
    ):
        refused = command("export", tmp_path, "-f", format, "-o", tmp_path / file, "--json", tmp_path / report)
        assert_mistake(refused, f"{report}' is ", "choose another file")
    assert weights.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {weights.name, "config.json"}


def test_an_export_may_have_any_name(exportable, tmp_path, monkeypatch):
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    result = export(exportable, tmp_path / "float.onnx", precision="fp16")
    assert result.operators["Conv"] > 10
    assert result.kept.stat().st_size > 1.8 * result.path.stat().st_size


@pytest.mark.parametrize("file", ["net.xml", "net.bin", "net.xml.json"])
def test_an_export_that_is_read_only_stays(file, exportable, tmp_path):
    (tmp_path / "net.xml").touch()
    (tmp_path / file).touch(0o444)
    (tmp_path / file).chmod(0o444)
    with pytest.raises(UserError, match=f"{file}' cannot be written: it is read-only"):
        export(exportable, tmp_path / "net.xml", "openvino")


def test_openvinos_weights_replace_nothing_but_an_older_exports(tmp_path, monkeypatch, command: Command):
    source = tmp_path / "net.bin"
    tiny = {"embed_dim": 16, "depths": [1, 1, 1, 1]}
    network = timm.create_model("partialnet_t0", num_classes=3, **tiny)
    args = Namespace(model_kwargs=tiny)
    torch.save({"arch": "partialnet_t0", "args": args, "state_dict": network.state_dict()}, source)
    (tmp_path / "other.bin").write_bytes(b"something else")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    run = ("export", source, "-f", "openvino", "--img-size", "64", "-o")
    for output, message in (("net.xml", "net.bin"), ("other.xml", "other.bin")):
        assert_mistake(command(*run, tmp_path / output), f"{message}'", "choose another file")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # with an older export beside it, the weights of that name are the export's own, or else the source
    (tmp_path / "net.xml").touch()
    assert_mistake(command(*run, tmp_path / "net.xml"), "is the checkpoint itself")
    for _ in range(2):
        assert command(*run, tmp_path / "new.xml").code == 0
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    (tmp_path / "half_fp32.bin").write_bytes(b"something else")
    done = command(*run, tmp_path / "half.xml", "-p", "fp16")
    assert "half_fp32-2.xml" in done.err
    written = done.out.partition("Written:")[2]
    for file in tmp_path.glob("half*"):
        assert (f"{file} (" in written or f"{file}\n" in written) == (file.name != "half_fp32.bin")
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "half_fp32.bin").read_bytes() == b"something else"


def test_openvinos_graph_is_not_read_with_the_weights_of_another_export(tmp_path, monkeypatch):
    def write(name: str, weight: float) -> Path:
        model = means()
        model.graph.node[0].input[0] = "scaled"
        model.graph.node.insert(0, onnx.helper.make_node("Mul", ["images", "weight"], ["scaled"]))
        weights = np.full((1, 3, 8, 8), weight, np.float32) + np.arange(8, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weight"))
        config = {"architecture": "means", "num_classes": 3, "model_args": {}, "pretrained_cfg": MEANS_INPUT}
        finished = tmp_path / "workspace" / f"{name}.xml"
        save_openvino(openvino_core().read_model(model.SerializeToString()), finished, config)
        write_report(finished, {})
        return finished

    def answer(path: Path) -> float:
        return load_exported(path).model(torch.ones(1, 3, 8, 8)).mean().item()

    (tmp_path / "workspace").mkdir()
    path, other = tmp_path / "net.xml", tmp_path / "other.xml"
    put_in_place(write("net", 1), path)
    put_in_place(write("other", 2), other)
    assert (answer(path), answer(other)) == (4.5, 5.5)
    shutil.copy(other.with_suffix(".bin"), path.with_suffix(".bin"))
    images = np.ones((1, 3, 8, 8), np.float32)
    assert (
        openvino_core().compile_model(path, "CPU")(images)["logits"].mean() == 5.5
    )  # OpenVINO reads it without a word
    with pytest.raises(UserError, match=r"net.xml' and the 'net.bin' beside it are of two exports"):
        load_exported(path)
    # of one network, exported twice, either weights do
    put_in_place(write("net", 2), path)
    shutil.copy(other.with_suffix(".bin"), path.with_suffix(".bin"))
    assert answer(path) == 5.5

    def move(file: Path, place: Path) -> None:
        if file.suffix == ".xml":
            raise KeyboardInterrupt
        os.replace(file, place)

    # one that is stopped between its files leaves no graph, and the next may take its name
    finished = write("net", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", move)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(finished, path)
    assert not path.exists()
    prepare_output(path, "openvino")
    put_in_place(write("net", 1), path)
    assert answer(path) == 4.5


def test_a_folder_in_which_nothing_can_be_written_is_told(exportable, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".net.onnx.a1b2"))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(UserError, match=r"net.onnx' cannot be written: Permission denied\.$"):
        export(exportable, tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("net.onnx", write_onnx),
        ("net.onnx", save_onnx),
        ("net.xml", save_openvino),
        ("net.safetensors", collect_photos),  # the step before the file is written
    ],
)
def test_a_full_disk_is_told_with_the_files_name(file, step, exportable, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")  # not on Windows
    output = tmp_path / "out" / file
    format = {suffix: format for format, suffix in SUFFIXES.items()}[output.suffix]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a file of more bytes fails as on a full disk
        return step(*args, **kwargs)

    monkeypatch.setattr(f"partialnet.deploy.export.{step.__name__}", full)
    try:
        with pytest.raises(UserError, match=f"^{str(output)!r} cannot be written: "):
            export(exportable, output, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(output.parent.iterdir()) == []


def test_of_two_exports_that_belong_together_none_stays_alone(exportable, tmp_path, monkeypatch, command: Command):
    resource = pytest.importorskip("resource")  # not on Windows
    exportable.save(tmp_path / "run")
    monkeypatch.setattr("partialnet.deploy.export.LEAST_AGREEMENT", 1.01)  # no export agrees so often
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    num_params = sum(parameter.numel() for parameter in exportable.model.parameters())
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * num_params, before[1]))  # room for half precision only
    try:
        done = command(
            "export", tmp_path / "run", "-f", "torch", "-p", "fp16", "-o", tmp_path / "out" / "net.safetensors"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2
    assert "net.safetensors' cannot be written: " in done.err
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_that_is_terminated_leaves_nothing(exportable, tmp_path, monkeypatch, command: Command):
    def stop(model, shape, path, *args):
        path.write_bytes(b"half a graph")
        assert list(tmp_path.glob("out/.net.onnx.*/**/*.onnx")) == [path]
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # or the tests would end here
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("partialnet.deploy.export.write_onnx", stop)
    exportable.save(tmp_path / "run")
    done = command("export", tmp_path / "run", "-o", tmp_path / "out" / "net.onnx")
    assert done.code == 143
    assert done.err.endswith("partialnet: Terminated.\n")
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
