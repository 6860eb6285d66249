"""PATConv and its spatial gate against plain transcriptions of their definitions, in float64."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Randomize
from definitions import batch_norm, exactly, few_examples, leaf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from partialnet.layers import (
    ATTENTIONS,
    GaussianSE,
    PATConv,
    SelfAttention2d,
    SpatialGate,
    create_attention,
    pat_ch,
    pat_sf,
    pat_sp,
)
from partialnet.layers.pat_conv import split_channels

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("normalize", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 1, 1, 1)], ids=str)
def test_spatial_gate_is_its_definition(
    shape: tuple[int, ...], training: bool, normalize: bool, randomize: Randomize
) -> None:
    layer = randomize(SpatialGate(shape[1], normalize=normalize)).train(training)
    plain = copy.deepcopy(layer)
    x = 3 * torch.randn(shape)
    scores = torch.einsum("bchw,c->bhw", x, plain.conv.weight[0, :, 0, 0])
    expected = x * torch.clamp(scores / 6 + 1 / 2, 0, 1)[:, None]
    if normalize:
        expected = batch_norm(plain.norm, expected)
    exactly(layer(x), expected)
    exactly(dict(layer.named_buffers()), dict(plain.named_buffers()))
    assert layer.conv.bias is None


def patconv_by_parts(layer: PATConv, x: Tensor, stride: int, dilation: int) -> Tensor:
    """Eq. 1 with the layer's own weights; for partial scope without a norm before the convolution."""
    c = layer.conv_channels
    to_convolve, to_attend = (x[:, :c], x[:, c:]) if layer.conv_first else (x[:, -c:], x[:, :-c])
    padding = dilation * (layer.conv.kernel_size[0] // 2)
    convolved = F.conv2d(to_convolve, layer.conv.weight, layer.conv.bias, stride, padding, dilation)
    parts = [convolved]
    if to_attend.shape[1]:
        rows = to_attend.split(stride, 2)
        pooled = torch.stack([torch.stack([cell.mean((2, 3)) for cell in row.split(stride, 3)], 2) for row in rows], 2)
        weights = list(layer.attn_proj.parameters())
        if weights:
            pooled = torch.einsum("bchw,oc->bohw", pooled, weights[0][:, :, 0, 0])
        parts.append(layer.attn(pooled))
    return torch.cat(parts if layer.conv_first else parts[::-1], 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    in_channels=st.integers(4, 9),
    out_channels=st.one_of(st.none(), st.integers(4, 12)),
    kernel_size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    split_ratio=st.sampled_from([1 / 4, 1 / 3, 1 / 2, 0.6, 3 / 4]),
    attention=st.sampled_from([None, "gaussian_se", "spatial_gate", "srm", "eca"]),
    conv_first=st.booleans(),
    bias=st.booleans(),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_patconv_of_any_geometry(
    in_channels: int,
    out_channels: int | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    split_ratio: float,
    attention: str | None,
    conv_first: bool,
    bias: bool,
    size: tuple[int, int],
) -> None:
    layer = PATConv(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        dilation,
        split_ratio=split_ratio,
        attention=attention,
        conv_first=conv_first,
        bias=bias,
    ).eval()
    x = torch.randn(2, in_channels, *size)
    output = layer(x)
    out = in_channels if out_channels is None else out_channels
    assert output.shape == (2, out, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    assert layer.conv.out_channels == math.floor(out * split_ratio + 1e-6)
    exactly(output, patconv_by_parts(layer, x, stride, dilation))


def test_patconv_of_equal_channels_and_stride_1_adds_nothing_to_the_attended_part() -> None:
    layer = PATConv(8, attention=None)
    assert [name for name, _ in layer.named_parameters()] == ["conv.weight"]
    assert layer.conv.weight.shape == (2, 2, 3, 3)
    assert layer.split_ratio == 1 / 4


@pytest.mark.parametrize("conv_first", [True, False])
@pytest.mark.parametrize("attention", [None, "gaussian_se", "spatial_gate", "self_attention", "se"])
def test_the_two_parts_are_independent(attention: str | None, conv_first: bool, randomize: Randomize) -> None:
    layer = randomize(PATConv(16, attention=attention, conv_first=conv_first)).eval()
    x = torch.randn(2, 16, 5, 5)
    before = layer(x)
    for channel in range(16):
        changed = x.clone()
        changed[:, channel] += torch.randn(5, 5)
        moved = {int(c) for c in (layer(changed) != before).any(3).any(2).any(0).nonzero().flatten()}
        convolved = set(range(4)) if conv_first else set(range(12, 16))
        attended = set(range(16)) - convolved
        if channel in convolved:
            assert moved == convolved
        else:
            assert moved == ({channel} if attention is None else attended)


def test_without_attention_the_channels_pass_through() -> None:
    layer = PATConv(8, attention=None, split_ratio=1 / 2)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(layer(x)[:, 4:], x[:, 4:])
    assert torch.equal(PATConv(8, attention=None, conv_first=False, split_ratio=1 / 2)(x)[:, :4], x[:, :4])


@pytest.mark.parametrize("conv_first", [True, False])
@pytest.mark.parametrize("attention", ["gaussian_se", "spatial_gate", "self_attention"])
def test_full_scope_attends_over_all_channels(attention: str, conv_first: bool, randomize: Randomize) -> None:
    layer = randomize(PATConv(16, attention=attention, attention_scope="full", conv_first=conv_first)).eval()
    x = torch.randn(2, 16, 5, 5)
    passing = copy.deepcopy(layer)
    passing.attn = nn.Identity()
    exactly(layer(x), layer.attn(passing(x)))
    changed = x.clone()
    changed[:, 0 if conv_first else 15] += 1
    attended = slice(4, 16) if conv_first else slice(0, 12)
    assert not torch.equal(passing(changed), passing(x))
    assert torch.equal(passing(changed)[:, attended], passing(x)[:, attended])
    assert (layer(changed) != layer(x))[:, attended].any(3).any(2).all()


@pytest.mark.parametrize("options", [{"attention": None}, {"attention_scope": "full"}], ids=str)
@pytest.mark.parametrize("conv_first", [True, False])
def test_a_ratio_of_1_convolves_all_channels(options: dict[str, Any], conv_first: bool) -> None:
    layer = PATConv(8, 12, stride=2, split_ratio=1, conv_first=conv_first, **options).eval()
    x = torch.randn(2, 8, 5, 7)
    assert layer.split_ratio == 1
    exactly(layer(x), layer.attn(F.conv2d(x, layer.conv.weight, stride=2, padding=1)))
    assert not list(layer.attn_proj.parameters())


@few_examples
@given(channels=st.integers(2, 400), data=st.data())
def test_every_whole_split_can_be_asked_for(channels: int, data: st.DataObject) -> None:
    convolved = data.draw(st.integers(1, channels - 1))
    assert split_channels(channels, convolved / channels) == convolved
    assert PATConv(channels, split_ratio=convolved / channels, attention=None, device="meta").split_ratio == (
        convolved / channels
    )


def test_a_ratio_is_rounded_down_to_whole_channels() -> None:
    layer = PATConv(10, split_ratio=0.39)
    assert (layer.conv_channels, layer.attn_channels) == (3, 7)
    assert layer.split_ratio == pytest.approx(0.3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_conv_norm_normalises_the_convolved_part_only(training: bool, randomize: Randomize) -> None:
    layer = randomize(PATConv(8, attention=None, conv_norm=nn.BatchNorm2d, kernel_size=1, conv_first=False))
    layer.train(training)
    plain = copy.deepcopy(layer)
    x = torch.randn(3, 8, 4, 5)
    expected = F.conv2d(batch_norm(plain.conv_norm, x[:, 6:]), plain.conv.weight)
    exactly(layer(x), torch.cat((x[:, :6], expected), 1))
    exactly(dict(layer.named_buffers()), dict(plain.named_buffers()))


class Doubled(nn.Module):
    def __init__(self, channels: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels, 1, 1), 2.0, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize("attention", [Doubled, Doubled(6), lambda channels, **kwargs: Doubled(channels, **kwargs)])
def test_attention_from_a_class_a_module_or_a_function(attention: Any) -> None:
    x = torch.randn(2, 8, 3, 3)
    exactly(PATConv(8, attention=attention)(x)[:, 2:], 2 * x[:, 2:])


@pytest.mark.parametrize("name", [*ATTENTIONS, "se", "ese", "eca", "cbam", "gc"])
def test_attention_by_name(name: str) -> None:
    attention = create_attention(name, 12)
    if name in ATTENTIONS:
        assert isinstance(attention, {"srm": GaussianSE}.get(name, ATTENTIONS[name]))
    layer = PATConv(16, attention=name)
    assert type(layer.attn) is type(attention)
    x = leaf(2, 16, 6, 6)
    output = layer(x)
    assert output.shape == x.shape
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_what_is_wrong_with_a_known_attention_is_not_its_name() -> None:
    with pytest.raises(TypeError, match="dtype"):
        create_attention("gaussian_se", 12, dtype="int8")


def test_every_attention_that_the_message_proposes_works() -> None:
    with pytest.raises(ValueError, match="Unknown attention 'none'") as error:
        create_attention("none", 12)
    own, others = re.search(r"one of (.+), a name of .* such as (.+), a module", str(error.value)).groups()
    assert own.split(", ") == list(ATTENTIONS)
    for name in re.split(r", | or ", others):
        assert create_attention(name, 16)(torch.randn(2, 16, 4, 4)).shape == (2, 16, 4, 4), name


def test_srm_has_two_weights_for_each_channel() -> None:
    assert create_attention("srm", 12).weight.shape == (12, 2)
    assert create_attention("gaussian_se", 12).weight.shape == (12, 24)


@pytest.mark.parametrize("name", ["gaussian_se", "self_attention", "spatial_gate", "srm", "se", Doubled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_device_and_dtype_reach_every_part(name: Any, dtype: torch.dtype) -> None:
    layer = PATConv(16, 32, stride=2, attention=name, conv_norm=nn.BatchNorm2d, device="meta", dtype=dtype)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}


def test_the_three_blocks_of_the_paper() -> None:
    channel, spatial, full = pat_ch(16), pat_sp(16), pat_sf(16)
    assert isinstance(channel.attn, GaussianSE)
    assert isinstance(spatial.attn, SpatialGate)
    assert isinstance(full.attn, SelfAttention2d)
    assert [layer.split_ratio for layer in (channel, spatial, full)] == [1 / 4, 1 / 2, 1 / 4]
    assert [layer.conv.kernel_size for layer in (channel, spatial, full)] == [(3, 3), (1, 1), (3, 3)]
    assert [layer.conv_first for layer in (channel, spatial, full)] == [True, False, True]
    assert [isinstance(layer.conv_norm, nn.BatchNorm2d) for layer in (channel, spatial, full)] == [False, True, False]
    assert all(layer.conv.bias is None for layer in (channel, spatial, full))


def test_pat_sp_gates_the_first_half_and_convolves_the_last(randomize: Randomize) -> None:
    layer = randomize(pat_sp(6)).eval()
    x = torch.randn(2, 6, 3, 4)
    scores = torch.einsum("bchw,c->bhw", x[:, :3], layer.attn.conv.weight[0, :, 0, 0])
    first = batch_norm(layer.attn.norm, x[:, :3] * torch.clamp(scores / 6 + 1 / 2, 0, 1)[:, None])
    last = torch.einsum("bchw,oc->bohw", batch_norm(layer.conv_norm, x[:, 3:]), layer.conv.weight[:, :, 0, 0])
    exactly(layer(x), torch.cat((first, last), 1))


@pytest.mark.parametrize("arguments", [{}, {"conv_norm": nn.BatchNorm2d}, {"stride": 2}, {"attention": "spatial_gate"}])
def test_patconv_keeps_channels_last(arguments: dict[str, Any], randomize: Randomize) -> None:
    layer = randomize(PATConv(16, **arguments)).eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 5)
    output = layer(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    exactly(output, layer(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 2}, r"kernel_size=2 must be odd"),
        ({"kernel_size": 0}, r"kernel_size=0 must be odd and positive"),
        ({"kernel_size": -3}, r"kernel_size=-3 must be odd and positive"),
        ({"attention_scope": "half"}, r"attention_scope='half' must be 'partial' or 'full'"),
        ({"split_ratio": 0.1}, r"split_ratio=0\.1 of 8 .*no convolved .*between 0\.125 and 0\.875"),
        ({"split_ratio": 0.0}, r"split_ratio=0\.0 of 8 .*no convolved .*between 0\.125 and 0\.875"),
        ({"split_ratio": -1}, r"split_ratio=-1 of 8 .*no convolved .*between 0\.125 and 0\.875"),
        ({"split_ratio": 1}, r"split_ratio=1 of 8 .*no attended .*between 0\.125 and 0\.875, or attention=None"),
        ({"split_ratio": 1.5, "attention": None}, r"split_ratio=1\.5 of 8 .*between 0\.125 and 1"),
        ({"out_channels": 3}, r"split_ratio=0\.25 of 3 .*no convolved .*between 0\.3333 and 0\.6667"),
        ({"attention": "sea"}, r"'sea'.*gaussian_se, srm, spatial_gate, self_attention.*eca"),
        ({"attention": 5}, r"Unknown attention 5\. Choose one of gaussian_se"),
        ({"attention": "self_attention", "split_ratio": 3 / 8}, r"num_heads=4 .*5 .*Choose one of \[1, 5\]"),
    ],
    ids=str,
)
def test_patconv_explains_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PATConv(8, **arguments)


@pytest.mark.parametrize("attention", ["gaussian_se", "self_attention", "spatial_gate", None])
def test_patconv_compiles_into_one_graph(attention: str | None, randomize: Randomize) -> None:
    torch.compiler.reset()
    layer = randomize(PATConv(16, 32, stride=2, attention=attention, conv_norm=nn.BatchNorm2d)).train()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="eager")
    x = torch.randn(2, 16, 6, 5)
    exactly(compiled(x), layer(x))


@pytest.mark.parametrize(("channels", "ratio"), [(0, 0.25), (1, 0.25), (8, float("nan")), (8, math.inf)])
def test_patconv_refuses_no_channels_and_no_number(channels: int, ratio: float) -> None:
    with pytest.raises(ValueError, match=r"split_ratio=.*channels: give a ratio"):
        PATConv(channels, split_ratio=ratio)
