"""Settings of a training run: types, ranges, YAML and recipes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from partialnet.errors import UserError
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
        ("just words", "of the form 'name: value'"),
        ("!!python/object/apply:os.system ['true']", "is not a YAML file"),
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
