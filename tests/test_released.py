"""Checkpoints in the authors' layout: golden outputs of their network, and round trips that need no golden files."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from safetensors.torch import save_file
from stored_networks import released_layout
from torch import Tensor

from partialnet import PartialNet
from partialnet.checkpoint.foreign import load_released
from partialnet.errors import UserError
from partialnet.models.released import convert_released, is_released

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
# the golden files keep six decimals of float64 outputs
TOLERANCE = 2e-5

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{GOLDEN} with the authors' outputs is not there")


# -- golden outputs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    """The rule that generates the golden weights and images."""
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_network(name: str, fill: ModuleType) -> tuple[dict[str, Any], PartialNet, Tensor]:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    weights = {key: torch.from_numpy(fill.weight(key, shape)) for key, shape in golden["state_dict"].items()}
    released = convert_released(weights)
    assert released.left == ()
    assert released.arguments["embed_dim"] == golden["embed_dim"]
    assert list(released.arguments["depths"]) == golden["depths"]
    assert released.arguments["act_layer"] == golden["act"].lower()
    model = PartialNet(**released.arguments)
    assert model.stages[3].blocks[0].mixer.attn.num_heads == golden["num_heads"]
    missing, unexpected = model.load_state_dict(released.state_dict, strict=False)
    assert not unexpected
    assert set(missing) <= {"conv_head.weight"}, "only a detection backbone has no head"
    images = torch.from_numpy(fill.image(golden["image_key"], golden["image"])).double()
    return golden, model.double().eval(), images


@needs_golden
@pytest.mark.parametrize("name", ["released_t0_224x224", "released_t2_192x256"])
@torch.inference_mode()
def test_logits_are_the_authors(name: str, fill: ModuleType) -> None:
    golden, model, images = golden_network(name, fill)
    expected = torch.tensor(golden["logits"], dtype=torch.float64)
    assert expected.std() > 0.1, "the comparison says something"
    torch.testing.assert_close(model(images), expected, rtol=0, atol=TOLERANCE)


@needs_golden
@torch.inference_mode()
def test_feature_maps_are_the_authors(fill: ModuleType) -> None:
    golden, model, images = golden_network("released_t0_256x320_features", fill)
    maps = model.forward_intermediates(images, norm=True, intermediates_only=True)
    assert len(maps) == len(golden["features"]) == 4
    for output, expected in zip(maps, golden["features"], strict=True):
        assert list(output.shape) == expected["shape"]
        assert output.mean().item() == pytest.approx(expected["mean"], abs=TOLERANCE)
        deviations = [output.std(unbiased=unbiased).item() for unbiased in (False, True)]
        assert min(abs(deviation - expected["std"]) for deviation in deviations) <= TOLERANCE
        values = output.flatten()
        first, last = (torch.tensor(expected[key], dtype=torch.float64) for key in ("first", "last"))
        torch.testing.assert_close(values[:16], first, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(values[-16:], last, rtol=0, atol=TOLERANCE)


@needs_golden
def test_every_golden_file_is_checked() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == {
        "released_t0_224x224",
        "released_t2_192x256",
        "released_t0_256x320_features",
    }


# -- round trips ---------------------------------------------------------------------------------------------------


SRM = {"name": "pat_ch", "attention": "srm"}
ODD: dict[str, Any] = {
    "embed_dim": 40,
    "depths": (1, 1, 2, 1),
    "num_classes": 11,
    "head_hidden_size": 50,
    "act_layer": "gelu",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "heads, SRM, no PAT_sp": {
        "mixers": (SRM, SRM, SRM, {"name": "pat_sf", "num_heads": 6}),
        "mlp_attention": False,
    },
    "default": {},
    "PAT_ch in stage 4": {"mixers": ("pat_ch",) * 4},
    "partial convolutions only": {"mixers": ({"name": "pat_ch", "attention": None},) * 4, "mlp_attention": False},
    "ratio": {"split_ratio": 1 / 8},
    "ratio per block": {"split_ratio": (1 / 4, 1 / 2, 1 / 8, 1 / 16, 1 / 4)},
    "depths of another shape": {"depths": (2, 1, 1, 3)},
    "three stages": {"depths": (1, 1, 1), "mixers": ("pat_ch", "pat_ch", "pat_sf")},
    "channels, patches, MLP": {"in_chans": 1, "patch_size": 2, "mlp_ratio": 3},
    "output norms": {"out_norms": True},
    "wide, hence ReLU": {"embed_dim": 64, "act_layer": "relu"},
    "no classes": {"num_classes": 0},
}


def network(randomize: Randomize, **arguments: Any) -> PartialNet:
    model = PartialNet(**{**ODD, **arguments})
    randomize(model)
    return model.double().eval()


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model._orig_mod."])
@pytest.mark.parametrize("arguments", NETWORKS.values(), ids=NETWORKS.keys())
def test_network_is_rebuilt_from_its_released_tensors(
    arguments: dict[str, Any], prefix: str, randomize: Randomize
) -> None:
    model = network(randomize, **arguments)
    state_dict = released_layout(model, prefix)
    assert is_released(state_dict)
    released = convert_released(state_dict)
    assert released.left == ()
    assert set(released.renamed) == set(state_dict)
    assert set(released.renamed.values()) == set(model.state_dict())

    rebuilt = PartialNet(**released.arguments).double().eval()
    rebuilt.load_state_dict(released.state_dict, strict=True)
    x = torch.randn(2, model.in_chans, 64, 96, dtype=torch.float64)
    assert torch.equal(rebuilt(x), model(x))
    assert torch.equal(
        rebuilt.forward_intermediates(x, norm=True)[1][0], model.forward_intermediates(x, norm=True)[1][0]
    )


def test_arguments_are_inferred(randomize: Randomize) -> None:
    model = network(randomize, **NETWORKS["heads, SRM, no PAT_sp"])
    arguments = convert_released(released_layout(model, "model.")).arguments
    assert arguments["embed_dim"] == 40
    assert tuple(arguments["depths"]) == (1, 1, 2, 1)
    assert arguments["mixers"] == (SRM, SRM, SRM, {"name": "pat_sf", "num_heads": 6})
    assert arguments["split_ratio"] == 1 / 4
    assert arguments["num_classes"] == 11
    assert arguments["head_hidden_size"] == 50
    assert not arguments["mlp_attention"]
    assert not arguments["out_norms"]


@pytest.mark.parametrize(("width", "expected"), [(32, "gelu"), (48, "gelu"), (64, "relu"), (96, "relu")])
def test_activation_follows_the_width_unless_given(width: int, expected: str, randomize: Randomize) -> None:
    state_dict = released_layout(network(randomize, embed_dim=width))
    assert convert_released(state_dict).arguments["act_layer"] == expected
    assert convert_released(state_dict, act_layer="relu").arguments["act_layer"] == "relu"
    assert convert_released(state_dict, act_layer="gelu").arguments["act_layer"] == "gelu"


def test_converting_does_not_change_the_checkpoint(randomize: Randomize) -> None:
    state_dict = released_layout(network(randomize))
    before = {name: tensor.clone() for name, tensor in state_dict.items()}
    convert_released(state_dict)
    assert list(state_dict) == list(before)
    assert all(torch.equal(state_dict[name], before[name]) for name in before)


def test_our_own_layout_is_not_taken_for_theirs(randomize: Randomize) -> None:
    model = network(randomize)
    assert not is_released(model.state_dict())
    assert not is_released({f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    assert not is_released({})


def test_timms_fasternet_is_refused() -> None:
    """Its blocks carry the authors' names, its mergings do not."""
    with pytest.raises(UserError, match=r"another network"):
        convert_released(timm.create_model("fasternet_t0", device="meta").state_dict())


