"""`partialnet search` from its data to its plan, the plan's use, and what happens when it is killed or misused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
import yaml
from commands import Command, assert_mistake
from stored_networks import assert_bitwise_equal
from torch.overrides import TorchFunctionMode
from training_runs import DRAW_NOTHING, ON_ONE_CORE, TINY, metrics, write_photos
from warm_processes import WarmProcesses

from partialnet.checkpoint import create_checkpoint, load
from partialnet.errors import UserError
from partialnet.search import load_plan
from partialnet.search.config import SearchConfig
from partialnet.search.run import SearchRun, search
from partialnet.search.sweep import sweep
from partialnet.search.task import RATIO_PREFIX, SearchTask
from partialnet.training.settings import as_yaml, create_settings, settings_of

CONFIG = SearchConfig(
    model_args={**TINY, "head_hidden_size": 24},
    img_size=32,
    epochs=3,
    batch_size=8,
    warmup_epochs=1,
    lr=2e-3,
    lr_scaling="none",
    gate_travel=60.0,
    alpha=-1.0,
    **ON_ONE_CORE,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 20)


@pytest.fixture(scope="module")
def searched(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched") / "run"
    search(CONFIG, str(photos), folder)
    return folder


def test_metrics_hold_objective_and_every_ratio(searched: Path) -> None:
    found = metrics(searched)
    assert len(found) == CONFIG.epochs
    ratios = [name for name in found[0] if name.startswith(RATIO_PREFIX)]
    assert ratios == [f"{RATIO_PREFIX}stages.{stage}.blocks.0.mixer" for stage in range(4)]
    # the gates wait for the end of the warm-up, then the complexity, four times too high, presses them down
    assert {found[0][name] for name in ratios} == {0.25}
    assert found[-1]["zeta"] < found[0]["zeta"]
    for row in found:
        factor = max(1.0, row["zeta"] / row["kappa"])
        assert row["objective"] >= 0.5 * row["train_loss"]
        assert row["objective"] <= factor * row["train_loss"] + 10


class Waits(TorchFunctionMode):
    """Notes calls for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("without_pictures")
