"""What timm and its users expect of every model: our own counterparts of timm's generic model tests."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from packaging.version import Version
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import create_feature_extractor, save_for_hf
from timm.utils import reparameterize_model
from timm_networks import VARIANTS, assert_every_parameter_has_gradient, every_variant, gradients, images, small
from torch import nn
from torch.fx import symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor as torchvision_extractor

from partialnet import fold

# -- registry and configuration ------------------------------------------------------------------------------------


def test_timm_lists_six_models() -> None:
    assert sorted(timm.list_models("partialnet*")) == sorted(VARIANTS)
    assert not timm.list_models("partialnet*", pretrained=True), "there are no weights to download"


@every_variant
def test_default_cfg(name: str) -> None:
    model = timm.create_model(name, device="meta").eval()
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    assert cfg["input_size"] == (3, 224, 224)
    assert cfg["pool_size"] == (7, 7)
    assert cfg["num_classes"] == 1000
    assert cfg["crop_pct"] == 0.9
    assert cfg["interpolation"] == "bicubic"
    assert (cfg["mean"], cfg["std"]) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    state_dict = model.state_dict()
    assert f"{cfg['classifier']}.weight" in state_dict
    assert f"{cfg['first_conv']}.weight" in state_dict
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])

    features = model.forward_features(torch.empty(1, 3, 224, 224, device="meta"))
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    model.reset_classifier(0)
    assert not any(key.startswith(cfg["classifier"] + ".") for key in model.state_dict())


@every_variant
def test_widths_and_depths_are_those_of_the_paper(name: str) -> None:
    width, depths = VARIANTS[name]
    model = timm.create_model(name, device="meta")
    assert model.num_features == 8 * width
    assert model.head_hidden_size == 1280
    assert tuple(len(stage.blocks) for stage in model.stages) == depths
    activation = nn.GELU if name in ("partialnet_t0", "partialnet_t1") else nn.ReLU
    assert isinstance(model.act, activation)
    assert isinstance(model.stages[0].blocks[0].mlp.act, activation)


def assert_fresh(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "table" or leaf == "bias":
            assert not parameter.any(), f"{name} starts at 0"
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), f"{name} starts at 1"
        else:
            tolerance = 0.02 * 4 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(0.02, abs=tolerance), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name
    for name, buffer in model.named_buffers():
        assert (buffer == name.endswith("running_var")).all(), f"{name} starts at 1 if it is a variance, else at 0"


def test_initialisation(randomize: Randomize) -> None:
    model = timm.create_model("partialnet_t2")
    assert_fresh(model)
    randomize(model)
    model.init_weights()
    assert_fresh(model)


def test_the_least_random_number_is_no_large_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes once in 2^24, and a network has as many weights: one of 2 was drawn among deviations of 0.02."""
    model = small()
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, least=0.0, *_, **__: tensor.fill_(least))
    model.init_weights()
    model.reset_classifier(5)
    assert max(p.abs().max().item() for p in model.parameters() if p.ndim > 1) <= 0.125


def test_initialisation_of_a_network_from_the_meta_device() -> None:
    with torch.device("meta"):
        model = timm.create_model("partialnet_t0", out_norms=True)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)  # memory holds anything
    model.init_weights()
    assert_fresh(model)


# -- forward and backward ------------------------------------------------------------------------------------------


@every_variant
def test_forward_and_backward(name: str) -> None:
    model = timm.create_model(name, drop_path_rate=0.0)
    output = model.train()(images())
    assert output.shape == (2, 1000)
    assert output.isfinite().all()
    output.square().mean().backward()
    assert_every_parameter_has_gradient(model)
    with torch.inference_mode():
        output = model.eval()(images(batch=1))
    assert output.shape == (1, 1000)
    assert output.isfinite().all()


def test_images_of_a_batch_do_not_influence_each_other_in_eval(randomize: Randomize) -> None:
    model = small(randomize).double().eval()
    x = images(batch=3, dtype=torch.float64)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize("channels", [1, 4])
