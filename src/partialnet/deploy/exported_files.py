"""The files of an export: checked before any work, written to a temporary folder, and moved into place at the end."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from partialnet.checkpoint.stored_network import WEIGHTS_NAME
from partialnet.errors import UserError
from partialnet.extras import require
from partialnet.files import refuse_read_only, write_json
from partialnet.layers.inference import Runtime
from partialnet.messages import first_line

from .openvino_pair import digest_behind, make_room, tie_together
from .runtimes import CONFIG_KEY

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite", "torch": ".safetensors"}
#: Which form of our layers suits a format; a PyTorch file has the plain one, whose parameters have the usual names.
FORMS: dict[str, Runtime] = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "litert"}


def default_output(source: str, format: str, precision: str) -> Path:
    """The file that a network is exported to where none is named: called after the network, in the current folder."""
    name = Path(source).resolve().name if Path(source).is_dir() else Path(source).stem
    return Path(f"{name}_{precision}{SUFFIXES[format]}")


def prepare_output(output: Path, format: str) -> None:
    """Refuse a file that cannot be written in this format; make its folder.

    Raises:
        UserError: Its name ends otherwise, it is a folder or read-only, its folder cannot be made, its weights would
            replace another file, or a package is missing.
    """
    if output.suffix != SUFFIXES[format]:
        raise UserError(f"{str(output)!r} should end in {SUFFIXES[format]} for {format}.")
    if format == "openvino":
        require("openvino", "openvino")
    if format == "litert":
        require("litert_torch", "litert")
    if output.is_dir():
        raise UserError(f"{str(output)!r} is a folder; name a file to write.")
    for weights in _network_files(output)[:-1]:
        if weights.exists() and not output.exists() and digest_behind(weights) is None:
            raise UserError(
                f"The weights would replace {str(weights)!r}, which is not part of an export; choose another file."
            )
    refuse_read_only(*files_of(output))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(output)!r} cannot be written: its folder cannot be made ({error.strerror}).") from error


def check_files(output: Path, source: str | Path, report: Path | None = None) -> None:
    """Refuse an export that would replace what it is made from, or that its own report would replace.

    Args:
        output: File to write.
        source: The run folder or file that is exported.
        report: Where the report goes besides the file beside the export.

    Raises:
        UserError: One of the files to write is the checkpoint, or the report would replace the export.
    """
    sources = (Path(source).resolve(), Path(source).resolve() / WEIGHTS_NAME)
    reports = [] if report is None else [report]
    for file in (*files_of(output), *reports):
        if file.resolve() in sources:
            raise UserError(f"{str(file)!r} is the checkpoint itself; choose another file.")
    if {file.resolve() for file in reports} & {file.resolve() for file in _network_files(output)}:
        raise UserError(f"{str(report)!r} is named for the report and for the export; choose another file.")


def files_of(output: Path) -> list[Path]:
    """All files of an export: the weights that OpenVINO's format keeps beside it, the file and the report."""
    return [*_network_files(output), _report(output)]


def name_files(output: Path) -> list[str]:
    """All files of an export that is there, for people: the file itself first, with sizes in megabytes."""
    networks = [f"{file} ({file.stat().st_size / 1e6:.1f} MB)" for file in reversed(_network_files(output))]
    return [*networks, str(_report(output))]


@contextmanager
def workspace_for(output: Path) -> Iterator[str]:
    """A hidden folder on the disk of ``output``, so that finished files only have to be moved.

    Raises:
        UserError: Nothing can be written there, or not all of it, as on a full disk.
    """
    hidden = f".{output.name}."
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=hidden) as folder:
            yield folder
    except OSError as error:
        if error.filename is not None and hidden not in str(error.filename):
            raise  # of a file that is read
        raise UserError(f"{str(output)!r} cannot be written: {error.strerror or first_line(error)}.") from error


def save_onnx(model: Any, path: Path, config: Mapping[str, Any]) -> None:
    """Write an ``onnx.ModelProto`` with the network's configuration in it."""
    import onnx

    onnx.helper.set_model_props(model, {CONFIG_KEY: json.dumps(config)})
    onnx.save(model, path)


def save_openvino(model: Any, path: Path, config: Mapping[str, Any], half: bool = False) -> None:
    """Write an ``openvino.Model`` with the network's configuration in it; ``half`` stores weights in 16 bits.

    Raises:
        OSError: It could not be written, or not whole.
    """
    model.set_rt_info(json.dumps(config), [CONFIG_KEY])
    make_room(model)
    try:
        require("openvino", "openvino").save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:  # which does not say why
        reason = f"OpenVINO could not write all of it; the disk may be full ({first_line(error)})"
        raise OSError(errno.EIO, reason, str(path)) from error
    tie_together(path)


def size_mb(path: Path) -> float:
    """Size of an exported file, and of the weights beside it, in megabytes (10⁶ bytes)."""
    return sum(file.stat().st_size for file in _network_files(path)) / 1e6


def put_in_place(finished: Path, output: Path) -> None:
    """Move an exported file, the weights beside it and its report to where they are wanted."""
    if len(_network_files(output)) > 1:
        output.unlink(missing_ok=True)  # nobody shall read an older graph with the new weights
    for file, place in zip(files_of(finished), files_of(output), strict=True):
        file.replace(place)


def write_report(output: Path, report: Mapping[str, Any]) -> None:
    """Write the report on an exported file beside it, as ``<file>.json``."""
    write_json(_report(output), report)


def _network_files(path: Path) -> list[Path]:
    """The file, after the weights that OpenVINO's format keeps beside it."""
    return [path.with_suffix(".bin"), path] if path.suffix == SUFFIXES["openvino"] else [path]


def _report(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")