def test_a_step_reads_the_gates_of_all_layers_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading makes a GPU wait; the check for NaN, which waits on a CPU alone, is left out."""
    seen: list[tuple[bool, list[str]]] = []
    original = SearchTask.optimizer_step

    def step(task: SearchTask, *arguments: Any, **options: Any) -> None:
        with Waits() as waits:
            original(task, *arguments, **options)
        seen.append((task.progress.batch + 1 == task.num_batches, waits.found))

    monkeypatch.setattr(SearchTask, "optimizer_step", step)
    monkeypatch.setattr(SearchTask, "check_finite", lambda task, wait: None)
    search(replace(CONFIG, epochs=2), str(photos), tmp_path / "run")
    assert len(seen) == 2 * 6
    for last, waits in seen:
        assert waits == ["tolist"] * (5 if last else 1)  # at an epoch's end each of the four layers is put in order


@pytest.mark.usefixtures("without_pictures")
def test_pressure_grows_while_the_complexity_is_too_high(photos: Path, tmp_path: Path) -> None:
    # gates that cannot move keep to a complexity that is four times too high, or stay where it is met
    expected = {4.0: -0.01 * 64, 1.0: -0.01}
    for theta, alpha in expected.items():
        config = replace(CONFIG, theta=theta, alpha=-0.01, alpha_growth=64.0, gate_travel=0.0)
        folder = tmp_path / f"{theta}"
        search(config, str(photos), folder)
        found = [row["alpha"] for row in metrics(folder)]
        assert found[0] == -0.01  # in the first epoch, the warm-up, the gates could do nothing about it
        assert found[-1] == pytest.approx(alpha, rel=1e-4)


def test_plan_says_what_the_checkpoint_is(searched: Path) -> None:
    plan = load_plan(searched)
    checkpoint = load(searched)
    ratios = {
        name: module.split_ratio
        for name, module in checkpoint.model.named_modules()
        if name.endswith("mixer") and hasattr(module, "split_ratio")
    }
    assert plan.split_ratios == ratios
    assert plan.model_args["split_ratio"] == list(ratios.values())
    assert plan.theta == 4
    assert plan.search["config"]["seed"] == 0
    row = metrics(searched)[int(plan.search["epoch"]) - 1]
    assert row["zeta"] == pytest.approx(plan.zeta, rel=1e-5)
    channels = [16, 32, 64, 128]
    zeta = sum(c * c * ratio for c, ratio in zip(channels, ratios.values(), strict=True))
    assert plan.zeta == zeta
    assert plan.kappa == sum(c * c for c in channels) / 16
    for name in ("plan.png", "ratios.png", "curves.png", "config.yaml"):
        assert (searched / name).stat().st_size > 0


@pytest.mark.usefixtures("without_pictures")
def test_plan_trains_from_scratch_and_from_the_searched_weights(
    searched: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    options = ["--plan", searched / "plan.json", "--img-size", "32", "--epochs", "1", "--warmup-epochs", "0"]
    options += ["--workers", "0", "--device", "cpu", "--threads", "1", "--batch-size", "8"]
    assert "Weights: new." in command("train", photos, *options, "-o", tmp_path / "scratch").err
    done = command("train", photos, *options, "--init-from", searched, "-o", tmp_path / "warm")
    tensors = len(load(searched).model.state_dict())
    assert f"Weights: {tensors} of {tensors} tensors" in done.err
    ratios = load_plan(searched).model_args["split_ratio"]
    for run in ("scratch", "warm"):
        assert load(tmp_path / run).model_args["split_ratio"] == ratios


def test_info_shows_a_plan(searched: Path, command: Command) -> None:
    output = command("info", "--plan", searched).out
    assert "θ = 4" in output
    plan = load_plan(searched)
    assert f"split_ratio = {plan.model_args['split_ratio']}" in output
    assert "3 classes (blue, green, red)" in output
    total = next(line for line in output.splitlines() if line.startswith("total"))
    assert float(total.split()[1]) == pytest.approx(plan.params_m, abs=6e-4)  # as the search said
    # trained at another size it would not be the network that is shown
    assert f"Next: partialnet train DATA --plan {searched} --img-size 32\n" in output
    assert_mistake(command("info"))


@pytest.mark.usefixtures("without_pictures")
def test_scope_and_no_attention(photos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, scope="stage3", attention=False, epochs=2, gate_travel=200.0)
    result = search(config, str(photos), tmp_path / "run")
    assert list(result.plan.split_ratios) == ["stages.2.blocks.0.mixer"]
    ratios = result.plan.model_args["split_ratio"]
    assert [ratios[0], ratios[1], ratios[3]] == [0.25] * 3
    # the planned network attends, as the one that was searched
    assert any("attn" in name for name in load(tmp_path / "run").model.state_dict() if name.startswith("stages.2"))


@pytest.mark.usefixtures("without_pictures")
def test_converted_networks_are_searched_too(photos: Path, tmp_path: Path) -> None:
    """Any network of the registry with partial convolutions; here a small ResNet after surgery."""
    arguments = {"base": "resnet10t", "surgery": [{"select": r"layer[12]\.0\.conv2"}]}
    config = replace(CONFIG, model="converted", model_args=arguments, epochs=2, gate_travel=100.0)
    result = search(config, str(photos), tmp_path / "run")
    assert list(result.plan.split_ratios) == ["layer1.0.conv2", "layer2.0.conv2"]
    checkpoint = load(tmp_path / "run")
    assert checkpoint.architecture == result.plan.model == "planned"
    for name, ratio in result.plan.split_ratios.items():
        assert checkpoint.model.get_submodule(name).split_ratio == ratio
    folded = checkpoint.fold().model
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), checkpoint.model(images), rtol=1e-4, atol=1e-4)
    # a search goes on from a planned network
    again = search(replace(config, model="planned", model_args=result.plan.model_args), str(photos), tmp_path / "again")
    assert again.plan.model_args["network"] == "converted"
    assert list(again.plan.split_ratios) == list(result.plan.split_ratios)


def test_ratios_of_layers_that_are_not_there() -> None:
    with pytest.raises(UserError, match="'layer9' is not a partial convolution"):
        create_checkpoint("planned", network="resnet50_pat", split_ratios={"layer9": 0.5})
    with pytest.raises(UserError, match="no model named 'resnet51'"):
        create_checkpoint("planned", network="resnet51")


def test_gates_have_a_learning_rate_of_their_own(photos: Path) -> None:
    run = SearchRun()
    config = replace(CONFIG, layer_decay=0.5)
    task, _ = run.create_task(config, run.open_data(str(photos), config), 1)
    assert isinstance(task, SearchTask)
    optimizer = task.create_optimizer(config.lr)
    gates = {id(layer.gates) for layer in task.layers.values()}
    holding = [group for group in optimizer.param_groups if any(id(p) in gates for p in group["params"])]
    assert len(holding) == 1
    assert {id(p) for p in holding[0]["params"]} == gates
    assert holding[0]["weight_decay"] == 0
    every = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(task.network.parameters()))


@pytest.mark.usefixtures("without_pictures")
def test_killed_search_ends_with_the_same_bits(
    photos: Path, searched: Path, tmp_path: Path, warm_processes: WarmProcesses
) -> None:
    config = replace(CONFIG, save_minutes=0.0)
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    arguments = ("search", photos, "--config", tmp_path / "config.yaml", "-o", tmp_path / "run")
    process = warm_processes.start(*arguments, out=tmp_path / "out", before=DRAW_NOTHING)
    process.wait_until(lambda: list((tmp_path / "run" / "state").glob("*epoch-1-batch-2*")))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.err
    assert not (tmp_path / "run" / "plan.json").exists()
    search(config, str(photos), tmp_path / "run", resume=True)
    assert_bitwise_equal(load(tmp_path / "run").model.state_dict(), load(searched).model.state_dict())
    assert load_plan(tmp_path / "run").split_ratios == load_plan(searched).split_ratios


# -- sweeps ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
def test_sweep_keeps_finished_points(photos: Path, tmp_path: Path, command: Command) -> None:
    config = replace(CONFIG, epochs=1, warmup_epochs=0.0)
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    folder = tmp_path / "sweep"
    arguments = ("search", photos, "--config", tmp_path / "config.yaml", "-o", folder)
    told = command(*arguments, "--theta", "8,2").err
    assert told.count("(kept)") == 2
    assert "(best)" not in told  # of a search the latest epoch is kept
    first = (folder / "theta-2" / "plan.json").stat().st_mtime_ns
    refused = command(*arguments, "--theta", "2,4,8")
    assert refused.code == 2
    assert "--resume" in refused.err
    command(*arguments, "--theta", "2,4,8", "--resume")
    assert (folder / "theta-2" / "plan.json").stat().st_mtime_ns == first
    with (folder / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["theta"]) for row in table] == [2, 4, 8]
    for row in table:
        plan = load_plan(folder / f"theta-{float(row['theta']):g}")
        assert float(row["mean_split_ratio"]) == pytest.approx(plan.mean_ratio, abs=1e-6)
        assert plan.theta == float(row["theta"])
    assert (folder / "sweep.png").stat().st_size > 0
    with pytest.raises(UserError, match="epochs was 1 and is 3"):
        sweep(replace(config, epochs=3), [2.0], str(photos), folder, resume=True)
    fewer = shutil.copytree(photos, tmp_path / "fewer")
    next(fewer.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="images of the data differs"):
        sweep(config, [2.0], str(fewer), folder, resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")  # here; the cluster's processes draw
def test_sweep_on_a_ray_cluster(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from partialnet.search.ray_cluster import search_on_cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(photos.parent)
    config = replace(CONFIG, epochs=1, warmup_epochs=0.0)
    sweep(config, [2.0, 4.0], "photos", tmp_path / "here", search_points=None)
    result = sweep(config, [2.0, 4.0], "photos", tmp_path / "there", search_points=partial(search_on_cluster, "local"))
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for theta, plan in result.plans.items():
        here = tmp_path / "here" / f"theta-{theta:g}"
        assert plan.split_ratios == load_plan(here).split_ratios
        there = tmp_path / "there" / f"theta-{theta:g}"
        assert_bitwise_equal(load(there).model.state_dict(), load(here).model.state_dict())
        assert (there / "ratios.png").exists()
        assert not (there / "state").exists()


def test_ray_mistakes(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from partialnet.search.ray_cluster import search_on_cluster

    with pytest.raises(UserError, match="cannot be reached"):
        search_on_cluster("127.0.0.1:1", [(CONFIG, tmp_path)], str(photos))


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (UserError("There are no photos; choose others."), "There are no photos; choose others."),
        (RuntimeError("no such kernel\nmore"), "A search on the cluster failed: RuntimeError: no such kernel"),
        (ZeroDivisionError(), "A search on the cluster failed: ZeroDivisionError"),
    ],
)
def test_error_in_a_task_is_told_in_a_sentence(
    cause: Exception, told: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from partialnet.search.ray_cluster import search_on_cluster

    def fail(task: object) -> NoReturn:
        raise ray.exceptions.RayTaskError(
            "search", "\x1b[36mray::search\x1b[39m\nTraceback …", cause
        ).as_instanceof_cause()

    class OneTask:
        exceptions = ray.exceptions
        init = shutdown = staticmethod(lambda *args, **kwargs: None)
        remote = staticmethod(lambda **resources: lambda function: SimpleNamespace(remote=lambda *args: "task"))
        wait = staticmethod(lambda running, timeout: (running, []))
        get = staticmethod(fail)

    monkeypatch.setattr("partialnet.search.ray_cluster.require", lambda module, extra: OneTask)
    with pytest.raises(UserError) as error:
        search_on_cluster("local", [(CONFIG, tmp_path)], str(photos))
    assert (type(error.value), str(error.value)) == (UserError, told)


def test_paths_on_a_cluster_are_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from partialnet.search.ray_cluster import search_on_cluster

    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here / "one", here / "two", elsewhere):
        folder.mkdir(parents=True)
    found: dict[str, object] = {}

    def search(config: SearchConfig, data: str, folder: Path) -> None:
        found["data"] = [Path(part).is_dir() for part in data.removeprefix("wds/").split("::")]
        found["weights"] = config.weights
        folder.mkdir()
        (folder / "plan.json").write_text("{}")

    def run_elsewhere(function: Callable[..., object]) -> SimpleNamespace:
        def remote(*args: object) -> str:
            os.chdir(elsewhere)
            found["files"] = function(*args)
            return "task"

        return SimpleNamespace(remote=remote)

    class Ray:
        init = shutdown = staticmethod(lambda *args, **kwargs: None)
        remote = staticmethod(lambda **resources: run_elsewhere)
        wait = staticmethod(lambda running, timeout: (running, []))
        get = staticmethod(lambda task: found["files"])

    monkeypatch.setattr("partialnet.search.ray_cluster.require", lambda module, extra: Ray)
    monkeypatch.setattr("partialnet.search.ray_cluster.search", search)
    monkeypatch.chdir(here)
    config = replace(CONFIG, device="cpu", weights="one")
    search_on_cluster("local", [(config, tmp_path / "run")], "wds/one::two")
    assert found["data"] == [True, True]
    assert found["weights"] == "one"  # as given, or the sweep could not be continued
    assert (tmp_path / "run" / "plan.json").exists()


def test_missing_data_is_told_before_a_cluster_starts(tmp_path: Path) -> None:
    started: list[str] = []
    with pytest.raises(UserError, match="nowhere"):
        sweep(
            CONFIG, [2.0], str(tmp_path / "nowhere"), tmp_path / "sweep",
            search_points=lambda points, data: started.append(data),
        )  # fmt: skip
    assert not started
    assert not (tmp_path / "sweep").exists()


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_configuration_survives_yaml() -> None:
    text = as_yaml(replace(CONFIG, scope="stage3"), "title")
    assert create_settings(SearchConfig, yaml.safe_load(text)) == replace(CONFIG, scope="stage3")
    assert set(yaml.safe_load(text)) == set(settings_of(SearchConfig))


@pytest.mark.parametrize(("recipe", "epochs"), [("digits", 1), ("small", 3)])
def test_a_short_search_warms_up_for_the_recipes_share(recipe: str, epochs: int, command: Command) -> None:
    found = yaml.safe_load(command("search", "--recipe", recipe, "--epochs", epochs, "--print-config").out)
    assert (found["epochs"], found["warmup_epochs"]) == (epochs, 0.15)


def test_a_file_of_few_epochs(tmp_path: Path, command: Command) -> None:
    (tmp_path / "short.yaml").write_text("epochs: 10\n")
    printed = command("search", "--recipe", "small", "--config", tmp_path / "short.yaml", "--print-config").out
    assert yaml.safe_load(printed)["warmup_epochs"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--theta", "0.5"], "theta is 0.5 but must be at least 1"),
        (["--theta", "2,many"], "theta is 'many'"),
        (["--scope", "stage9"], "no partial convolution"),
        (["--scope", "("], "not a regular expression"),
        (["--ema", "0.9"], "average of gates"),
        (["--epochs", "2", "--warmup-epochs", "2"], "warmup_epochs=2 must be less than epochs=2"),
        (["--model", "resnet18"], "no partial convolution"),
        (["--complexity", "grouep"], "did you mean grouped"),
        (["--ray", "local"], "--ray searches several"),
        (["--theta", "2,4", "--devices", "2"], "each θ by one process"),
        (["--alpha", "0.1"], "alpha"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: Sequence[str], message: str, photos: Path, tmp_path: Path, command: Command
) -> None:
    refused = command("search", photos, "--device", "cpu", "-o", tmp_path / "run", *arguments)
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "run").exists()


def test_plan_of_another_model(searched: Path, command: Command) -> None:
    assert_mistake(command("train", "photos", "--plan", searched, "--model", "partialnet_s"), "leave --model out")
    content = json.loads((searched / "plan.json").read_text())
    assert content["model"] == "partialnet_t0"