def test_in_chans(channels: int) -> None:
    model = small(in_chans=channels)
    assert model(images(channels=channels)).shape == (2, 7)
    assert model.in_chans == channels
    with pytest.raises(RuntimeError, match="channels"):
        model(images(channels=3))


def test_drop_rate_acts_in_training_only(randomize: Randomize) -> None:
    model = small(randomize, drop_rate=0.5)
    x = images()
    features = model.eval().forward_features(x)
    kept = model.forward_head(features, pre_logits=True)
    dropped = model.train().forward_head(features, pre_logits=True)
    assert ((dropped == 0) & (kept != 0)).any()
    torch.testing.assert_close(dropped[dropped != 0], 2 * kept[dropped != 0])


def test_drop_path_grows_linearly() -> None:
    model = timm.create_model("partialnet_t0", drop_path_rate=0.24, device="meta")
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert isinstance(blocks[0].drop_path, nn.Identity)
    rates = [block.drop_path.drop_prob for block in blocks[1:]]
    assert rates == pytest.approx([0.02 * index for index in range(1, 13)], abs=1e-6)


def test_drop_path_acts_in_training_only(randomize: Randomize) -> None:
    plain, dropping = small(randomize), small(drop_path_rate=1.0)
    dropping.load_state_dict(plain.state_dict())
    x = images()
    torch.testing.assert_close(dropping.eval()(x), plain.eval()(x))
    assert not torch.allclose(dropping.train()(x), plain.train()(x))


@pytest.mark.parametrize(("name", "rate"), list(zip(VARIANTS, (0.0, 0.02, 0.05, 0.1, 0.2, 0.3), strict=True)))
def test_default_drop_path_rate_is_table_8s(name: str, rate: float) -> None:
    model = timm.create_model(name, device="meta")
    last = model.stages[-1].blocks[-1].drop_path
    assert (last.drop_prob if isinstance(last, DropPath) else 0.0) == pytest.approx(rate)


def test_gradient_checkpointing_changes_neither_outputs_nor_gradients(randomize: Randomize) -> None:
    plain = small(randomize, drop_path_rate=0.3).double().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    x = images(batch=4, dtype=torch.float64)
    outputs = []
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients(checkpointed), gradients(plain))

    runs = []
    block = checkpointed.stages[2].blocks[0]
    block.register_forward_pre_hook(lambda *_: runs.append(True))
    checkpointed(x).sum().backward()
    assert len(runs) == 2, "checkpointing did not take place"
    runs.clear()
    checkpointed.set_grad_checkpointing(False)
    checkpointed(x).sum().backward()
    assert len(runs) == 1, "checkpointing was not switched off"


# -- head ----------------------------------------------------------------------------------------------------------


@every_variant
def test_reset_classifier_to_features(name: str) -> None:
    """On the meta device, where even the largest network costs nothing."""
    model = timm.create_model(name, device="meta").eval()
    x = torch.empty(2, 3, 64, 96, device="meta")
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 3)
    assert model.forward_head(features).shape == (2, 1000)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.head_hidden_size, 2, 3)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_reset_classifier_to_other_classes(pool: str, randomize: Randomize) -> None:
    model = small(randomize).double().eval()
    x = images(dtype=torch.float64)
    before = model.forward_features(x)
    model.reset_classifier(3, pool)
    assert model.num_classes == 3
    assert model.get_classifier().weight.dtype == torch.float64
    assert not model.get_classifier().training
    assert model(x).shape == (2, 3)
    torch.testing.assert_close(model.forward_features(x), before)
    reference = {
        "avg": before.mean((2, 3)),
        "max": before.amax((2, 3)),
        "avgmax": (before.mean((2, 3)) + before.amax((2, 3))) / 2,
    }[pool]
    hidden = model.act(reference @ model.conv_head.weight.flatten(1).T)
    torch.testing.assert_close(model.forward_head(before, pre_logits=True), hidden)


