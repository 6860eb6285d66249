"""Settings of a training run: types, ranges, YAML, recipes, and the options that `partialnet train` makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from partialnet.errors import RunInterrupted, UserError
from partialnet.training.config import TrainConfig
from partialnet.training.recipes import load_recipe, recipe_names, recipe_values
from partialnet.training.settings import (
    as_yaml,
    create_settings,
    parse_setting,
    read_settings,
    setting_type,
    settings_of,
)
from partialnet_cli import main

#: Table 8 of the paper, by variant: batch, lr, weight decay, stochastic depth, clipping, RandAugment, mixup
TABLE_8 = {
    "t0": (4096, 0.004, 0.005, 0.0, None, None, 0.05),
    "t1": (4096, 0.004, 0.01, 0.02, None, "rand-m3-mstd0.5", 0.1),
    "t2": (4096, 0.004, 0.02, 0.05, None, "rand-m5-mstd0.5", 0.1),
    "s": (4096, 0.004, 0.03, 0.1, None, "rand-m7-mstd0.5", 0.3),
    "m": (2048, 0.002, 0.05, 0.2, 1.0, "rand-m7-mstd0.5", 0.5),
    "l": (2048, 0.002, 0.05, 0.3, 0.01, "rand-m7-mstd0.5", 0.7),
}


@pytest.mark.parametrize("size", TABLE_8)
def test_imagenet_recipe_is_table_8(size: str) -> None:
    config = load_recipe("imagenet", model=f"partialnet_{size}")
    found = (
        config.lr_batch,
        config.lr,
        config.weight_decay,
        config.drop_path_rate,
        config.clip_grad,
        config.auto_augment,
        config.mixup,
    )
    assert found == TABLE_8[size]
    assert config.random_sizes == (128, 160, 192, 224, 256, 288)
    assert (config.epochs, config.warmup_epochs, config.label_smoothing, config.cutmix) == (300, 20, 0.1, 1.0)
    assert (config.test_crop, config.optimizer, config.schedule, config.ema) == (0.9, "adamw", "cosine", None)


def test_other_networks_share_the_recipe() -> None:
    config = load_recipe("imagenet", model="fasternet_t0")
    assert dataclasses.replace(config, model="partialnet_t0") == load_recipe("imagenet", model="partialnet_t0")


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_survive_being_printed(name: str) -> None:
    config = load_recipe(name)
    text = as_yaml(config, "title")
    assert create_settings(TrainConfig, yaml.safe_load(text)) == config
    assert set(yaml.safe_load(text)) == set(settings_of(TrainConfig))
    for setting in settings_of(TrainConfig).values():
        assert setting.metadata["help"] in text


def test_a_title_stays_in_its_comment() -> None:
    text = as_yaml(TrainConfig(), "Trained on pho\udcfftos\nlr: 7\u2028")
    assert text.startswith("# Trained on pho?tos?lr: 7?\n")
    assert create_settings(TrainConfig, yaml.safe_load(text.encode())) == TrainConfig()


def strategy(name: str) -> st.SearchStrategy[Any]:
    """Allowed values of a setting."""
    metadata = settings_of(TrainConfig)[name].metadata
    optional, kind = setting_type(TrainConfig, name)
    least, most = max(metadata["least"], -1e6), min(metadata["most"], 1e6)
    if metadata["choices"]:
        item: st.SearchStrategy[Any] = st.sampled_from(metadata["choices"])
    elif kind in (float, tuple[float, ...]):
        item = st.floats(least, most)
    elif kind in (int, tuple[int, ...]):
        item = st.integers(int(least), int(most))
    elif kind is bool:
        item = st.booleans()
    elif kind is str:
        item = st.text(min_size=1, max_size=12)
    else:
        return st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers() | st.text(max_size=4), max_size=3)
    if kind in (tuple[float, ...], tuple[int, ...], tuple[str, ...]):
        return st.lists(item, max_size=3).map(tuple)
    return st.none() | item if optional else item


@settings(max_examples=30, deadline=None)
@given(st.fixed_dictionaries({}, optional={name: strategy(name) for name in settings_of(TrainConfig)}))
def test_any_configuration_survives_yaml(values: dict[str, Any]) -> None:
    config = create_settings(TrainConfig, values)
    assert create_settings(TrainConfig, yaml.safe_load(as_yaml(config))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "no setting 'epoch'.*mean epochs"),
        ({"batch-size": 3}, "mean batch_size"),
        ({"epochs": 0}, "epochs is 0 but must be at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5 but must be a whole number"),
        ({"epochs": True}, "must be a whole number"),
        ({"lr": "fast"}, "lr is 'fast' but must be a number"),
        ({"lr": float("nan")}, "must be a number"),
        ({"lr": None}, "lr cannot be none"),
        ({"erasing": 1.5}, "at least 0 and at most 1"),
        ({"schedule": "cosin"}, "must be one of .*did you mean cosine"),
        ({"compile": "yes"}, "must be true or false"),
        ({"random_sizes": [64, "big"]}, "must be a whole number"),
        ({"random_sizes": [64, 2]}, "at least 8"),
        ({"loggers": ["wandbb"]}, "did you mean wandb"),
        ({"model_args": [1]}, "must be a mapping"),
        ({"model": "partialnet_t00"}, "no model 'partialnet_t00'.*partialnet_t0"),
        ({"auto_augment": "nothing"}, "timm does not understand"),
        ({"freeze_backbone": True}, "give weights"),
        ({"layer_decay": 0}, "layer_decay is 0 but must be at least"),
        ({"clip_grad": 0}, "clip_grad is 0 but must be at least"),
        ({"weights": ""}, "weights is empty"),
        ({"loggers": [""]}, "loggers is empty"),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        create_settings(TrainConfig, values).check()
    assert "\n" not in str(error.value)


def test_numbers_as_yaml_reads_them() -> None:
    """YAML 1.1 reads 1e-3 as text, and whole numbers where a fraction is meant."""
    config = create_settings(TrainConfig, yaml.safe_load("lr: 1e-3\nwarmup_epochs: 2\nrandom_sizes: [64, 96]\n"))
    assert config.lr == 1e-3
    assert isinstance(config.warmup_epochs, float)
    assert config.random_sizes == (64, 96)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nepochs: 3\nlr: 2\n", "'lr' is there twice in line 3"),
        ("model_args: {a: 1, b: 2, a: 3}\n", "'a' is there twice in line 1"),
        ("lr: [1\n", "is not a YAML file"),
        ("- lr\n", "of the form 'name: value'"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_settings(str(tmp_path / "settings.yaml"))
    assert "\n" not in str(error.value)


def test_a_folder_is_no_file_of_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: Is a directory\.$"):
        read_settings(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 1e-3),
        ("epochs", "12", 12),
        ("clip_grad", "none", None),
        ("random_sizes", "64, 96", (64, 96)),
        ("random_sizes", "none", ()),
        ("loggers", "wandb,mlflow", ("wandb", "mlflow")),
        ("auto_augment", "rand-m5-mstd0.5", "rand-m5-mstd0.5"),
    ],
)
def test_options_text(name: str, text: str, value: Any) -> None:
    assert parse_setting(TrainConfig, name, text) == value


def test_short_training_warms_up_for_the_recipes_share() -> None:
    recipe = load_recipe("imagenet")
    assert (recipe.epochs, recipe.warmup_epochs) == (300, 20)
    assert load_recipe("imagenet", epochs=30).warmup_epochs == 2
    assert load_recipe("imagenet", epochs=30, warmup_epochs=5).warmup_epochs == 5
    assert load_recipe("imagenet", epochs=600).warmup_epochs == 20


def test_unknown_recipe() -> None:
    with pytest.raises(UserError, match="Did you mean finetune"):
        recipe_values("fine-tune")


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[TrainConfig, str, Path, bool]]:
    """The runs that the command starts, instead of training."""
    import partialnet.training.run

    started: list[tuple[TrainConfig, str, Path, bool]] = []

    def train(config: TrainConfig, data: str, folder: Path, resume: bool = False) -> Any:
        started.append((config, data, folder, resume))
        return SimpleNamespace(accuracy=0.5, num_val=4, files=(folder / "model.safetensors",), epochs=1)

    monkeypatch.setattr(partialnet.training.run, "train", train)
    monkeypatch.chdir(tmp_path)
    return started


def test_options_replace_the_file_and_the_file_the_recipe(
    runs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nbatch_size: 5\nmodel_args: {drop_rate: 0.1, depths: [1, 1, 1, 1]}\n")
    arguments = ["train", "my photos", "--recipe", "finetune", "--config", str(file), "--batch-size", "9"]
    arguments += ["--model-args", "drop_rate=0.2", "--no-channels-last", "--clip-grad", "none", "--resume"]
    main(arguments)
    config, data, folder, resume = runs[0]
    assert (config.epochs, config.batch_size, config.channels_last, config.clip_grad) == (7, 9, False, None)
    assert config.model_args == {"drop_rate": 0.2, "depths": [1, 1, 1, 1]}
    assert config.layer_decay == load_recipe("finetune").layer_decay
    assert (data, folder, resume) == ("my photos", Path("runs/my-photos-partialnet_t0"), True)
    output = capsys.readouterr()
    assert "Recipe finetune" in output.err
    assert "50.0%" in output.out
    assert "partialnet predict runs/my-photos-partialnet_t0" in output.out


def test_the_file_and_the_options_are_checked_together(
    runs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frozen.yaml").write_text("freeze_backbone: true\n")
    main(["train", "photos", "--config", "frozen.yaml", "--weights", "runs/other"])
    assert (runs[0][0].freeze_backbone, runs[0][0].weights) == (True, "runs/other")
    with pytest.raises(SystemExit) as stop:
        main(["train", "photos", "--config", "frozen.yaml"])
    assert stop.value.code == 2
    assert "give weights" in capsys.readouterr().err
    assert len(runs) == 1


def test_the_option_replaces_the_recipe_of_the_file(runs: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: finetune\nepochs: 7\n")
    for option, recipe in (([], "finetune"), (["--recipe", "small"], "small")):
        main(["train", "photos", "--config", str(file), *option])
        assert runs[-1][0] == load_recipe(recipe, epochs=7)


@pytest.mark.parametrize(("data", "recipe"), [("digits", "digits"), ("photos/", "small")])
def test_default_recipe(data: str, recipe: str, runs: list[Any]) -> None:
    main(["train", data])
    assert runs[0][0] == load_recipe(recipe)


def test_every_setting_is_an_option(runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    text = capsys.readouterr().out
    for name in settings_of(TrainConfig):
        assert f"--{name.replace('_', '-')}" in text


def test_printed_configuration_can_be_used(runs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--recipe", "imagenet", "--model", "partialnet_s", "--lr", "3e-3", "--print-config"])
    assert not runs
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    main(["train", "photos", "--config", str(tmp_path / "printed.yaml")])
    assert runs[0][0] == load_recipe("imagenet", model="partialnet_s", lr=3e-3)


def test_interruption_says_resume_me(
    runs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise RunInterrupted("Stopped.", ("train", "my photos", "--resume"))

    Path("own.py").touch()
    monkeypatch.setattr("partialnet.training.run.train", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["--import", "own.py", "train", "photos"])
    assert stop.value.code == 75
    told = "partialnet: Stopped. Continue with: partialnet --import own.py train 'my photos' --resume\n"
    assert capsys.readouterr().err.endswith(told)


def test_too_little_memory_on_a_gpu_is_one_sentence(
    runs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("partialnet.training.run.train", exhausted)
    with pytest.raises(SystemExit) as stop:
        main(["train", "photos"])
    assert stop.value.code == 2
    assert "smaller batch size" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'DATA'"),
        (["photos", "--epoch", "3"], "--epochs"),
        (["photos", "--lr", "fast"], "lr is 'fast'"),
        (["photos", "--recipe", "imagnet"], "Did you mean imagenet"),
        (["photos", "--config", "missing.yaml"], "There is no configuration file 'missing.yaml'"),
        (["photos", "--model-args", "depth"], "should be KEY=VALUE"),
        (["photos", "--model-args", "depth=[1"], "cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [", "is not a YAML file.*line"),
        ("just words", "lines of the form"),
        ("epoch: 3", "no setting 'epoch' in .*mean epochs"),
        ("lr: fast", "lr is 'fast'"),
        ("!!python/object/apply:os.system ['true']", "is not a YAML file"),
    ],
)
def test_wrong_files(
    text: str, message: str, runs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["train", "photos", "--config", "wrong.yaml"])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not runs
