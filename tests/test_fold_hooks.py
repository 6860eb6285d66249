"""Hooks that users registered see in a folded network what they saw, and it computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from folded_networks import Parts, affines, batch_norms, images
from folded_networks import trained as other_trained
from folding import SmallCnn, outputs, relative_error, small, trained
from timm.layers import BatchNormAct2d
from timm.models.byobnet import MobileOneBlock
from timm.models.repvit import RepVggDw
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

from partialnet import fold
from partialnet.layers import DPConv, GaussianSE, PATConv, SelfAttention2d, pat_sp
from partialnet.layers.inference import Runtime
from partialnet.models.folded_block import EagerPartialNetBlock, FoldedPartialNetBlock
from partialnet.surgery.inverted_bottleneck import MixedExpansion

ONE_BLOCK = {"depths": (1, 1, 1, 1), "num_classes": 3}


class Recorder:
    """Collects what hooks see, outside the network; it cannot be copied while it holds values with a history."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Tensor]] = []

    def watch(self, model: nn.Module, *names: str) -> None:
        for name in names:
            model.get_submodule(name).register_forward_hook(partial(self._collect, f"{name} out"))
            model.get_submodule(name).register_forward_pre_hook(partial(self._collect, f"{name} in"))

    def _collect(self, name: str, module: nn.Module, *values: Any) -> None:
        value = values[-1][0] if isinstance(values[-1], tuple) else values[-1]
        self.seen.append((name, value.clone() if isinstance(value, Tensor) else torch.tensor(float(value))))

    def take(self) -> dict[str, Tensor]:
        seen, self.seen = dict(self.seen), []
        return seen


