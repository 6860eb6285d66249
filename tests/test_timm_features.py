"""Features of our networks through timm: pyramids, intermediate outputs, and backbones without the rest."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from conftest import Randomize
from timm_networks import VARIANTS, assert_every_parameter_has_gradient, every_variant, images, small
from torch import Tensor, nn


@every_variant
def test_features_only(name: str) -> None:
    width, _ = VARIANTS[name]
    model = timm.create_model(name, features_only=True, device="meta").eval()
    assert model.feature_info.channels() == [width, 2 * width, 4 * width, 8 * width]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    features = model(torch.empty(1, 3, 64, 96, device="meta"))
    assert [tuple(f.shape) for f in features] == [
        (1, channels, 64 // reduction, 96 // reduction)
        for channels, reduction in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (2,), (-1,), (-3, -2), 2], ids=str)
@pytest.mark.parametrize("out_norms", [False, True])
def test_features_only_gives_the_stages_outputs(
    out_indices: int | tuple[int, ...], out_norms: bool, randomize: Randomize
) -> None:
    model = small(randomize, out_norms=out_norms, num_classes=0).double().eval()
    x = images(dtype=torch.float64)
    _, expected = model.forward_intermediates(x, norm=out_norms)

    extractor = small(out_norms=out_norms, features_only=True, out_indices=out_indices).double().eval()
    loaded = extractor.load_state_dict(extractor_names(model, out_norms), strict=False)
    assert not loaded.missing_keys
    features = extractor(x)
    positions = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
    torch.testing.assert_close(features, [expected[position] for position in positions])
    assert extractor.feature_info.channels() == [f.shape[1] for f in features]
    assert extractor.feature_info.reduction() == [64 // f.shape[2] for f in features]


def extractor_names(model: nn.Module, getter: bool) -> dict[str, Tensor]:
    """timm's extractors hold the network as ``model``, or its stages as ``stages_0``, …"""
    if getter:
        return {f"model.{key}": value for key, value in model.state_dict().items()}
    return {key.replace("stages.", "stages_", 1): value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("depths", [(1, 2), (1, 1, 1, 1, 1)])
def test_features_only_gives_every_stage(depths: tuple[int, ...]) -> None:
    model = small(depths=depths, mixers=("pat_ch",) * len(depths), features_only=True, device="meta").eval()
    assert model.feature_info.reduction() == [4 * 2**stage for stage in range(len(depths))]


@pytest.mark.parametrize("kind", ["dict", "list", "hook", "fx"])
def test_norms_of_features_need_their_extractor(kind: str) -> None:
    assert small(features_only=True, feature_cls=kind)
    with pytest.raises(ValueError, match=f"feature_cls='{kind}' does not support out_norms.*'getter'"):
        small(features_only=True, out_norms=True, feature_cls=kind)


def test_features_only_can_be_trained() -> None:
    model = small(features_only=True)
    sum(f.square().mean() for f in model(images())).backward()
    assert_every_parameter_has_gradient(model)


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ([-4, 1], [0, 1])], ids=str
)
def test_forward_intermediates(indices: Any, taken: list[int], randomize: Randomize) -> None:
    model = small(randomize, out_norms=True).eval()
    x = images()
    stages = [model.patch_embed(x)]
    for stage in model.stages:
        stages.append(stage(stages[-1]))
    expected = [stages[index + 1] for index in taken]

    final, intermediates = model.forward_intermediates(x, indices=indices)
    torch.testing.assert_close(intermediates, expected)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(model.forward_head(final), model(x))

    only = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    torch.testing.assert_close(only, expected)

    normed = model.forward_intermediates(x, indices=indices, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed, [model.out_norms[i](e) for i, e in zip(taken, expected, strict=True)])

    early, intermediates = model.forward_intermediates(x, indices=indices, stop_early=True)
    torch.testing.assert_close(intermediates, expected)
    torch.testing.assert_close(early, stages[max(taken) + 1])


def test_stopping_early_does_not_run_later_stages() -> None:
    model = small()
    model.stages[2].register_forward_hook(lambda *_: pytest.fail("stage 2 ran"))
    model.forward_intermediates(images(), indices=[0, 1], stop_early=True)


