"""Comparisons: what the presets quote, the run that goes on where it stopped, and the files with their marks."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import Command, assert_mistake
from PIL import Image

from partialnet.bench import comparison as comparison_module
from partialnet.bench import peak as peak_module
from partialnet.bench.comparison import Comparison, Conditions, Measurement, select
from partialnet.bench.peak import Peak, measure_peak
from partialnet.bench.preset_report import write_report
from partialnet.bench.presets import MODERN, PAPER, PRESETS, PaperFigures, PresetRow
from partialnet.bench.timing import Timing
from partialnet.checkpoint import load
from partialnet.complexity import PAPER as TABLE_9
from partialnet.complexity import measure
from partialnet.errors import UserError

SMALL = (
    PresetRow("PartialNet-T0", "partialnet_t0", 64, 73.9, "paper", PaperFigures(4.3, 0.25, 7777, 11744, 12.2)),
    PresetRow("ResNet-Tiny", "test_resnet", 64, None, ""),
    PresetRow("LeViT-128S", "levit_128s", 64, 76.5, "timm: levit_128s.fb_dist_in1k"),  # is for 224² only
    PresetRow("EdgeViT", "edgevit_xxs", 64, 74.4, "nowhere"),  # timm has none
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of four small rows, and a peak that is found at once."""
    monkeypatch.setitem(PRESETS, "paper", SMALL)
    monkeypatch.setattr(peak_module, "_CONVOLUTIONS", ((1, 64, 8, 1),))
    monkeypatch.setattr(peak_module, "_openvino_computes_in", lambda precision: False)  # which is slow to begin
    monkeypatch.setattr(comparison_module, "measure_peak", lambda *arguments: measure_peak(*arguments, seconds=0.05))


@pytest.fixture
def compare(small: None, command: Command, tmp_path: Path) -> Command:
    """The command over the small preset, into the test's folder."""
    common = ("--seconds", "0.05", "-b", "2", "-a", "test_resnet", "-o", tmp_path)
    return lambda *arguments: command("bench", "--preset", "paper", *common, *arguments)


# -- what is quoted ------------------------------------------------------------------------------------------------


def test_the_paper_has_42_rows_and_all_exist_here() -> None:
    assert len(PAPER) == len({row.name for row in PAPER}) == 42
    assert all(row.exists() for row in (*PAPER, *MODERN))
    for row in PAPER:
        if row.family == "PartialNet":
            assert row.paper is not None
            assert row.paper.macs_g == TABLE_9[row.model][1]
            assert row.paper.params_m == pytest.approx(TABLE_9[row.model][0], abs=0.11)  # 104.3 there, 104.4 here


@pytest.mark.parametrize("name", ["EfficientNet-B3", "MobileViTv2-0.5", "EfficientViT-B1-192", "MobileNetV2 x1.4"])
def test_image_sizes_give_the_papers_multiply_adds(name: str) -> None:
    (row,) = select(PAPER, [name])
    found = measure(load(row.model).model, (3, row.img_size, row.img_size))
    assert row.paper is not None
    assert found.training.params_m == pytest.approx(row.paper.params_m, rel=0.03)
    assert found.folded.macs_g == pytest.approx(row.paper.macs_g, rel=0.05)


def test_modern_rows_name_the_weights_that_their_accuracy_belongs_to() -> None:
    families = {row.family for row in MODERN}
    assert families == {
        *("PartialNet", "RepViT", "SHViT", "MobileNetV4", "EfficientViT", "StarNet", "LeViT", "FastViT", "MobileOne")
    }
    for row in MODERN:
        if row.family == "PartialNet":
            continue
        weights = row.top1_source.rpartition(": ")[2]
        assert weights.partition(".")[0] == row.model
        assert weights in timm.list_pretrained(f"{row.model}.*")
        trained_for = re.search(r"_r(\d{3})_", weights)
        assert trained_for is None or int(trained_for[1]) == row.img_size
        assert row.distilled == ("dist" in weights)


def test_sizes_tell_members_of_a_family_apart() -> None:
    for rows in (PAPER, MODERN):
        assert len({(row.family, row.size) for row in rows}) == len(rows)


def test_select() -> None:
    assert [row.name for row in select(PAPER, ["fasternet_t0", "PARTIALNET-T0"])] == ["FasterNet-T0", "PartialNet-T0"]
    assert select(PAPER, []) == list(PAPER)
    with pytest.raises(UserError, match="no row 'resnet18'"):
        select(PAPER, ["resnet18"])


# -- the command ---------------------------------------------------------------------------------------------------