def assert_sees_the_same(recorder: Recorder, model: nn.Module, folded: nn.Module, *inputs: Tensor) -> None:
    """With and without autograd, which our eager form can tell apart."""
    assert recorder.seen == []
    for autograd in (True, False):
        with torch.set_grad_enabled(autograd):
            right = model(*inputs)
            expected = recorder.take()
            ours = folded(*inputs)
            seen = recorder.take()
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)
        assert list(seen) == list(expected) != []
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("runtime", [None, "torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("names", "folded_blocks"),
    [
        (["patch_embed", "stages.0", "stages.1.downsample", "stages.1.blocks.0", "stages.3.blocks.0"], 4),
        (["patch_embed.proj", "stages.1.downsample.norm", "stages.0.blocks.0.mixer", "stages.3.blocks.0.mixer"], 2),
        (["stages.0.blocks.0.mlp", "stages.3.blocks.0.mlp_attention", "stages.3.blocks.0.mixer.attn"], 2),
        (["stages.0.blocks.0.mlp.norm", "stages.1.blocks.0.mlp.fc2", "stages.2.blocks.0.mixer.attn.gate_norm"], 1),
        (["stages.0.blocks.0.mixer.conv", "stages.3.blocks.0.mixer.attn.qkv", "stages.1.blocks.0.mixer.attn"], 1),
        (["stages.0.blocks.0.mlp_attention.attn.conv", "stages.3.blocks.0.mixer.attn.position_bias"], 2),
    ],
)
def test_hooks_in_our_network(
    names: list[str], folded_blocks: int, runtime: Runtime | None, randomize: Randomize
) -> None:
    model = trained(small(**ONE_BLOCK), randomize)
    recorder = Recorder()
    recorder.watch(model, *names)
    folded = fold(model, runtime=runtime)
    assert_sees_the_same(recorder, model, folded, images(3, 64, 64))
    kinds = EagerPartialNetBlock if runtime == "torch" else FoldedPartialNetBlock
    assert sum(isinstance(module, kinds) for module in folded.modules()) == folded_blocks
    assert_sees_the_same(recorder, folded, fold(folded), images(3, 64, 64))


@pytest.mark.parametrize("runtime", [None, "torch"])
def test_hooks_on_every_module(runtime: Runtime | None, randomize: Randomize) -> None:
    model = trained(small(**ONE_BLOCK), randomize)
    recorder = Recorder()
    recorder.watch(model, *(name for name, _ in model.named_modules() if name))
    assert_sees_the_same(recorder, model, fold(model, runtime=runtime), images(3, 64, 64))


@pytest.mark.parametrize("runtime", [None, "torch", "onnxruntime"])
@pytest.mark.parametrize("part", ["", "part", "all"])
@pytest.mark.parametrize(
    "build",
    [
        *(partial(lambda index: SmallCnn().listed[index], index) for index in (0, 3, 5, 7, 8, 12)),
        lambda: pat_sp(32),
        lambda: MixedExpansion(PATConv(32), nn.Conv2d(32, 48, 1)),
        lambda: DPConv(32),
        lambda: DPConv(32, attention=SelfAttention2d),
    ],
)
def test_hooks_of_a_layer(
    build: Callable[[], nn.Module], part: str, runtime: Runtime | None, randomize: Randomize
) -> None:
    """On the layer, on one of its parts, on all of them; a norm behind could go into the layer."""
    layer = build()
    model = nn.Sequential(layer, nn.BatchNorm2d(48 if isinstance(layer, MixedExpansion) else 32))
    names = [f"0.{name}" for name, module in layer.named_modules() if name and type(module) is not nn.Identity]
    chosen = {"": ["0"], "part": names[:1], "all": ["0", *names]}[part]
    recorder = Recorder()
    trained(model, randomize)
    if isinstance(layer, DPConv):
        layer.put_gates_in_order()
    recorder.watch(model, *chosen)
    assert_sees_the_same(recorder, model, fold(model, runtime=runtime), images(32, 6, 5))


def test_hooks_keep_their_kind_and_order() -> None:
    """Keywords, being called when the forward fails, the first place, and what they make of a value."""
    calls: list[str] = []
    model = other_trained(nn.Sequential(PATConv(16), nn.Conv2d(16, 4, 1)))
    layer = model[0]

    def double(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        calls.append(f"double {len(args)} {len(kwargs)}")
        return 2 * output

    def shift(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append("shift")
        return (args[0] + 1,), kwargs

    layer.register_forward_hook(double, with_kwargs=True)
    layer.register_forward_hook(lambda *_: calls.append("first"), prepend=True)
    layer.register_forward_hook(lambda *_: calls.append("always"), always_call=True)
    layer.register_forward_pre_hook(shift, with_kwargs=True)
    folded = fold(model)
    assert calls == []
    x = images(16)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert calls == ["shift", "first", "double 1 0", "always"] * 2
    calls.clear()
    with pytest.raises(RuntimeError):
        folded(images(3))
    assert calls == ["shift", "always"]


def test_hooks_of_gradients() -> None:
    seen: list[Tensor] = []
    model = other_trained(nn.Sequential(nn.Conv2d(16, 16, 1), PATConv(16), nn.Conv2d(16, 4, 1)))
    model[1].register_full_backward_hook(lambda module, inputs, outputs: seen.extend((*inputs, *outputs)))
    x = images(16)
    for network in (model, fold(model), fold(model, runtime="torch")):
        network(x).square().sum().backward()
    assert len(seen) == 6
    for ours, right in zip(seen[2:], seen[:2] * 2, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


def test_removing_a_hook_of_the_copy(randomize: Randomize) -> None:
    """Handles that the network holds are copied with it, and know where the hook has gone."""
    model = trained(small(**ONE_BLOCK), randomize)
    block = model.stages[0].blocks[0]
    block.handle = block.register_forward_hook(lambda *_: pytest.fail("removed"))
    model.handle = block.handle
    folded = fold(model)
    folded.handle.remove()
    folded(images(3, 64, 64))
    with pytest.raises(pytest.fail.Exception, match="removed"):
        model(images(3, 64, 64))


class KeepsFeatures(nn.Module):
    """Its own method is the hook, bound to it; a copy must fill its own list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(PATConv(16), PATConv(16), nn.Conv2d(16, 4, 1))
        self.kept: list[Tensor] = []
        self.layers[0].register_forward_hook(self._keep)
        self.layers[1].register_forward_hook(partial(KeepsFeatures._keep, self))

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept.append(output)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.kept.clear()
        return [self.layers(x), *self.kept]


def test_hooks_bound_to_the_network_are_copied_with_it() -> None:
    model = other_trained(KeepsFeatures())
    folded = fold(model)
    x = images(16)
    assert relative_error(model, folded, x) < 1e-9
    assert len(outputs(folded, x)) == 3
    kept = model.kept
    model.kept = []
    folded(x)
    assert model.kept == []
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("partialnet_t0", {"feature_cls": "hook", "embed_dim": 16, "depths": (1, 1, 1, 1)}, 64),
        ("mobilenetv2_035", {"feature_location": "expansion"}, 32),
        ("resnet10t", {"feature_cls": "hook"}, 32),
    ],
)
@pytest.mark.parametrize("runtime", [None, "torch"])
def test_features_that_timm_takes_by_hooks(
    name: str, options: dict[str, Any], size: int, runtime: Runtime | None
) -> None:
    model = other_trained(timm.create_model(name, features_only=True, **options))
    folded = fold(model, runtime=runtime)
    x = images(3, size, size)
    assert len(outputs(folded, x)) == len(outputs(model, x)) > 1
    assert relative_error(model, folded, x) < 1e-9
    assert len(batch_norms(folded)) < len(batch_norms(model)) / 3


@pytest.mark.parametrize("watched", ["0", "0.conv_scale", "0.conv_scale.conv", "1", "1.conv", "1.conv.c"])
def test_hooks_of_modules_of_others_that_fold_themselves(watched: str) -> None:
    model = other_trained(nn.Sequential(MobileOneBlock(8, 8, 3), RepVggDw(8, 3), nn.BatchNorm2d(8)))
    recorder = Recorder()
    recorder.watch(model, watched)
    folded = fold(model)
    assert_sees_the_same(recorder, model, folded, images(8))
    assert batch_norms(folded) == []


@pytest.mark.parametrize("watched", ["first", "second", ""])
def test_hooks_on_modules_around_a_layer(watched: str) -> None:
    """A convolution and its BatchNorm in two modules: what goes from one to the other is seen by hooks of either."""
    model = other_trained(nn.Sequential())
    model.add_module("first", nn.Sequential(nn.Conv2d(3, 8, 3)))
    model.add_module("second", nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
    other_trained(model)
    if not watched:
        assert affines(fold(model)) == 0
        return
    recorder = Recorder()
    recorder.watch(model, watched)
    folded = fold(model)
    assert_sees_the_same(recorder, model, folded, images())
    assert affines(folded) == 1


@pytest.mark.parametrize("watched", ["1.drop", "1.act"])
def test_hooks_on_parts_of_a_norm_with_activation(watched: str) -> None:
    """Also on a part that does nothing, whose hook may change a value."""
    model = other_trained(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8)))
    recorder = Recorder()
    recorder.watch(model, watched)
    model.get_submodule(watched).register_forward_hook(lambda module, inputs, output: 2 * output)
    folded = fold(model)
    assert_sees_the_same(recorder, model, folded, images())
    assert affines(folded) == 0


def test_hooks_on_the_network() -> None:
    class Whole(Parts):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv2(self.bn1(self.conv1(x))))

    model = other_trained(nn.Sequential(Whole()))
    recorder = Recorder()
    recorder.watch(model, "", "0")
    folded = fold(model)
    assert_sees_the_same(recorder, model, folded, images())
    assert affines(folded) == 0


def test_hooks_beside_those_that_compute_weights(randomize: Randomize) -> None:
    model = trained(nn.Sequential(GaussianSE(16), PATConv(16)), randomize)
    for layer in (model[0], model[1].attn, model[1].conv):
        l1_unstructured(layer, "weight", 0.5)
    recorder = Recorder()
    recorder.watch(model, "0", "1")
    folded = fold(model)
    assert batch_norms(folded) == []
    assert_sees_the_same(recorder, model, folded, images(16))
    assert len(folded[0]._forward_pre_hooks) == 1


def test_recorder_that_holds_what_it_saw(randomize: Randomize) -> None:
    """It is no part of the network, so that nothing is copied and the folded network's features come to it."""
    model = trained(nn.Sequential(PATConv(16)), randomize)
    recorder = Recorder()
    recorder.watch(model, "0")
    model(images(16).requires_grad_())
    folded = fold(model)
    assert len(recorder.seen) == 2
    folded(images(16))
    assert len(recorder.seen) == 4


@pytest.mark.parametrize("runtime", [None, "torch"])
def test_hooks_of_a_network_for_one_size(runtime: Runtime | None, randomize: Randomize) -> None:
    """A bias whose hook doubles it becomes a constant, which the hook doubles once."""
    model = trained(small(**ONE_BLOCK), randomize)
    model.stages[3].blocks[0].mixer.attn.position_bias.register_forward_hook(lambda module, size, bias: 2 * bias)
    recorder = Recorder()
    recorder.watch(model, "stages.3")
    folded = fold(model, img_size=64, runtime=runtime)
    recorder.take()
    assert_sees_the_same(recorder, model, folded, images(3, 64, 64))