def test_intermediates_without_norms_are_the_same_with_norm() -> None:
    model = small().eval()
    x = images()
    torch.testing.assert_close(
        model.forward_intermediates(x, norm=True, intermediates_only=True),
        model.forward_intermediates(x, norm=False, intermediates_only=True),
    )


def test_forward_intermediates_refuses_other_formats() -> None:
    with pytest.raises(ValueError, match=r"'NLC'.*NCHW"):
        small().forward_intermediates(images(), output_fmt="NLC")


@pytest.mark.parametrize("indices", [1, 3, [0], [1], [0, 2], [-1]], ids=str)
def test_prune_intermediate_layers(indices: Any, randomize: Randomize) -> None:
    model = small(randomize, out_norms=True).eval()
    x = images()
    expected = model.forward_intermediates(x, indices=indices, norm=True, stop_early=True)
    names = {name for name, _ in model.named_parameters()}

    taken = model.prune_intermediate_layers(indices)
    assert len(model.stages) == max(taken) + 1
    torch.testing.assert_close(model.forward_intermediates(x, indices=taken, norm=True), expected)
    pruned = {name for name, _ in model.named_parameters()}
    assert pruned < names
    assert not any(name.startswith(("conv_head", "classifier")) for name in pruned)
    torch.testing.assert_close(model(x), expected[0])
    assert model(x).shape[1] == model.num_features == model.head_hidden_size


def test_prune_keeps_what_it_is_told_to(randomize: Randomize) -> None:
    model = small(randomize, out_norms=True).eval()
    x = images()
    before = model(x)
    assert model.prune_intermediate_layers([1, 3], prune_norm=True, prune_head=False) == [1, 3]
    torch.testing.assert_close(model(x), before)
    assert not any(name.startswith("out_norms") for name, _ in model.named_parameters())


def test_a_pruned_network_can_be_trained() -> None:
    model = small()
    model.prune_intermediate_layers([1])
    model(images()).square().mean().backward()
    assert_every_parameter_has_gradient(model)


# -- output strides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "reduction"), [(32, [4, 8, 16, 32]), (16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])])
def test_output_stride(stride: int, reduction: list[int]) -> None:
    model = timm.create_model("partialnet_s", features_only=True, output_stride=stride, device="meta")
    assert model.feature_info.reduction() == reduction
    assert [tuple(f.shape[2:]) for f in model(torch.empty(2, 3, 64, 96, device="meta"))] == [
        (64 // r, 96 // r) for r in reduction
    ]
    plain = timm.create_model("partialnet_s", features_only=True, device="meta").state_dict()
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in plain.items()
    }


@pytest.mark.parametrize("stride", [16, 8, 4])
def test_output_stride_computes_more_positions_of_the_same_network(stride: int, randomize: Randomize) -> None:
    """Without attention, whose view of the map changes, the strided network's outputs are among them, bit for bit."""
    arguments = {"mixers": ("pat_ch", "conv", "dwconv", {"name": "pat_sf", "attention_scope": "full"})}
    plain, dilated = small(randomize, **arguments).double().eval(), small(output_stride=stride, **arguments).double()
    dilated.load_state_dict(plain.state_dict())
    for model in (plain, dilated):
        for stage in model.stages:
            for block in stage.blocks:
                if hasattr(block.mixer, "attn"):
                    block.mixer.attn = nn.Identity()
    x = images(96, dtype=torch.float64)
    outputs = dilated.eval().forward_intermediates(x, intermediates_only=True)
    for index, expected in enumerate(plain.forward_intermediates(x, intermediates_only=True)):
        every = max(4 * 2**index // stride, 1)
        torch.testing.assert_close(outputs[index][:, :, ::every, ::every], expected)


def test_output_stride_keeps_the_distances_of_the_position_bias(randomize: Randomize) -> None:
    plain, dilated = small(randomize), small(output_stride=8)
    dilated.load_state_dict(plain.state_dict())
    biases = [model.stages[3].blocks[0].mixer.attn.position_bias for model in (plain, dilated)]
    expected, every = biases[0](3, 5), biases[1](12, 20).unflatten(2, (12, 20)).unflatten(1, (12, 20))
    torch.testing.assert_close(every[:, ::4, ::4, ::4, ::4].flatten(3).flatten(1, 2), expected)
