"""The paper's ablations: configurations, figures, trainings and the command."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import Command, assert_mistake
from PIL import Image
from torch import nn

from partialnet.ablation import accuracy, measure, report
from partialnet.ablation.tables import PAPER_MODEL, TABLES, Row
from partialnet.bench.timing import Timing
from partialnet.checkpoint import load
from partialnet.complexity import ModuleCounts
from partialnet.errors import RunInterrupted, UserError
from partialnet.folding import fold
from partialnet.layers import PATConv, create_attention
from partialnet.training import engine
from partialnet.training.recipes import load_recipe

ROWS = [(number, row) for number, table in TABLES.items() for row in table.rows if row.model_args or number == 3]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright on the left and bright on the right, 16 training and 8 validation images each."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, number in (("train", 16), ("val", 8)):
        for label in ("left", "right"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 80, (32, 32, 3))
                pixels[:, :16] += 150 * (label == "left")
                pixels[:, 16:] += 150 * (label == "right")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


SMALL_ARGS = {"patch_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1]}
SMALL = ("--model", "partialnet_t0", "--img-size", "32")
SMALL += tuple(word for name, value in SMALL_ARGS.items() for word in ("--model-args", f"{name}={value}"))
TRAINING = ("--batch-size", "16", "--workers", "0", "--threads", "1", "--no-channels-last", "--horizontal-flip", "0")


def train_rows(command: Command, photos: Path, runs: Path, *arguments: str) -> tuple[int, str, str]:
    rows = ("--table", "4", "--row", "ch", "--row", "none", "--seconds", "0")
    return command("ablate", *rows, "--data", str(photos), "-o", str(runs), *SMALL, *TRAINING, *arguments)


# -- the tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "row"), ROWS, ids=[f"{number}-{row.name}" for number, row in ROWS])
def test_sizes_are_those_that_the_paper_prints(number: int, row: Row) -> None:
    """In the last printed digit where nothing is noted, else not within 1 %; multiply–adds within 1.5 %."""
    network = timm.create_model(PAPER_MODEL, device="meta", **row.arguments(PAPER_MODEL)).eval()
    params_m = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    if row.note:
        assert abs(params_m / row.paper.params_m - 1) > report.TOLERANCE
    else:
        assert params_m == pytest.approx(row.paper.params_m, abs=0.06)
    folded = ModuleCounts(fold(network), (3, 224, 224)).count(("",))
    assert folded.macs_g == pytest.approx(row.paper.macs_g, rel=0.015)


def test_the_full_network_stands_in_every_table_with_the_same_figures() -> None:
    full = [next(row for row in table.rows if row.name == table.reference) for table in TABLES.values()]
    assert [dict(row.model_args) for row in full] == [{}] * 4
    assert len({row.paper for row in full}) == 1


def test_rows_are_what_their_names_say() -> None:
    rows = {row.name: row for table in TABLES.values() for row in table.rows}

    def build(name: str) -> nn.Module:
        return timm.create_model("partialnet_t0", device="meta", **rows[name].arguments("partialnet_t0"))

    def kinds(name: str) -> list[str]:
        return [type(stage.blocks[0].mixer.attn).__name__ for stage in build(name).stages]

    assert kinds("none") == ["Identity"] * 4
    assert kinds("ch") == ["GaussianSE"] * 4
    assert kinds("ch + sp + sf") == ["GaussianSE"] * 3 + ["SelfAttention2d"]
    assert not any(
        isinstance(module, PATConv) for module in build("ch").modules() if getattr(module, "normalizes_conv", 0)
    )
    assert kinds("SE") == ["SEModule"] * 3 + ["SelfAttention2d"]
    assert build("SE").stages[0].blocks[0].mixer.attn.fc1.out_channels == 8  # a quarter of 24, in whole eights
    scopes = {
        name: [stage.blocks[0].mixer.attention_scope for stage in build(name).stages] for name in ("F-P-P", "P-P-F")
    }
    assert scopes == {"F-P-P": ["full"] * 3 + ["partial"], "P-P-F": ["partial"] * 3 + ["full"]}
    assert build("P-F-P").stages[0].blocks[0].mlp_attention.attention_scope == "full"
    assert build("Conv").stages[2].blocks[0].mixer.groups == 1
    wide = build("DWConv, widened")
    assert (
        wide.stages[0].blocks[0].mixer.groups == wide.feature_info[0]["num_chs"] == 36
    )  # 37, which four heads could not share
    assert wide.eval()(torch.rand(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_an_attention_with_arguments_is_a_mapping() -> None:
    layer = create_attention({"name": "se", "rd_ratio": 1 / 4}, 64)
    assert layer.fc1.out_channels == 16
    assert create_attention({"name": "gaussian_se", "dense": False}, 8).weight.shape == (8, 2)
    with pytest.raises(ValueError, match="does not take"):
        create_attention({"name": "se", "reduction": 4}, 64)
    with pytest.raises(ValueError, match="Unknown attention None"):
        create_attention({"rd_ratio": 1 / 4}, 64)


# -- the report --------------------------------------------------------------------------------------------------------


def test_ratios_and_deviations_are_those_of_the_times() -> None:
    """Times of 30 and 20 ms, batches of 300 and 100: worked out by hand."""
    table = TABLES[6]
    rows = table.select(["conv", "pat_ch"])
    costs = {
        "PAT_ch": measure.Cost({}, (3, 224, 224), 1000, 12.65, 1.034),
        "Conv": measure.Cost(rows[1].arguments(PAPER_MODEL), (3, 224, 224), 1000, 15.5, 2.12),
    }
    slow, fast = Timing(30, 29, 31, 1.5, 1.4, 1.6, 9), Timing(20, 19, 21, 1, 1, 1, 9)
    slow_batch, fast_batch = Timing(300, 290, 310, 3, 2.5, 4, 9), Timing(100, 90, 110, 1, 1, 1, 9)
    speeds = {
        "Conv": measure.Speed("eager", slow, slow_batch, 16),
        "PAT_ch": measure.Speed("eager", fast, fast_batch, 16),
    }
    ablation = report.Ablation(table, rows, PAPER_MODEL, costs, "PAT_ch", speeds={"eager": speeds})
    assert ablation.as_printed
    content = json.loads(json.dumps(ablation.as_dict()))
    pat, conv = content["rows"]
    assert (pat["name"], conv["name"]) == ("PAT_ch", "Conv")
    assert conv["paper_latency_ratio"] == pytest.approx(49.9 / 35.2)
    assert conv["speed"]["eager"]["images_per_second"] == pytest.approx(16 / 0.3)
    assert conv["deviation"]["params"] == pytest.approx(15.5 / 15.8 - 1)
    assert any("Conv: parameters deviate by more than 1%" in note for note in report.notes(content))
    size, speed = report.sections(content)
    assert size.rows[1] == ("Conv", "15.50", "15.8", "-1.9 %", "2.120", "2.12", "+0.0 %")
    assert speed.rows[1][2:5] == ("1.50 (1.40–1.60)", "1.42 (49.9 ms)", "+6 %")
    assert speed.rows[1][5:] == ("53.3", "0.33 (0.25–0.40)", "0.88 (4190/s)", "-62 %")
    assert report.as_markdown(content).count("| Conv |") == 2
    record = next(record for record in report.csv_records(ablation) if record["row"] == "Conv")
    assert (record["latency_ratio"], record["throughput_ratio"]) == (1.5, 0.3333)


@pytest.mark.parametrize(
    ("model", "arguments", "size", "classes"),
    [
        ("partialnet_t0", {}, 224, 1000),
        (PAPER_MODEL, {"mlp_ratio": 3}, 224, 1000),
        (PAPER_MODEL, {}, 64, 1000),
        (PAPER_MODEL, {}, 224, 10),
    ],
)
def test_other_networks_are_not_compared_with_the_printed_sizes(
    model: str, arguments: dict[str, int], size: int, classes: int
) -> None:
    rows = TABLES[4].select(["ch + sp + sf"])
    cost = measure.Cost(arguments, (3, size, size), classes, 12.6, 1.03)
    content = report.Ablation(TABLES[4], rows, model, {rows[0].name: cost}, rows[0].name).as_dict()
    assert not content["as_printed"]
    assert report.sections(content)[0].header == ("", "params M", "MACs G")


# -- the command -------------------------------------------------------------------------------------------------------


def test_sizes_and_speeds_in_all_files(command: Command, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("t.json", "t.csv", "t.md")]
    code, out, _ = command(
        "ablate",
        *("--table", "12", "--row", "srm", "--row", "gaussian-se", *SMALL),
        *("--runtime", "eager", "--seconds", "0.05", "--bench-batch-size", "2", "--processor-time"),
        *("--json", str(files[0]), "--csv", str(files[1]), "--markdown", str(files[2])),
    )
    assert code == 0
    assert "eager PyTorch, fp32, 1 thread, processor time" in out
    following = out.partition("Next: partialnet ablate --table 12 ")[2]
    assert f"--json {files[0]}" in following
    assert following.endswith(" --data DATA   (trains every row and adds its accuracy)\n")
    content = json.loads(files[0].read_text())
    assert [row["name"] for row in content["rows"]] == ["SRM", "Gaussian-SE"]
    assert content["environment"]["versions"]["torch"]
    assert content["clock"] == "processor time"
    for row in content["rows"]:
        assert row["speed"]["eager"]["latency"]["rounds"] >= 7
    with files[1].open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert files[2].read_text() == report.as_markdown(content)


def test_trainings_are_kept_continued_and_extended(command: Command, photos: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    code, out, err = train_rows(command, photos, tmp_path / "runs", "--epochs", "1", "--json", str(result))
    assert code == 0, err
    assert f"{photos.name}, 1 epoch, recipe small" in out
    assert "Next: partialnet predict" in out
    content = json.loads(result.read_text())
    none, ch = content["rows"]
    assert (none["num_classes"], none["input_size"]) == (2, [3, 32, 32])
    assert none["accuracy"]["runs"] == ["table4-none-seed0"]
    folder = tmp_path / "runs" / "table4-ch-seed0"
    with (folder / "metrics.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["val_accuracy"]) == ch["accuracy"]["values"][0]
    network = load(folder)
    assert sum(p.numel() for p in network.model.parameters()) / 1e6 == ch["params_m"]

    # again, with one seed more: what is finished is not touched
    before = (folder / "model.safetensors").stat().st_mtime_ns
    code, out, err = train_rows(
        command, photos, tmp_path / "runs", "--epochs", "1", "--seeds", "2", "--json", str(result)
    )
    assert code == 0, err
    assert err.count("finished in") == 2
    assert err.count("training in") == 2
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    ch = json.loads(result.read_text())["rows"][1]["accuracy"]
    assert ch["seeds"] == [0, 1]
    assert ch["mean"] == pytest.approx(sum(ch["values"]) / 2)
    assert ch["stdev"] == pytest.approx(abs(ch["values"][0] - ch["values"][1]) / 2**0.5)

    # other settings are refused before anything is trained
    code, _, err = train_rows(command, photos, tmp_path / "runs", "--epochs", "2", "--seeds", "2")
    assert code == 2
    assert "epochs was 1 and is 2" in err


def test_an_interrupted_run_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TABLES[4].select(["ch"])
    config = load_recipe(
        "small",
        model="partialnet_t0",
        model_args=SMALL_ARGS,
        img_size=32,
        epochs=2,
        batch_size=16,
        workers=0,
        threads=1,
    )
    configs = accuracy.row_configs(rows, config)
    finish = engine.RunKeeper._finish_epoch

    def stop_after_the_first(self, trainer, task, save) -> None:
        finish(self, trainer, task, save)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(engine.RunKeeper, "_finish_epoch", stop_after_the_first)
        with pytest.raises(RunInterrupted, match="The same command continues with"):
            accuracy.train_rows(TABLES[4], configs, str(photos), tmp_path)
    told: list[str] = []
    found = accuracy.train_rows(TABLES[4], configs, str(photos), tmp_path, told.append)["ch"]
    assert "training in" in told[0]
    with (found.folders[0] / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    accuracy.train_rows(TABLES[4], configs, str(photos), tmp_path, told.append)
    assert "finished in" in told[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--table", "5"), "'5' is not one of"),
        (("--table", "4", "--row", "All"), "Table 4 has no row 'All'"),
        (("--table", "4", "--model", "resnet18"), "'resnet18' is not one"),
        (("--table", "4", "--model-args", "mlp_attention=false"), "leave it out of --model-args"),
        (("--table", "4", "--epochs", "3"), "--epochs is for training: give --data"),
        (("--table", "4", "--threads", "2"), "--bench-threads"),
        (("--table", "4", "--seeds", "2"), "--seeds is for training"),
        (("--table", "4", "--data", "no/such/folder"), "There is no data 'no/such/folder'"),
        (("--table", "4", "--data", "digits", "--devices", "2"), "one process"),
        (("--table", "4", "--processor-time", "--bench-threads", "2"), "one CPU thread only"),
        (("--table", "4", "--runtime", "tensorrt"), "There is no runtime 'tensorrt'"),
        (("--table", "4", "--runtime", "tensorrt", "--seconds", "0"), "There is no runtime 'tensorrt'"),
        (("--table", "4", "--seconds", "0", "--csv", "./t", "--markdown", "t"), "'t' is named for two results"),
        (("--table", "4", "--seconds", "0", "--json", "t", "--csv", "t"), "'t' is named for two results"),
        (("--table", "4", "--json", "no/such/t.json"), "There is no folder 'no/such'"),
    ],
)
def test_mistakes_are_told_in_one_sentence(command: Command, arguments: tuple[str, ...], sentence: str) -> None:
    assert_mistake(command("ablate", *arguments), sentence)


def test_a_runtime_that_cannot_run_a_row_is_one_sentence(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("No working C++ compiler.\nLook there.")

    monkeypatch.setattr("partialnet.bench.contestants.fastest_form", fail)
    arguments = ("--table", "4", "--row", "none", "--model", "partialnet_t0", "--seconds", "0.1")
    done = command("ablate", *arguments)
    assert done.code == 2
    assert done.err.splitlines()[-1] == "partialnet: none cannot be run in eager: No working C++ compiler."


def test_a_folder_with_another_run_is_refused(photos: Path, tmp_path: Path) -> None:
    configs = accuracy.row_configs(TABLES[4].select(["ch"]), load_recipe("small", model="partialnet_t0"))
    folder = accuracy.run_folder(tmp_path, TABLES[4], 0, "ch") / "last"
    folder.mkdir(parents=True)
    other = {"config": {"lr": 5.0}, "data": {}, "processes": 1, "epoch": 9}
    (folder / "config.json").write_text(json.dumps({"training": other}))
    with pytest.raises(UserError, match="cannot continue like this"):
        accuracy.train_rows(TABLES[4], configs, str(photos), tmp_path)
