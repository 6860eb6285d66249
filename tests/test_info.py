"""``partialnet info``: structure and cost of networks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import CLASSES, Command

from partialnet.complexity import PAPER


@pytest.mark.parametrize("name", ["partialnet_t0", "partialnet_s"])  # all six: test_complexity.py
def test_info_of_a_variant(name: str, command: Command) -> None:
    result = command("info", name, "--json", "-")
    assert (result.code, result.err) == (0, "")
    data = json.loads(result.out)
    assert data["architecture"] == name
    complexity, paper = data["complexity"], data["paper"]
    assert (paper["params_m"], paper["macs_g"]) == PAPER[name]
    assert paper["params_deviation"] == pytest.approx(complexity["training"]["params_m"] / paper["params_m"] - 1)
    assert paper["macs_deviation"] == pytest.approx(complexity["folded"]["macs_g"] / paper["macs_g"] - 1)
    assert abs(paper["params_deviation"]) < 0.005
    assert abs(paper["macs_deviation"]) < 0.01


def test_info_as_text(command: Command) -> None:
    result = command("info", "partialnet_t0")
    assert (result.code, result.err) == (0, "")
    assert "partialnet_t0, 1000 classes, for 224×224 images" in result.out
    rows = {line.split()[0]: line.split() for line in result.out.splitlines() if line.strip()}
    assert rows["total"][1:] == ["4.292", rows["total"][2], "0.2595", rows["total"][4]]
    assert rows["paper"][-2:] == ["4.3", "0.25"]
    assert re.fullmatch(r"-0\.2%", rows["deviation"][1])
    assert max(len(line) for line in result.out.splitlines()) <= 100


def test_info_for_another_size(command: Command) -> None:
    data = json.loads(command("info", "partialnet_t0", "--img-size", 64, "--json", "-").out)
    assert data["complexity"]["input_size"] == [3, 64, 64]
    assert data["paper"] is None  # the paper's figures are for 224
    assert "Table 9" not in command("info", "partialnet_t0", "--img-size", 64).out


@pytest.mark.parametrize("source", ["folder", "file"])
def test_info_of_a_checkpoint(source: str, run_folder: Path, command: Command) -> None:
    path = run_folder if source == "folder" else run_folder / "model.safetensors"
    data = json.loads(command("info", path, "--json", "-").out)
    assert data["class_names"] == list(CLASSES)
    assert data["model_args"]["embed_dim"] == 16
    assert data["complexity"]["input_size"] == [3, 64, 64]
    assert data["paper"] is None
    text = command("info", path).out
    assert "3 classes (cat, dog, Übergröße)" in text
    assert "embed_dim = 16" in text
    assert f"partialnet predict {path}" in text


def test_info_of_another_network(command: Command) -> None:
    result = command("info", "resnet18")
    assert result.code == 0
    assert "11.690" in result.out


def test_json_of_a_network_in_a_file(tmp_path: Path, command: Command) -> None:
    result = command("info", "partialnet_t0", "--json", tmp_path / "t0.json")
    assert json.loads((tmp_path / "t0.json").read_text())["architecture"] == "partialnet_t0"
    assert "deviation" in result.out
