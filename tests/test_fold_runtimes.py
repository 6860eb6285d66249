"""Folding for one runtime: the forms it is given compute what the network computed."""

from __future__ import annotations

import pytest
import timm
import torch
from conftest import Randomize
from folding import (
    ONE_BLOCK,
    SETTINGS,
    SmallCnn,
    assert_no_batch_norm,
    outputs,
    relative_error,
    small,
    trained,
)

from partialnet import fold
from partialnet.layers.inference import RUNTIMES, Runtime
from partialnet.layers.self_attention import MapSelfAttention
from partialnet.layers.spatial_gate import PositionGate, SplitSpatialGate
from partialnet.models.folded_block import EagerPartialNetBlock

#: A layer that is in a network folded for the runtime alone
FORMS = {
    "torch": EagerPartialNetBlock,
    "onnxruntime": SplitSpatialGate,
    "openvino": MapSelfAttention,
    "litert": SplitSpatialGate,
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["partialnet_t0", "partialnet_s"])
def test_forms_of_a_variant(name: str, runtime: Runtime, randomize: Randomize) -> None:
    model = trained(timm.create_model(name, depths=(1, 1, 1, 1)), randomize)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for img_size in (None, (64, 96)):
        folded = fold(model, img_size, runtime)
        assert_no_batch_norm(folded)
        for layout in (torch.contiguous_format, torch.channels_last):
            folded = folded.to(memory_format=layout)
            assert relative_error(model, folded, images.contiguous(memory_format=layout)) < 1e-9
            with torch.enable_grad():  # nothing is written in place then
                logits = folded(images.contiguous(memory_format=layout))
            assert (logits.detach() - outputs(model, images)[0]).abs().max() < 1e-9 * logits.abs().max()
    assert any(isinstance(module, FORMS[runtime]) for module in folded.modules())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_forms_of_a_setting(setting: str, runtime: Runtime, randomize: Randomize) -> None:
    arguments = SETTINGS[setting]
    model = trained(small(**{"depths": (1, 1, 1, 1), **arguments, **ONE_BLOCK.get(setting, {})}), randomize)
    images = torch.randn(2, arguments.get("in_chans", 3), 64, 64, dtype=torch.float64)
    assert relative_error(model, fold(model, 64, runtime), images) < 1e-9


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_forms_of_features_and_own_networks(runtime: Runtime, randomize: Randomize) -> None:
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for model in (small(features_only=True, out_norms=True), SmallCnn()):
        model = trained(model, randomize)
        folded = fold(model, runtime=runtime)
        assert relative_error(model, folded, images) < 1e-9
        assert relative_error(model, fold(folded), images) < 1e-9
        assert relative_error(model, fold(folded, (64, 96), runtime), images) < 1e-9


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_scale_of_zero_behind_a_gate(runtime: Runtime, randomize: Randomize) -> None:
    """These forms divide by the scale where they can."""
    model = trained(small(depths=(1, 1, 1, 1)), randomize)
    with torch.no_grad():
        model.get_submodule("stages.0.blocks.0.mlp_attention.attn.norm").weight[3] = 0.0  # type: ignore[index]
    folded = fold(model, 64, runtime)
    gates = [module for module in folded.modules() if isinstance(module, (SplitSpatialGate, PositionGate))]
    assert [gate.scale is not None for gate in gates] == [True, False, False, False]
    assert relative_error(model, folded, torch.randn(2, 3, 64, 64, dtype=torch.float64)) < 1e-9


def test_unknown_runtime_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown runtime 'tensorrt'"):
        fold(small().eval(), runtime="tensorrt")  # type: ignore[arg-type]
