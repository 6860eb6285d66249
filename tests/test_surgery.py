"""Convolutions of other people's networks replaced by PATConv."""

from __future__ import annotations

import itertools
import json
import re
import sys
import types
from pathlib import Path

import pytest
import timm
import torch
import yaml
from commands import Command, assert_mistake
from conftest import Randomize, randomize_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from partialnet.checkpoint import create_checkpoint, load
from partialnet.errors import UserError
from partialnet.folding import fold
from partialnet.layers import PATConv
from partialnet.surgery import replace_convs
from partialnet.surgery.converted import convert_checkpoint
from partialnet_cli.own_networks import import_own

ROOT = Path(__file__).parents[1]
DOCUMENT, EXAMPLES = ROOT / "docs" / "surgery.md", ROOT / "examples"
PHOTO = ROOT / "docs" / "images" / "explain_maps.png"


class Small(nn.Module):
    """One convolution of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.regular = nn.Conv2d(16, 24, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 24, 3, 1, 2, dilation=2, groups=4)
        self.depthwise = nn.Conv2d(24, 24, 5, 1, 2, groups=24)
        self.point = nn.Conv2d(24, 8, 1)
        self.even = nn.Conv2d(8, 8, 2, 2)
        self.valid = nn.Conv2d(8, 8, 3)
        self.up = nn.ConvTranspose2d(8, 8, 3, 1, 1)
        self.few = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.regular(self.stem(x))).relu()
        x = self.depthwise(self.grouped(x)).relu()
        return self.few(self.up(self.valid(self.even(self.point(x)))))


SIZE = (3, 32, 32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    groups=st.sampled_from([1, 2, 4, 0]),
    ins=st.integers(2, 5).map(lambda n: 4 * n),
    outs=st.integers(1, 5).map(lambda n: 4 * n),
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    bias=st.booleans(),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    ratio=st.sampled_from([1 / 4, 1 / 3, 1 / 2]),
    attention=st.sampled_from(["gaussian_se", "srm", "spatial_gate", "eca", None]),
)
def test_output_keeps_its_shape(groups, ins, outs, kernel, stride, dilation, bias, size, ratio, attention) -> None:
    groups, outs = (ins, ins) if groups == 0 else (groups, outs)
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(ins, outs, kernel, stride, padding, dilation, groups, bias)
    network = nn.Sequential(conv).double().eval()
    surgery = replace_convs(network, split_ratio=ratio, attention=attention, input_size=(ins, *size))
    assert isinstance(surgery.model[0], PATConv)
    x = torch.randn(2, ins, *size, dtype=torch.double)
    randomize_parameters(surgery.model)
    result = surgery.model(x)
    assert result.shape == network(x).shape
    assert result.dtype == x.dtype
    torch.testing.assert_close(fold(surgery.model)(x), result, rtol=1e-9, atol=1e-9)


def test_every_convolution_is_reported_with_the_reason() -> None:
    surgery = replace_convs(Small(), input_size=SIZE)
    notes = {layer.name: (layer.kind, layer.replaced, layer.note) for layer in surgery.layers}
    assert [name for name, (_, replaced, _) in notes.items() if replaced] == ["regular", "grouped", "depthwise"]
    assert notes["regular"] == ("regular", True, "kernel[:6, :4] kept")
    assert notes["grouped"] == ("grouped", True, "dense 6→6, fresh weights, bias of the convolved part kept")
    assert notes["depthwise"][0] == "depthwise"
    for name, reason in {
        "stem": "reads the image",
        "point": "1×1",
        "even": "even",
        "valid": "padding",
        "up": "transposed",
        "few": "too few",
    }.items():
        assert reason in notes[name][2]
        assert notes[name][2] in surgery.table()


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(8, 8, (3, 5), padding=(1, 2)), "not square"),
        (nn.Conv2d(8, 8, 3, (1, 2), 1), "not square"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "reflect"),
        (timm.layers.Conv2dSame(8, 8, 3, 2), "Conv2dSame"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)), "ParametrizedConv2d"),
        (PATConv(8), "part of a PATConv"),
    ],
)
def test_what_pat_conv_cannot_stand_for_is_kept(conv: nn.Module, reason: str) -> None:
    surgery = replace_convs(nn.Sequential(conv), input_size=(8, 9, 9))
    assert not surgery.replaced
    assert reason in surgery.layers[0].note


def test_shared_weights_are_kept_and_a_shared_layer_stays_shared() -> None:
    conv, other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding="same")
    surgery = replace_convs(nn.Sequential(conv, nn.ReLU(), conv, other), input_size=(8, 9, 9))
    assert len(surgery.replaced) == 2
    assert surgery.model[0] is surgery.model[2]
    other.weight = conv.weight
    assert not replace_convs(nn.Sequential(conv, other), input_size=(8, 9, 9)).replaced


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("regular", ["regular"]),
        ("depthwise", ["depthwise"]),
        ("^g", ["grouped"]),
        (["regular", "wise$"], ["regular", "depthwise"]),
        (lambda name, layer: layer.kernel_size == (5, 5), ["depthwise"]),
        ("nothing", []),
    ],
)
def test_selection(select, expected: list[str]) -> None:
    surgery = replace_convs(Small(), select, input_size=SIZE)
    assert [layer.name for layer in surgery.replaced] == expected
    again = replace_convs(Small(), **json.loads(json.dumps(surgery.recipe)), input_size=SIZE)
    assert {n: t.shape for n, t in again.model.state_dict().items()} == {
        n: t.shape for n, t in surgery.model.state_dict().items()
    }


def test_a_function_is_asked_once_for_each_layer() -> None:
    asked = itertools.count()
    surgery = replace_convs(Small(), lambda name, layer: next(asked) == 0, input_size=SIZE)
    assert len(surgery.replaced) == 1
    assert isinstance(surgery.model.get_submodule(surgery.replaced[0].name), PATConv)


def test_leading_block_and_bias_are_carried_over_and_the_original_is_untouched() -> None:
    network = Small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    surgery = replace_convs(network, split_ratio=1 / 2, input_size=SIZE)
    torch.testing.assert_close(surgery.model.regular.conv.weight, network.regular.weight[:12, :8], rtol=0, atol=0)
    torch.testing.assert_close(surgery.model.depthwise.conv.bias, network.depthwise.bias[:12], rtol=0, atol=0)
    with torch.no_grad():
        for tensor in surgery.model.parameters():
            tensor.fill_(1)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_dry_run_reports_the_same_and_changes_nothing() -> None:
    network = Small()
    modules = list(network.modules())
    dry = replace_convs(network, dry_run=True, input_size=SIZE)
    assert dry.model is network
    assert list(network.modules()) == modules
    assert dry.as_dict() == replace_convs(network, input_size=SIZE).as_dict()


def test_counts_are_those_of_the_layers() -> None:
    surgery = replace_convs(nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False)), attention=None, input_size=(8, 8, 8))
    (layer,) = surgery.layers
    assert layer.before.params_m * 1e6 == 8 * 16 * 9
    assert layer.before.macs_g * 1e9 == 8 * 16 * 9 * 16
    # 2 → 4 channels are convolved, 6 → 12 projected, at 4×4 positions
    assert layer.after.params_m * 1e6 == pytest.approx(2 * 4 * 9 + 6 * 12)
    assert layer.after.macs_g * 1e9 == pytest.approx((2 * 4 * 9 + 6 * 12) * 16)
    assert surgery.after == layer.after


def test_a_training_step_has_finite_gradients_everywhere() -> None:
    model = replace_convs(Small(), input_size=SIZE).model.train()
    model(torch.rand(2, *SIZE)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_ratio": 1.0}, "between 0 and 1"),
        ({"attention": "nonsense"}, "nonsense"),
        ({"attention": nn.Identity()}, "shared"),
        ({"attention_scope": "half"}, "attention_scope"),
        ({"select": "["}, "regular expression"),
        ({"input_size": (4, 32, 32)}, "does not run"),
    ],
)
def test_mistakes_are_told(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_convs(Small(), **{"input_size": SIZE, **options})


def test_code_that_reads_a_replaced_layer_is_told() -> None:
    class Reader(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self[0].weight.sum()

    with pytest.raises(UserError, match="The converted network does not run"):
        replace_convs(Reader(nn.Conv2d(8, 8, 3, padding=1)), input_size=(8, 8, 8))


@pytest.mark.parametrize(
    ("name", "count", "params_m"),
    [("resnet50", 16, 16.37), ("mobilenetv2_100", 17, 3.64), ("convnext_tiny", 18, 28.91)],
)
def test_presets(name: str, count: int, params_m: float) -> None:
    """The parameters are those that the document prints."""
    model = timm.create_model(f"{name}_pat").eval()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params_m, abs=0.006)
    layers = [module for module in model.modules() if isinstance(module, PATConv)]
    assert len(layers) == count
    assert model.pretrained_cfg["architecture"] == f"{name}_pat"
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_preset_as_backbone_gives_the_feature_maps_of_the_original() -> None:
    images = torch.rand(1, 3, 64, 64)
    ours, theirs = (timm.create_model(name, features_only=True).eval() for name in ("resnet50_pat", "resnet50"))
    assert sum(isinstance(module, PATConv) for module in ours.modules()) == 16
    with torch.no_grad():
        assert [f.shape for f in ours(images)] == [f.shape for f in theirs(images)]


def test_converted_network_is_saved_loaded_folded_and_converted_again(tmp_path: Path, randomize: Randomize) -> None:
    checkpoint = create_checkpoint("resnet18", ["cat", "dog"], num_classes=2)
    checkpoint.input_config["input_size"] = (3, 64, 64)
    first, _ = convert_checkpoint(checkpoint, select="layer2", attention="srm")
    second, surgery = convert_checkpoint(first, select=lambda name, layer: name == "layer4.1.conv2", attention=None)
    assert [layer.name for layer in surgery.replaced] == ["layer4.1.conv2"]
    randomize(second.model)
    second.save(tmp_path)
    again = load(tmp_path)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = second.model(x)
        torch.testing.assert_close(again.model(x), expected, rtol=0, atol=0)
        folded = fold(again.model.double())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(x.double()), again.model(x.double()), rtol=1e-9, atol=1e-9)
        # timm alone reads the folder, too
        torch.testing.assert_close(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), expected)
    assert again.class_names == ("cat", "dog")
    assert not any(isinstance(module, PATConv) for module in checkpoint.model.modules())
    with pytest.raises(UserError, match="folded"):
        convert_checkpoint(again.fold())


def test_command_writes_a_run_folder_that_train_takes(tmp_path: Path, monkeypatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    out = command("convert", "resnet10t", "--select", "layer3", "--dry-run").out
    assert "Nothing was converted yet" in out
    assert out.endswith("\nNext: partialnet convert resnet10t --select layer3\n")
    out = command("convert", "resnet10t", "--select", "nowhere", "--dry-run").out
    assert "Nothing would be replaced" in out
    assert "Next:" not in out
    assert not list(tmp_path.iterdir())
    done = command("convert", "resnet10t", "--select", "layer3", "--split-ratio", "0.5", "--json", "-")
    report = json.loads(done.out)
    assert report["num_replaced"] == sum(layer["replaced"] for layer in report["layers"]) == 2
    assert report["after"]["macs_g"] < report["before"]["macs_g"]
    assert load(report["written"]).model_args["surgery"][0]["split_ratio"] == 0.5
    config = yaml.safe_load(command("train", "digits", "--model", report["written"], "--print-config").out)
    assert config["model"] == "converted"
    assert config["model_args"]["base"] == "resnet10t"
    assert config["weights"] == report["written"]
    for arguments, message in (
        (["resnet10t"], "exists"),
        (["resnet10t", "--select", "nowhere", "-o", "other"], "No convolution was replaced"),
    ):
        assert_mistake(command("convert", *arguments), message)


@pytest.mark.parametrize("surgery", [{"ratio": 1}, "layer3", [{"split_ratio": 2.0}]])
def test_wrong_recipe_is_one_sentence(surgery) -> None:
    with pytest.raises(UserError):
        create_checkpoint("converted", base="resnet10t", surgery=surgery)


def test_a_network_of_torchvision_converts_trains_and_loads(tmp_path: Path, monkeypatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--select", "grouped", "--attention", "srm")
    assert "16 of 85 replaced" in command("convert", "torchvision:regnet_y_400mf", *options).out
    checkpoint = load("runs/regnet_y_400mf-pat")
    assert sum(isinstance(module, PATConv) for module in checkpoint.model.modules()) == 16
    assert checkpoint.input_config["crop_pct"] == pytest.approx(224 / 256)
    x = torch.rand(1, 3, 64, 64)
    timms = timm.create_model("local-dir:runs/regnet_y_400mf-pat", pretrained=True).eval()
    torch.testing.assert_close(timms(x), checkpoint.model(x), rtol=0, atol=0)
    printed = command("train", "digits", "--model", "torchvision:resnet18", "--print-config").out
    assert yaml.safe_load(printed)["model"] == "torchvision:resnet18"
    for name, near in (("torchvision:resnet1", "resnet18"), ("torchvision:fasterrcnn_resnet50_fpn", "no classifier")):
        with pytest.raises(UserError, match=near):
            load(name)
    with pytest.raises(UserError, match="3 channels"):
        create_checkpoint("torchvision:resnet18", in_chans=1)
    with pytest.raises(UserError, match="may not contain network"):
        create_checkpoint("torchvision:resnet18", network="resnet34")


def run_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Import one of the examples as ``partialnet --import`` does, and run it."""
    monkeypatch.delitem(sys.modules, name, raising=False)
    import_own(str(EXAMPLES / f"{name}.py"))
    module = sys.modules[name]
    module.main(folder)
    return module