# -- through timm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model."])
def test_timm_reads_a_released_file(prefix: str, tmp_path: Path, randomize: Randomize) -> None:
    options: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 2, 1), "head_hidden_size": 30}
    model = network(randomize, **options).float()
    save_file({name: t.contiguous() for name, t in released_layout(model, prefix).items()}, tmp_path / "w.safetensors")
    overlay = {"file": str(tmp_path / "w.safetensors"), "num_classes": 11}
    x = torch.randn(2, 3, 64, 64)

    read = timm.create_model(
        "partialnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=11, **options
    ).eval()
    torch.testing.assert_close(read(x), model(x))
    other = timm.create_model(
        "partialnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **options
    ).eval()
    assert other(x).shape == (2, 3)
    torch.testing.assert_close(other.forward_features(x), model.forward_features(x))


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "stages.0.blocks.0.spatial_mixing.attn.fc.weight",
        "stages.0.blocks.0.spatial_mixing.partial_conv3.scale",
        "stages.0.blocks.0.layer_scale",
        "stages.0.blocks.0.mlp.5.weight",
        "stages.0.head.weight",
        "stages.1.blocks.0.mlp.0.weight",
        "stages.1.attention.weight",
        "patch_embed.position",
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_unknown_tensors_of_the_network_are_refused(name: str, prefix: str, randomize: Randomize) -> None:
    state_dict = released_layout(network(randomize), prefix)
    state_dict[prefix + name] = torch.zeros(1)
    with pytest.raises(UserError, match=re.escape(repr(prefix + name))):
        convert_released(state_dict)