def test_command_writes_everything_and_marks_what_is_quoted(tmp_path: Path, compare: Command) -> None:
    done = compare()
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [(row["name"], row["runtime"]) for row in content["measurements"]] == [
        ("PartialNet-T0", "eager"),
        ("ResNet-Tiny", "eager"),
    ]
    assert list(content["failures"]) == ["LeViT-128S · eager"]
    assert content["missing"] == ["EdgeViT"]
    assert content["conditions"]["threads"] == 1
    assert {"cpu", "versions", "commit"} <= set(content["machine"])
    assert {"command", "date", "cpu", "versions", "commit"} <= set(content["sessions"][0])
    row = content["measurements"][0]
    assert row["gflops"] == pytest.approx(2 * row["macs_g"] / row["latency"]["median_ms"] * 1e3)
    assert row["images_per_second"] == pytest.approx(2e3 / row["throughput"]["median_ms"])
    assert row["latency"]["rounds"] >= 9
    assert row["params_m"] == pytest.approx(4.29, abs=0.01)

    with (tmp_path / "comparison.csv").open() as file:
        records = list(csv.DictReader(file))
    assert [record["top1_quoted_percent"] for record in records] == ["73.9", ""]
    assert records[0]["latency_ms_quoted"] == "12.2"
    assert [column for column in records[0] if "top1" in column] == ["top1_quoted_percent", "top1_quoted_from"]

    table = (tmp_path / "comparison.md").read_text()
    assert "top-1 % (quoted, not measured)" in table
    assert "Neither timm nor torchvision has here: EdgeViT." in table
    assert "Not measured: LeViT-128S · eager: " in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert Image.open(tmp_path / "accuracy_latency_eager.png").size == (2200, 1400)
    assert "top-1 % (quoted)" in done.out
    assert len([line for line in done.err.splitlines() if "LeViT-128S" in line]) == 1


def test_a_stopped_run_goes_on(tmp_path: Path, compare: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    original: Callable[..., Measurement] = comparison_module._measure

    def measure_one(row: PresetRow, *arguments: Any) -> Measurement:
        if measured:
            raise KeyboardInterrupt
        measured.append(row.name)
        return original(row, *arguments)

    monkeypatch.setattr(comparison_module, "_measure", measure_one)
    stopped = compare()
    assert stopped.code == 130
    assert "The same command continues" in stopped.err
    first = json.loads((tmp_path / "comparison.json").read_text())["measurements"]
    assert [row["name"] for row in first] == ["PartialNet-T0"]

    monkeypatch.setattr(comparison_module, "_measure", original)
    compare()
    second = json.loads((tmp_path / "comparison.json").read_text())
    assert second["measurements"][0] == first[0]
    assert len(second["measurements"]) == len(second["sessions"]) == len(second["peaks"]) == 2

    # other settings would mix what cannot be compared
    assert_mistake(compare("--threads", "2"), "threads was 1, is 2")
    assert json.loads((tmp_path / "comparison.json").read_text()) == second


def test_a_resumed_run_remembers_what_failed_and_what_does_not_exist(
    tmp_path: Path, compare: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Measurement] = comparison_module._measure

    def measure_one(row: PresetRow, *arguments: Any) -> Measurement:
        if row.name == "LeViT-128S":
            raise RuntimeError("It takes 224² only.")
        return original(row, *arguments)

    def result() -> tuple[list[str], dict[str, str], list[str]]:
        content = json.loads((tmp_path / "comparison.json").read_text())
        return [row["name"] for row in content["measurements"]], content["failures"], content["missing"]

    monkeypatch.setattr(comparison_module, "_measure", measure_one)
    failures = {"LeViT-128S · eager": "It takes 224² only."}
    done = compare("partialnet_t0", "levit_128s")
    assert result() == (["PartialNet-T0"], failures, ["EdgeViT"])
    assert "the same command without models measures the remaining rows" in done.out

    # other rows than those that failed: they stay named, in the tables too
    done = compare("test_resnet")
    assert result() == (["PartialNet-T0", "ResNet-Tiny"], failures, ["EdgeViT"])
    table = (tmp_path / "comparison.md").read_text()
    assert "Not measured: LeViT-128S · eager: It takes 224² only." in table
    assert "Neither timm nor torchvision has here: EdgeViT." in table
    # nothing is left that could be measured
    assert "the same command" not in done.out

    # what can be measured after all is no failure any more
    monkeypatch.setattr(
        comparison_module, "_measure", lambda row, *others: replace(original(SMALL[1], *others), name=row.name)
    )
    compare()
    assert result() == (["PartialNet-T0", "ResNet-Tiny", "LeViT-128S"], {}, ["EdgeViT"])


def test_a_runtime_that_cannot_run_the_reference_costs_no_other_rows(
    tmp_path: Path, compare: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("Nothing runs here.\nLook there.")

    monkeypatch.setattr("partialnet.bench.contestants.exported_runner", fail)
    done = compare("test_resnet", "--runtime", "onnxruntime,eager")
    assert done.code == 2
    sentence = "The reference test_resnet cannot be run in onnxruntime: Nothing runs here"
    last = done.err.splitlines()[-1]
    assert last == f"partialnet: {sentence}; no row was measured there, as all ratios refer to it."
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [(row["name"], row["runtime"]) for row in content["measurements"]] == [("ResNet-Tiny", "eager")]
    assert content["failures"] == {"test_resnet · onnxruntime": sentence}
    assert (tmp_path / "comparison.csv").exists()
    assert sentence in (tmp_path / "comparison.md").read_text()


def test_int8_says_how_it_was_calibrated(tmp_path: Path, compare: Command) -> None:
    done = compare("test_resnet", "--runtime", "onnxruntime", "--precision", "int8")
    (row,) = json.loads((tmp_path / "comparison.json").read_text())["measurements"]
    assert row["runtime"] == "onnxruntime"
    assert row["latency"]["median_ms"] > 0
    assert "calibrated on random images" in done.out
    assert "calibrated on random images" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "whose quantisers make it"),
        (["--runtime", "onnxruntime", "--precision", "bf16"], "no bf16"),
        (["resnet18"], "no row 'resnet18'"),
        (["--img-size", "64"], "give -o only"),
        (["--runtime", "tensorrt"], "no runtime"),
    ],
)
def test_mistakes(arguments: list[str], message: str, compare: Command) -> None:
    assert_mistake(compare(*arguments), message)