def test_reset_classifier_back_from_a_map(randomize: Randomize) -> None:
    model = small(randomize).eval()
    classifier, x = copy.deepcopy(model.get_classifier()), images()
    before = model(x)
    model.reset_classifier(0, "")
    model.reset_classifier(7, "avg")
    model.classifier.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(model(x), before)


def test_no_classes_and_no_pooling_at_construction() -> None:
    x = images()
    assert small(num_classes=0)(x).shape == (2, 40)
    assert small(num_classes=0, global_pool="")(x).shape == (2, 40, 2, 2)
    assert isinstance(small(num_classes=0).get_classifier(), nn.Identity)


# -- scripting, tracing, copying -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_torchscript(training: bool, randomize: Randomize) -> None:
    model = small(randomize).double().train(training)
    scripted = torch.jit.script(copy.deepcopy(model))
    for x in (images(dtype=torch.float64), torch.randn(3, 3, 96, 32, dtype=torch.float64)):
        torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_torchscript_of_features_only(randomize: Randomize) -> None:
    model = small(randomize, features_only=True).eval()
    scripted = torch.jit.script(model)
    x = images()
    torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("features_only", [False, True])
def test_torchscript_of_folded(features_only: bool, randomize: Randomize) -> None:
    folded = reparameterize_model(small(randomize, features_only=features_only).eval())
    x = images()
    torch.testing.assert_close(torch.jit.script(folded)(x), folded(x))


def test_fx_feature_extractor_of_folded(randomize: Randomize) -> None:
    model = small(randomize).double().eval()
    extractor = create_feature_extractor(reparameterize_model(model), ["patch_embed", "stages.3", "classifier"])
    x = images(96, dtype=torch.float64)
    output = extractor(x)
    torch.testing.assert_close(output["stages.3"], model.forward_intermediates(x, indices=[3])[1][0])
    torch.testing.assert_close(output["classifier"], model(x))


def test_fx_feature_extractor(randomize: Randomize) -> None:
    model = small(randomize).double()
    extractor = create_feature_extractor(model, ["patch_embed", "stages.1", "classifier"])
    x = images(96, dtype=torch.float64)
    for training in (False, True):
        model.train(training)
        extractor.train(training)
        output = extractor(x)
        torch.testing.assert_close(output["patch_embed"], model.patch_embed(x))
        torch.testing.assert_close(output["stages.1"], model.forward_intermediates(x, indices=[1])[1][0])
        torch.testing.assert_close(output["classifier"], model(x))


@pytest.mark.parametrize(
    "form", [lambda model: model, fold, partial(fold, img_size=64)], ids=["plain", "folded", "sized"]
)
@pytest.mark.parametrize("features_only", [False, True])
def test_plain_symbolic_tracing(
    form: Callable[[nn.Module], nn.Module], features_only: bool, randomize: Randomize
) -> None:
    """``torch.fx`` without timm's list of what it should leave alone, as other tools use it."""
    model = form(small(randomize, features_only=features_only).eval())
    traced, x = symbolic_trace(model), images()
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


def test_feature_extractor_of_torchvision(randomize: Randomize) -> None:
    model = small(randomize).double()
    extractor = torchvision_extractor(model, ["stages.1", "stages.2.blocks.0.mixer.attn", "classifier"])
    x = images(96, dtype=torch.float64)
    for training in (False, True):
        model.train(training)
        output = extractor.train(training)(x)
        torch.testing.assert_close(output["stages.1"], model.forward_intermediates(x, indices=[1])[1][0])
        torch.testing.assert_close(output["classifier"], model(x))
    output["classifier"].sum().backward()
    assert_every_parameter_has_gradient(extractor)


def test_fx_graph_passes_gradients() -> None:
    extractor = create_feature_extractor(small(), ["classifier"]).train()
    extractor(images())["classifier"].square().mean().backward()
    assert_every_parameter_has_gradient(extractor)