def test_tensors_of_no_layer_are_left_and_reported(randomize: Randomize) -> None:
    model = network(randomize)
    state_dict = released_layout(model, "model.")
    extra = ["criterion.weight", "train_acc.total", "teacher.fc.bias"]
    released = convert_released({**state_dict, **{name: torch.zeros(1) for name in extra}})
    assert sorted(released.left) == sorted(extra)
    assert not set(extra) & set(released.renamed)
    for text in (*extra, str(len(state_dict)), "3 left"):
        assert text in released.report
    PartialNet(**released.arguments).load_state_dict(released.state_dict, strict=True)
    assert "0 left" in convert_released(state_dict).report


def test_no_missing_tensor_goes_unnoticed(tmp_path: Path, randomize: Randomize) -> None:
    """Whatever single tensor is missing, the converter or the loader of files tells the user."""
    model = network(randomize, embed_dim=16, depths=(1, 1, 1, 1), head_hidden_size=8)
    state_dict = released_layout(model.float())
    unnoticed = []
    for name in state_dict:
        if name.endswith("num_batches_tracked"):
            continue  # no output depends on it
        rest = {key: tensor for key, tensor in state_dict.items() if key != name}
        try:
            convert_released(rest)
            torch.save(rest, tmp_path / "checkpoint.pth")
            load_released(tmp_path / "checkpoint.pth")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        unnoticed.append(name)
    # without its weight there is no classifier, as in a backbone's checkpoint
    assert unnoticed == []


@pytest.mark.parametrize(
    "part", ["patch_embed.proj.weight", "partial_conv3.weight", "mlp.0.weight", "lookup_table_bias"]
)
def test_missing_tensors_are_named(part: str, randomize: Randomize) -> None:
    state_dict = released_layout(network(randomize))
    del state_dict[next(name for name in state_dict if name.endswith(part))]
    with pytest.raises(UserError, match=r"no '.+'.*incomplete"):
        convert_released(state_dict)


@pytest.mark.parametrize("part", [r"stages\.2\.", r"stages\.4\.blocks\.0\.", r"stages\.0\."])
def test_missing_blocks_and_stages_are_refused(part: str, randomize: Randomize) -> None:
    state_dict = released_layout(network(randomize))
    rest = {name: tensor for name, tensor in state_dict.items() if not re.match(part, name)}
    with pytest.raises(UserError, match="incomplete"):
        convert_released(rest)


@pytest.mark.parametrize("state_dict", [{}, {"head.weight": torch.zeros(3, 4)}], ids=["nothing", "head only"])
def test_a_checkpoint_without_the_network_is_refused(state_dict: dict[str, Tensor]) -> None:
    with pytest.raises(UserError):
        convert_released(state_dict)


def test_a_gate_of_another_shape_is_refused(randomize: Randomize) -> None:
    state_dict = released_layout(network(randomize))
    name = "stages.0.blocks.0.spatial_mixing.attn.cfc1.weight"
    state_dict[name] = state_dict[name][..., :1]
    with pytest.raises(UserError, match=r"\(30, 30, 1, 1\).*\(C, C, 1, 2\)"):
        convert_released(state_dict)


def test_blocks_of_a_stage_must_agree(randomize: Randomize) -> None:
    state_dict = released_layout(network(randomize))
    name = "stages.4.blocks.1.spatial_mixing.attn.cfc1.weight"
    state_dict[name] = state_dict[name][:, :1]
    with pytest.raises(UserError, match=r"stages\.2 differ"):
        convert_released(state_dict)
