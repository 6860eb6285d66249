"""Concatenations and slices in the memory layout that layers are fast in."""

from __future__ import annotations

import pytest
import torch
from definitions import exactly, leaf

from partialnet.layers.layout import concat_channels, dense

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_concat_channels_has_right_gradients(memory_format: torch.memory_format) -> None:
    parts = [torch.randn(2, c, 3, 2).to(memory_format=memory_format).requires_grad_() for c in (1, 4)]
    assert torch.equal(concat_channels(*parts), torch.cat(parts, 1))
    assert torch.autograd.gradcheck(concat_channels, parts)
    assert torch.autograd.gradgradcheck(concat_channels, parts)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_concat_channels_gives_dense_gradients(memory_format: torch.memory_format) -> None:
    first, second = (torch.randn(2, c, 4, 5).to(memory_format=memory_format).requires_grad_() for c in (3, 5))
    output = concat_channels(first, second)
    assert output.is_contiguous(memory_format=memory_format)
    seen = []
    for part in (first, second):
        part.register_hook(seen.append)
    direction = torch.randn_like(output)
    output.backward(direction)
    exactly(first.grad, direction[:, :3])
    exactly(second.grad, direction[:, 3:])
    assert len(seen) == 2
    assert all(gradient.is_contiguous(memory_format=memory_format) for gradient in seen)


def test_concat_channels_where_only_one_part_needs_a_gradient() -> None:
    first, second = torch.randn(2, 3, 4, 5), leaf(2, 2, 4, 5)
    concat_channels(first, second).sum().backward()
    assert first.grad is None
    assert (second.grad == 1).all()
    with torch.no_grad():
        assert not concat_channels(first, second).requires_grad


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dense_copies_a_slice_into_its_own_layout(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 7, 4, 5).to(memory_format=memory_format)
    part = x[:, 2:5]
    assert not part.is_contiguous(memory_format=memory_format)
    copied = dense(part)
    assert copied.is_contiguous(memory_format=memory_format)
    assert torch.equal(copied, part)
    assert dense(x) is x, "what is dense already is not copied"
