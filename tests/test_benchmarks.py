"""What the scripts in benchmarks share: the training step that they time, and trainings with several seeds."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import layer_choices
import pytest
import torch
import torch.nn.functional as F
import trainings
from result_file import RESULTS, result_file, result_parser
from search_step import search_step
from torch import Tensor, nn
from training_step import random_batch, training_step

from partialnet.layers import DPConv
from partialnet.search import Objective
from partialnet.training.config import TrainConfig
from partialnet.training.run_folder import METRICS_NAME

#: Those in benchmarks that write a result file.
SCRIPTS = sorted(
    path.stem
    for path in Path(layer_choices.__file__).parent.glob("*.py")
    if "write_json" in path.read_text() or path.stem == "gpu_suite"
)


def small_network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))


def test_random_batch():
    images, labels = random_batch(3, 8)
    assert images.shape == (3, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (3,)
    assert labels.dtype == torch.int64


def test_training_step_is_adamws():
    model, batch = small_network(nn.ReLU()), random_batch(4, 8)
    by_hand = copy.deepcopy(model)
    step = training_step(model)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-4)
    for _ in range(2):  # gradients are not to add up
        step(*batch)
        optimizer.zero_grad()
        F.cross_entropy(by_hand(batch[0]), batch[1]).backward()
        optimizer.step()
    for ours, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_training_step_in_mixed_precision():
    seen = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return F.cross_entropy(logits, labels)

    model = small_network(nn.ReLU())
    training_step(model, loss, autocast=torch.bfloat16)(*random_batch(2, 8))
    training_step(model, loss)(*random_batch(2, 8))
    assert seen == [torch.bfloat16, torch.float32]


def test_step_of_a_search_learns_by_its_objective():
    model, (images, labels) = small_network(DPConv(8)), random_batch(4, 8)
    layer = model[1]
    assert isinstance(layer, DPConv)
    with torch.no_grad():
        layer.gates.fill_(3.0)
    by_hand = copy.deepcopy(model)
    search_step(model, images, labels)()
    Objective()(F.cross_entropy(by_hand(images), labels), [by_hand[1]]).backward()  # type: ignore[list-item]
    for ours, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    expected_gates = copy.deepcopy(layer)
    expected_gates.clamp_gates()
    assert torch.equal(layer.gates, expected_gates.gates)


def test_each_network_gets_each_seed_and_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, int, int]] = []

    def pretend(run: object, configs: Mapping[Path, TrainConfig], *_: object) -> Iterator[Path]:
        for folder, config in configs.items():
            asked.append((folder.name, config.seed, config.epochs))
            folder.mkdir()
            (folder / METRICS_NAME).write_text(f"epoch,val_accuracy\n0,0.1\n1,{config.seed + config.lr}\n")
        yield from reversed(configs)

    monkeypatch.setattr(trainings, "run_in_processes", pretend)
    configs = {"fixed 1/4": TrainConfig(epochs=2, lr=0.25), "planned": TrainConfig(epochs=2, lr=0.5)}
    found = list(trainings.train_with_seeds(configs, 2, "data", tmp_path, 1))
    # runs of earlier versions go on under these names; all networks have a seed before the next one begins
    assert asked == [("fixed_1-4-2-0", 0, 2), ("planned-2-0", 0, 2), ("fixed_1-4-2-1", 1, 2), ("planned-2-1", 1, 2)]
    assert [(label, seed, rows[-1]["val_accuracy"]) for label, seed, rows in found] == [
        ("planned", 1, 1.5),
        ("fixed 1/4", 1, 1.25),
        ("planned", 0, 0.5),
        ("fixed 1/4", 0, 0.25),
    ]


def pretended_run(config: str, data: str, folder: Path, resume: bool) -> None:
    (folder / f"{config} {data} {resume}").touch()


def test_runs_in_processes(tmp_path: Path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    configs = dict(zip(folders, ("one", "two"), strict=True))
    assert sorted(trainings.run_in_processes(pretended_run, configs, "images", 1, "runs")) == folders
    assert [path.name for folder in folders for path in folder.iterdir()] == ["one images True", "two images True"]


def test_mean_and_stdev():
    assert trainings.mean_and_stdev([0.5]) == {"mean": 0.5, "stdev": None}
    assert trainings.mean_and_stdev([0.25, 0.75]) == {"mean": 0.5, "stdev": pytest.approx(0.125**0.5)}


def test_help_measures_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["layer_choices.py", "--help"])
    monkeypatch.setattr(layer_choices, "interleave", lambda *_, **__: pytest.fail("it measures"))
    with pytest.raises(SystemExit) as exit_:
        layer_choices.main()
    assert exit_.value.code == 0
    assert "--output" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_results_go_where_the_option_says(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A folder that is not there is told before anything is measured."""
    if script == "explain_faithfulness":
        pytest.importorskip("pytorch_grad_cam")
    monkeypatch.setattr("sys.argv", [script, "--output", str(tmp_path / "nowhere" / "result.json")])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main()
    assert stop.value.code == 2
    assert "argument --output: There is no folder" in capsys.readouterr().err


def test_result_file(tmp_path: Path):
    parser = result_parser("Measures.")
    assert result_file(parser.parse_args([]), "eager.json") == RESULTS / "eager.json"
    options = parser.parse_args(["--output", str(tmp_path / "mine.json")])
    assert result_file(options, "eager.json") == tmp_path / "mine.json"