def test_output_folder_is_for_presets(tmp_path: Path, command: Command) -> None:
    assert_mistake(command("bench", "partialnet_t0", "-o", tmp_path), "-o is for presets")


def test_a_damaged_result_file_is_not_overwritten(tmp_path: Path, compare: Command) -> None:
    (tmp_path / "comparison.json").write_text('{"conditions": 3}')
    assert_mistake(compare(), "damaged")
    assert (tmp_path / "comparison.json").read_text() == '{"conditions": 3}'


# -- figures -------------------------------------------------------------------------------------------------------


def finished(rows: tuple[PresetRow, ...], preset: str) -> Comparison:
    """A comparison with made-up times for every row."""
    comparison = Comparison(
        Conditions(preset, "resnet50"), {"cpu": "A CPU", "gpu": None, "versions": {"openvino": "1.0"}, "commit": None}
    )
    comparison.peaks = [Peak(200.0, 1.0, "fp32", "openvino", "3×3", 1)]
    for number, row in enumerate(rows):
        ms = 2.0 + 1.3 * number
        timing = Timing(ms, ms, ms, ms / 20, ms / 20, ms / 20, 9)
        comparison.measurements.append(
            Measurement(row.name, "openvino", 5.0, 1.0, timing, timing, 20.0, 16e3 / ms, 2e3 / ms, 10 / ms)
        )
    return comparison


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_full_preset_is_drawn_in_every_familys_colour(preset: str, tmp_path: Path) -> None:
    rows = {"paper": PAPER, "modern": MODERN}[preset]
    *_, picture = write_report(tmp_path, finished(rows, preset), rows)
    colors = {tuple(color) for color in np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)[::7].tolist()}
    assert (0xD7, 0x30, 0x1F) in colors  # ours
    assert len(colors) > 100
    table = (tmp_path / "comparison.md").read_text()
    assert table.count("\n| ") == len(rows) + 2
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_steady_latency_undoes_a_slow_spell() -> None:
    comparison = finished(PAPER[:3], "paper")
    quiet_row = comparison.measurements[1]
    slow = Timing(40.0, 40.0, 40.0, 0.5, 0.5, 0.5, 9)  # the reference took 80 ms then, 20 ms before and after
    comparison.measurements[1] = Measurement(quiet_row.name, "openvino", 5.0, 1.0, slow, slow, 80.0, 1.0, 1.0, 1.0)
    assert comparison.steady_latency_ms(comparison.measurements[1]) == pytest.approx(10.0)


def test_peak_counts_two_operations_for_each_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_module, "_CONVOLUTIONS", ((3, 32, 8, 2),))
    monkeypatch.setattr(peak_module, "_shortest", lambda run, seconds, wait: 0.5)
    peak, once = measure_peak(1, "int8")
    assert peak.gflop == pytest.approx(2 * 4 * 2 * 8 * 8 * 32 * 32 * 9 / 1e9)
    assert peak.gflops == pytest.approx(peak.gflop / 0.5)
    assert peak.precision == "fp32"
    assert np.shape(once()) == (2, 32, 8, 8)


def test_the_peak_is_measured_in_pytorch_where_openvino_lacks_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # as on a CPU without bf16
    compiled = SimpleNamespace(get_property=lambda name: SimpleNamespace(to_string=lambda: "f32"))
    core = SimpleNamespace(compile_model=lambda *arguments: compiled)
    monkeypatch.setattr("partialnet.bench.runners.openvino_core", lambda: core)
    monkeypatch.setattr(peak_module, "_CONVOLUTIONS", ((1, 32, 8, 1),))
    peak, once = measure_peak(1, "bf16", seconds=0.01)
    assert (peak.runtime, peak.precision) == ("eager", "bf16")
    output = once()
    assert isinstance(output, torch.Tensor)
    assert output.dtype == torch.bfloat16
