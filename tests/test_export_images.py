"""Which images calibrate an export, which it is compared and tested on, and what is told of unreadable ones."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import Command

from partialnet.data import Subset
from partialnet.deploy.export import export
from partialnet.deploy.photos import collect_photos
from partialnet.errors import UserError

pytestmark = pytest.mark.usefixtures("converted_once")


def test_int8_is_tested_on_images_that_did_not_calibrate_it(exportable, labelled_patterns, tmp_path):
    photos = collect_photos((), labelled_patterns, calibrated=True)
    assert len(photos.calibration) == 60
    assert not set(photos.calibration.tolist()) & set(photos.comparison.tolist())
    assert sorted(np.bincount(labelled_patterns.labels[photos.test])) == [12] * 5
    few = collect_photos((), Subset(labelled_patterns, range(99)), calibrated=True)
    assert (few.held_out, len(few.calibration), len(few.comparison)) == (False, 99, 99)
    result = export(exportable, tmp_path / "net.onnx", precision="int8", labelled=labelled_patterns)
    assert result.accuracy is not None
    assert (result.accuracy.num_images, result.accuracy.held_out) == (60, True)
    # the labelled images decide whether the float file is kept
    assert result.same_class == result.accuracy.agreement
    assert (result.kept is None) == result.reliable


def test_images_that_int8_cannot_be_calibrated_with_are_known(patterns, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    found = collect_photos([tmp_path / "a.png", *patterns], None, calibrated=True)
    assert len(list(found.images(found.calibration))) == len(patterns)
    (unreadable,) = found.all_unreadable()
    assert unreadable.image == str(tmp_path / "a.png")
    with pytest.raises(UserError, match="None of the 1 images can be read"):
        collect_photos([tmp_path / "a.png"], None, calibrated=True)


def test_images_that_cannot_be_read_are_told(exportable, labelled_patterns, tmp_path, command: Command):
    exportable.save(tmp_path / "run")
    folder = tmp_path / "photos"
    shutil.copytree(labelled_patterns.root, folder / "classes")
    for name in ("classes/bee/aa.png", "classes/dog/aa.png"):
        (folder / name).write_bytes(b"no image")
    output = tmp_path / "net.safetensors"
    for calibration, names in (
        (folder / "classes", ("bee/aa.png", "dog/aa.png")),
        (folder, sorted(map(str, folder.rglob("aa.png")))),
    ):
        done = command("export", tmp_path / "run", "-f", "torch", "-o", output, "--calibration", calibration)
        assert done.code == 0
        assert f"Exporting {tmp_path / 'run'} to torch in fp32 …\n" in done.err
        assert "2 unreadable images were left out:\n" in done.err
        unreadable = json.loads(Path(f"{output}.json").read_text())["unreadable"]
        assert [one["image"] for one in unreadable] == list(names)
        assert all(one["reason"] in done.err for one in unreadable)
    for path in (folder / "classes").rglob("*.png"):
        path.write_bytes(b"no image")
    for calibration in (folder / "classes", folder):
        done = command(
            "export", tmp_path / "run", "-f", "torch", "-o", tmp_path / "new.safetensors", "--calibration", calibration
        )
        assert done.code == 2
        assert re.fullmatch(
            r"partialnet: None of the 122 images can be read; the first: '.*png' is not a .* image\.",
            done.err.splitlines()[-1],
        )
    assert not list(tmp_path.glob("new*"))