def test_example_of_an_own_network(tmp_path: Path, monkeypatch, command: Command) -> None:
    run_example("own_network", tmp_path / "runs", monkeypatch)
    assert (tmp_path / "runs" / "smallnet.onnx").exists()
    assert json.loads((tmp_path / "runs" / "smallnet" / "config.json").read_text())["model_args"]["base"] == "smallnet"
    monkeypatch.chdir(tmp_path)
    own = ("--import", EXAMPLES / "own_network.py")
    assert "32×32; nothing folded" in command(*own, "convert", "smallnet", "--select", "regular").out
    assert command(*own, "info", "runs/smallnet-pat").code == 0
    command(*own, "explain", "smallnet", PHOTO, "-o", "explained")
    assert (tmp_path / "explained" / "maps.png").exists()


def test_example_of_a_neck(tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("detector_neck", tmp_path, monkeypatch)
    assert "10 of 26 replaced" in capsys.readouterr().out
    assert (tmp_path / "detector.onnx").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.py", None, "no such file"),
        ("json.py", "", "another module 'json'"),
        ("broken_network.py", "1 / 0", "ZeroDivisionError"),
        ("no_such_module", None, "No module named 'no_such_module'"),
    ],
)
def test_own_code_that_cannot_be_imported(
    name, content, message, tmp_path: Path, monkeypatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    assert_mistake(command("--import", name, "info", "partialnet_t0"), message)


def test_python_of_the_document() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["surgery"].replaced