def test_fx_features_only(randomize: Randomize) -> None:
    extractor = small(features_only=True, feature_cls="fx", out_indices=(0, 2)).eval()
    randomize(extractor)
    x = images()
    reference = small().eval()
    state_dict = {key.removeprefix("graph_module."): value for key, value in extractor.state_dict().items()}
    reference.load_state_dict(state_dict, strict=False)
    torch.testing.assert_close(extractor(x), reference.forward_intermediates(x, [0, 2], intermediates_only=True))


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_equal_and_independent(how: Any, randomize: Randomize) -> None:
    model = small(randomize).eval()
    twin = how(model)
    x = images()
    expected = model(x)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    randomize(model)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("out_norms", [False, True])
def test_state_dict_round_trip(out_norms: bool, randomize: Randomize) -> None:
    model, other = small(randomize, out_norms=out_norms).eval(), small(out_norms=out_norms).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = images()
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


# -- devices and data types ----------------------------------------------------------------------------------------


@every_variant
def test_meta_device(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    model.reset_classifier(5)
    assert model.get_classifier().weight.is_meta
    assert model.train()(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_meta_network_takes_real_weights(randomize: Randomize) -> None:
    model = small(randomize).eval()
    other = small(device="meta").eval()
    other.load_state_dict(model.state_dict(), assign=True)
    x = images()
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kwargs", [{}, {"out_norms": True}, {"mixers": [{"name": "pat_ch", "attention": "se"}] * 4}])
def test_dtype_at_construction(dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
    model = small(dtype=dtype, **kwargs)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    assert not {name: t.dtype for name, t in tensors.items() if t.is_floating_point() and t.dtype != dtype}
    assert model.eval()(images(dtype=dtype)).dtype == dtype
    model.reset_classifier(3)
    assert model(images(dtype=dtype)).dtype == dtype


# -- saving for others ---------------------------------------------------------------------------------------------

SAVED = {
    "default": {},
    "depths": {"depths": (1, 2, 1, 2)},
    "ratios": {"split_ratio": 0.5},
    "ratio per block": {"split_ratio": (0.25, 0.5, 0.125, 0.25, 0.5)},
    "mixers": {
        "mixers": ("pat_ch", "conv", {"name": "pat_ch", "attention": "srm"}, {"name": "pat_sf", "num_heads": 3})
    },
    "no PAT_sp": {"mlp_attention": False},
    "norms": {"out_norms": True},
    "stride": {"output_stride": 16},
    "activation": {"act_layer": "relu"},
    "channels": {"in_chans": 1},
}


#: A folder that timm writes tells how to build the network.
timm_records_arguments = pytest.mark.skipif(
    Version(timm.__version__) < Version("1.0.31"), reason="older timm records no arguments"
)


@timm_records_arguments
@pytest.mark.parametrize("arguments", SAVED.values(), ids=SAVED.keys())
def test_saved_for_the_hub_and_read_from_a_folder(
    arguments: dict[str, Any], tmp_path: Path, randomize: Randomize
) -> None:
    model = small(randomize, **arguments).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert (tmp_path / "model.safetensors").is_file()
    assert "model_args" in json.loads((tmp_path / "config.json").read_text())

    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(channels=model.in_chans)
    torch.testing.assert_close(read(x), model(x), rtol=0, atol=0)


@timm_records_arguments
def test_a_saved_network_adapts_to_other_classes_and_channels(tmp_path: Path, randomize: Randomize) -> None:
    model = small(randomize).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1).eval()
    grey = images(channels=1)
    torch.testing.assert_close(read.forward_features(grey), model.forward_features(grey.expand(-1, 3, -1, -1)))
    assert read(grey).shape == (2, 3)


@timm_records_arguments
def test_a_saved_network_gives_features(tmp_path: Path, randomize: Randomize) -> None:
    model = small(randomize).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    x = images()
    torch.testing.assert_close(read(x), model.forward_intermediates(x, intermediates_only=True))
