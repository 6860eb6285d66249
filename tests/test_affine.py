"""The algebra of folding: BatchNorms and other scales and shifts go into convolutions exactly."""

from __future__ import annotations

import pytest
import torch
from definitions import few_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from partialnet.layers.affine import (
    ChannelAffine,
    batch_norm_affine,
    fold_batch_norm,
    fold_input_affine,
    fold_output_affine,
)


@st.composite
def convolutions(draw: st.DrawFn, pointwise: bool = False) -> nn.Conv2d:
    groups = 1 if pointwise else draw(st.integers(1, 3))
    kernel = (1, 1) if pointwise else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    conv = nn.Conv2d(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 4)),
        kernel,
        stride=draw(st.integers(1, 2)),
        padding=0 if pointwise else draw(st.integers(0, 2)),
        dilation=1 if pointwise else draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        dtype=torch.float64,
    )
    nn.init.normal_(conv.weight)
    return conv.eval()


def affine_of(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.01, 3.0)
    return norm.double().eval()


@given(conv=convolutions(), affine=st.booleans(), eps=st.sampled_from([1e-6, 1e-5, 1e-2]))
@few_examples
def test_batch_norm_folds_into_any_convolution(conv: nn.Conv2d, affine: bool, eps: float) -> None:
    norm = affine_of(nn.BatchNorm2d(conv.out_channels, eps=eps, affine=affine))
    x = torch.randn(2, conv.in_channels, 9, 8, dtype=torch.float64)
    folded = fold_batch_norm(conv, norm)
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-10, atol=1e-10)
    # others than PyTorch read them: exporters, and a second folding
    assert (folded.in_channels, folded.out_channels) == (conv.in_channels, conv.out_channels)


@given(conv=convolutions())
@few_examples
def test_output_affine_folds_into_any_convolution(conv: nn.Conv2d) -> None:
    scale, shift = torch.randn(2, conv.out_channels, dtype=torch.float64)
    x = torch.randn(2, conv.in_channels, 9, 8, dtype=torch.float64)
    weight = conv.weight.clone()
    expected = conv(x) * scale[:, None, None] + shift[:, None, None]
    folded = fold_output_affine(conv, scale, shift)
    torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(conv.weight, weight)
    assert folded.weight.data_ptr() != conv.weight.data_ptr()


@given(conv=convolutions(pointwise=True))
@few_examples
def test_input_affine_folds_into_pointwise_convolution(conv: nn.Conv2d) -> None:
    scale, shift = torch.randn(2, conv.in_channels, dtype=torch.float64)
    x = torch.randn(2, conv.in_channels, 9, 8, dtype=torch.float64)
    affine = ChannelAffine(scale, shift)
    expected = conv(x * scale[:, None, None] + shift[:, None, None])
    torch.testing.assert_close(conv(affine(x)), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fold_input_affine(conv, scale, shift)(x), expected, rtol=1e-10, atol=1e-10)


@given(kernel=st.integers(1, 3))
@few_examples
def test_input_affine_folds_into_any_unpadded_convolution(kernel: int) -> None:
    conv = nn.Conv2d(3, 4, kernel, dtype=torch.float64)
    scale, shift = torch.randn(2, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    expected = conv(ChannelAffine(scale, shift)(x))
    torch.testing.assert_close(fold_input_affine(conv, scale, shift)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{"padding": 1}, {"groups": 2}])
def test_input_affine_is_refused_where_it_would_be_wrong(options: dict[str, int]) -> None:
    conv = nn.Conv2d(4, 4, 3, **options)
    with pytest.raises(ValueError, match="without padding and groups"):
        fold_input_affine(conv, torch.ones(4), torch.ones(4))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_mode_is_kept(mode: str) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode, dtype=torch.float64)
    norm = affine_of(nn.BatchNorm2d(4))
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(fold_batch_norm(conv, norm)(x), norm(conv(x)), rtol=1e-10, atol=1e-10)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=4), st.sampled_from([1e-6, 1e-5]))
@few_examples
def test_affine_of_a_batch_norm(variances: list[float], eps: float) -> None:
    """A hand computation, also for a channel that never varies."""
    norm = affine_of(nn.BatchNorm2d(len(variances), eps=eps))
    norm.running_var.copy_(torch.tensor(variances))
    scale, shift = batch_norm_affine(norm, torch.ones(len(variances)))
    weight, bias, mean, var = (t.tolist() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    expected = [w / (v + eps) ** 0.5 for w, v in zip(weight, var, strict=True)]
    assert scale.tolist() == pytest.approx(expected, rel=1e-12)
    expected_shift = [b - m * e for b, m, e in zip(bias, mean, expected, strict=True)]
    assert shift.tolist() == pytest.approx(expected_shift, rel=1e-9, abs=1e-9)
    assert not scale.requires_grad
    assert not shift.requires_grad


def test_affine_of_identity_is_one_and_zero() -> None:
    scale, shift = batch_norm_affine(nn.Identity(), torch.randn(5, dtype=torch.float64))
    assert torch.equal(scale, torch.ones(5, dtype=torch.float64))
    assert torch.equal(shift, torch.zeros(5, dtype=torch.float64))


def test_affine_of_an_affine_is_itself() -> None:
    given_scale, given_shift = torch.randn(2, 5)
    scale, shift = batch_norm_affine(ChannelAffine(given_scale, given_shift), torch.ones(5))
    assert torch.equal(scale, given_scale)
    assert torch.equal(shift, given_shift)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)])
def test_affine_of_a_norm_without_statistics_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(norm).__name__} has no running statistics"):
        batch_norm_affine(norm.eval(), torch.ones(4))
