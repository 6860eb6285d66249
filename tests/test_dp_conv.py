"""DPConv: the relation matrix, its mask and costs, learning of the gates, and the static layer that it becomes."""

from collections.abc import Callable
from functools import partial, reduce
from itertools import pairwise

import pytest
import torch
from conftest import Randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils.prune import l1_unstructured

import partialnet
from partialnet.layers import DPConv, PATConv, SelfAttention2d

CHANNELS = (24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
ATTENTIONS: dict[str, object] = {
    "none": None,
    "gaussian_se": "gaussian_se",
    "srm": "srm",
    "spatial_gate": "spatial_gate",
    "self_attention": partial(SelfAttention2d, num_heads=4),
}


def with_gates(conv: DPConv, gates: list[int]) -> DPConv:
    """Set the free gates to the given zeros and ones."""
    with torch.no_grad():
        conv.gates.copy_(torch.tensor(gates) - 0.5)
    return conv


def relation_matrix(gates: list[int], group: int) -> Tensor:
    """U by Kronecker products of 2×2 matrices, Eqs. 2 and 3."""
    factors = [torch.ones(2, 2) if gate else torch.eye(2) for gate in gates]
    return reduce(torch.kron, [*factors, torch.ones(group, group)])


def in_order(ones: int, count: int) -> list[int]:
    return [0] * (count - ones) + [1] * ones


@settings(max_examples=60, deadline=None)
@given(channels=st.sampled_from(CHANNELS), data=st.data())
def test_mask_cuts_the_block_out_of_the_relation_matrix(channels: int, data: st.DataObject) -> None:
    conv = DPConv(channels, attention=None)
    gates = data.draw(st.lists(st.integers(0, 1), min_size=conv.num_gates, max_size=conv.num_gates))
    with_gates(conv, gates)
    relation = relation_matrix(gates, conv.group)
    mask = conv.mask().detach()
    assert relation.shape == (channels, channels)
    torch.testing.assert_close(relation * mask[:, None], torch.outer(mask, mask))
    width = int(mask.sum())
    assert width == conv.conv_channels == conv.group * 2 ** sum(gates)
    assert conv.split_ratio == width / channels
    # both counts by counting: all of U, and the block
    assert conv.complexity("grouped").item() == relation.sum().item()
    assert conv.complexity("partial").item() == (relation * torch.outer(mask, mask)).sum().item()
    assert conv.in_order == (gates == sorted(gates))
    if conv.in_order:
        assert mask[:width].all()


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_channel_count_has_all_its_blocks(channels: int) -> None:
    conv = DPConv(channels, attention=None)
    widths = [with_gates(conv, in_order(ones, conv.num_gates)).conv_channels for ones in range(conv.num_gates + 1)]
    assert widths[0] == conv.group
    assert widths[0] % 2 == 1
    assert widths[-1] == channels
    assert all(after == 2 * before for before, after in pairwise(widths))


def test_output_by_definition(randomize: Randomize) -> None:
    conv = randomize(DPConv(24, attention=None)).double()
    x = torch.randn(2, 24, 5, 6, dtype=torch.float64)
    for gates in ([0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]):
        with_gates(conv, gates)
        relation, mask = relation_matrix(gates, 3).double(), conv.mask().detach()
        convolved = torch.conv2d(x, conv.conv.weight * (relation * mask[:, None])[:, :, None, None], padding=1)
        expected = torch.where(mask[:, None, None] > 0, convolved, x)
        torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("ones", [0, 1, 2])
def test_static_layer_gives_identical_outputs(attention: str, ones: int, randomize: Randomize) -> None:
    conv = randomize(DPConv(32, attention=ATTENTIONS[attention], min_channels=4)).double()
    with_gates(conv, in_order(ones, len(conv.gates)))
    x = torch.randn(3, 32, 6, 5, dtype=torch.float64)
    static = conv.eval().to_static()
    assert isinstance(static, PATConv)
    assert static.split_ratio == conv.split_ratio
    torch.testing.assert_close(static(x), conv(x), rtol=1e-9, atol=1e-9)
    folded = partialnet.fold(static)
    torch.testing.assert_close(folded(x), conv(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_training_gives_the_static_layers_gradients(attention: str, randomize: Randomize) -> None:
    """A step of the searched layer is a step of the layer that it becomes."""
    conv = randomize(DPConv(16, attention=ATTENTIONS[attention], min_channels=4)).double().train()
    with_gates(conv, in_order(0, len(conv.gates)))
    x = torch.randn(3, 16, 4, 4, dtype=torch.float64)
    static = conv.to_static()
    outputs, gradients = [], []
    for layer in (conv, static):
        own = x.clone().requires_grad_()
        outputs.append(layer(own))
        (outputs[-1] * torch.linspace(-1, 1, outputs[-1].numel(), dtype=torch.float64).view_as(x)).sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(conv.conv.weight.grad[:4, :4], static.conv.weight.grad, rtol=1e-9, atol=1e-9)
    assert not conv.conv.weight.grad[4:].any()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("gates", [[0, 0], [0, 1], [1, 1], [1, 0]])
def test_gradients_are_those_of_the_masked_dense_convolution(
    attention: str, gates: list[int], randomize: Randomize
) -> None:
    """Only the block is convolved; what the others would add has its gradient all the same."""
    conv = randomize(DPConv(16, attention=ATTENTIONS[attention], min_channels=4)).double().train()
    with_gates(conv, gates)
    x = torch.randn(3, 16, 5, 4, dtype=torch.float64)

    def by_definition(x: Tensor) -> Tensor:
        mask = conv.mask()
        rest = x if attention == "none" else conv.attn(x, 1 - mask)
        masked = conv.conv.weight * torch.outer(mask, mask)[:, :, None, None]
        return torch.conv2d(x, masked, padding=1) + (1 - mask)[:, None, None] * rest

    found = []
    for function in (conv, by_definition):
        conv.zero_grad()
        own = x.clone().requires_grad_()
        y = function(own)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in conv.named_parameters()}
        found.append({"y": y.detach(), "x": own.grad, **gradients})
    assert found[0]["gates"].any()
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("gates", [[0, 1], [1, 1], [1, 0]])
def test_compiled_layer_computes_the_same(gates: list[int], randomize: Randomize) -> None:
    """A graph has the masked dense convolution, as it cannot know the number of channels."""
    conv = randomize(DPConv(16, min_channels=4)).double().train()
    with_gates(conv, gates)
    x = torch.randn(3, 16, 5, 4, dtype=torch.float64)
    found = []
    for function in (conv, torch.compile(conv, backend="eager", fullgraph=True)):
        conv.zero_grad()
        y = function(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        found.append({"y": y.detach(), **{name: parameter.grad for name, parameter in conv.named_parameters()}})
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("gates", [[0, 1], [1, 1], [1, 0]])
def test_gradients_for_each_image_by_torch_func(attention: str, gates: list[int], randomize: Randomize) -> None:
    conv = randomize(DPConv(16, attention=ATTENTIONS[attention], min_channels=4)).double().eval()
    with_gates(conv, gates)
    x = torch.randn(3, 16, 5, 4, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in conv.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(conv, parameters, (image[None],)).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index, image in enumerate(x):
        conv.zero_grad()
        conv(image[None]).square().sum().backward()
        for name, parameter in conv.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[name][index], expected, rtol=1e-10, atol=1e-10)


def halved(conv: nn.Conv2d) -> None:
    """A user's own way to compute a weight before each call."""
    conv.half_weight = nn.Parameter(conv.weight.detach() / 2)
    del conv._parameters["weight"]
    conv.weight = conv.half_weight * 2
    conv.register_forward_pre_hook(lambda conv, inputs: setattr(conv, "weight", conv.half_weight * 2))


def pruned(conv: nn.Conv2d) -> None:
    l1_unstructured(conv, "weight", 0.5)


@pytest.mark.parametrize("gates", [[0, 1], [1, 1], [1, 0]])
@pytest.mark.parametrize("reparametrize", [weight_norm, spectral_norm, parametrizations.weight_norm, pruned, halved])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_are_computed_before_each_call(
    reparametrize: Callable[[nn.Conv2d], object], gates: list[int], randomize: Randomize
) -> None:
    """They follow what they are made from, which learns."""
    conv = randomize(DPConv(16, attention=None, min_channels=4)).double()
    with_gates(conv, gates)
    reparametrize(conv.conv)
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    made_from = [(name, p) for name, p in conv.conv.named_parameters() if not name.endswith("bias")]
    for _ in range(2):
        conv.zero_grad()
        before = conv(x)
        before.square().sum().backward()
        with torch.no_grad():
            for name, parameter in made_from:
                assert parameter.grad.any(), name
                parameter.mul_(1 + 0.5 * torch.rand_like(parameter))
        assert not torch.allclose(conv.eval()(x), before)
    with torch.no_grad():
        made_from[0][1].mul_(1 + torch.rand_like(made_from[0][1]))
    if conv.in_order and reparametrize is not halved:
        torch.testing.assert_close(conv.to_static()(x), conv(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["none", "gaussian_se"])
def test_half_precision_by_autocast(attention: str) -> None:
    conv = DPConv(16, attention=attention if attention != "none" else None).train()
    x = torch.randn(3, 16, 5, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    torch.testing.assert_close(y.float(), conv(x), rtol=0.02, atol=0.02)
    y.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in (x, *conv.parameters()))


def test_gates_learn_in_float16() -> None:
    """Their gradients are sums over whole maps, of losses that a scaler has multiplied by thousands."""
    conv = DPConv(16, attention=None).train()
    x = 8 * torch.randn(3, 16, 16, 16).sign()
    gradient = 8 * x
    gradient[:, : conv.conv_channels] = 0
    found = []
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            y = conv(x)
        y.backward(gradient)
        found.append(conv.gates.grad)
    assert found[0].abs().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(found[1], found[0], rtol=0.01, atol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_training_and_evaluation_compute_the_same(attention: str, randomize: Randomize) -> None:
    conv = randomize(DPConv(16, attention=ATTENTIONS[attention])).train()
    for module in conv.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(conv(x), conv.eval()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_gate_has_a_gradient(attention: str, randomize: Randomize) -> None:
    """Also those at 0, so that the convolution can grow as well as shrink."""
    conv = randomize(DPConv(32, attention=ATTENTIONS[attention], min_channels=4)).train()
    for ones in range(len(conv.gates) + 1):
        with_gates(conv, in_order(ones, len(conv.gates)))
        conv.zero_grad()
        conv(torch.randn(3, 32, 5, 5)).square().mean().backward()
        first_zero = len(conv.gates) - ones - 1
        nearest = conv.gates.grad[max(first_zero, 0) :]
        assert nearest.isfinite().all()
        # the gates of the block and the next to grow by; doubling further needs that one first
        assert (nearest != 0).all() or ones == len(conv.gates)


def test_gradient_of_a_gate_is_the_difference_it_makes() -> None:
    """The mask is linear in each gate, so the straight-through gradient is what flipping it changes, to first order."""
    conv = DPConv(16, attention=None, split_ratio=1 / 4).double()
    x, weight = (torch.randn(2, 16, 5, 5, dtype=torch.float64) for _ in range(2))
    (conv(x) * weight).sum().backward()
    gate = conv.num_gates - 3  # the one that doubles the block
    mask = conv.mask().detach()
    other = mask.clone()
    other[4:8] = 1

    def output(m: Tensor) -> Tensor:
        convolved = torch.conv2d(x, conv.conv.weight * torch.outer(m, m)[:, :, None, None], padding=1)
        return ((convolved + (1 - m)[:, None, None] * x) * weight).sum()

    step = 1e-6
    expected = (output(mask + step * (other - mask)) - output(mask)) / step
    torch.testing.assert_close(conv.gates.grad[gate], expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.99, 0.99).filter(lambda value: abs(value) > 1e-3), min_size=5, max_size=5))
def test_order_loss_mends_any_order_in_bounded_time(values: list[float]) -> None:
    conv = DPConv(32, attention=None)
    with torch.no_grad():
        conv.gates.copy_(torch.tensor(values))
    lr = 0.01
    bound = int(2 * sum(map(abs, values)) / lr) + 10
    steps = 0
    while not conv.in_order:
        conv.zero_grad()
        loss = conv.order_loss()
        assert loss > 0
        loss.backward()
        with torch.no_grad():
            conv.gates -= lr * conv.gates.grad
        steps += 1
        assert steps <= bound
    assert conv.order_loss() == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_gates_are_put_into_the_nearest_order(values: list[float]) -> None:
    conv = DPConv(32, attention=None)
    with torch.no_grad():
        conv.gates.copy_(torch.tensor(values))
    before = conv.gates.detach().clone()
    conv.put_gates_in_order()
    assert conv.in_order
    flipped = (conv.gates > 0) != (before > 0)
    torch.testing.assert_close(conv.gates[~flipped], before[~flipped], rtol=0, atol=0)
    orders = [torch.tensor([False] * zeros + [True] * (5 - zeros)) for zeros in range(6)]
    distances = [before[order != (before > 0)].abs().sum().item() for order in orders]
    assert before[flipped].abs().sum().item() <= min(distances) + 1e-6


def test_gates_in_order_stay() -> None:
    conv = with_gates(DPConv(32, attention=None), [0, 0, 1, 1, 1])
    before = conv.gates.detach().clone()
    conv.put_gates_in_order()
    assert torch.equal(conv.gates, before)


def train(conv: DPConv, loss: Callable[[], Tensor], steps: int = 150) -> None:
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss() + 0.9 * conv.order_loss()).backward()
        optimizer.step()
        conv.clamp_gates()


def test_grows_where_the_task_needs_channels() -> None:
    """The target is a dense convolution of all channels; the complexity is free."""
    x = torch.randn(16, 16, 6, 6)
    target = torch.conv2d(x, torch.randn(16, 16, 3, 3) / 6, padding=1)
    conv = DPConv(16, attention=None, split_ratio=1 / 8)
    train(conv, lambda: (conv(x) - target).square().mean())
    assert conv.in_order
    assert conv.split_ratio >= 1 / 2


def test_shrinks_where_complexity_is_punished() -> None:
    x = torch.randn(16, 16, 6, 6)
    conv = DPConv(16, attention=None, split_ratio=1 / 2)
    train(conv, lambda: (conv(x) - x).square().mean() + 0.1 * conv.complexity().log())
    assert conv.in_order
    assert conv.split_ratio <= 1 / 8


def test_gates_far_off_are_brought_back() -> None:
    conv = DPConv(16, attention=None)
    with torch.no_grad():
        conv.gates.copy_(torch.tensor([-3.0, -0.5, 0.5, 2.0]))
    conv.clamp_gates()
    assert conv.gates.tolist() == [-1, -0.5, 0.5, 1]
    conv(torch.randn(2, 16, 4, 4)).square().sum().backward()
    assert conv.gates.grad[1:].all()


@pytest.mark.parametrize("gates", [[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]])
def test_gates_are_fetched_once(gates: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time a GPU would be waited for."""
    conv = with_gates(DPConv(16), gates)
    fetched = []
    for name in ("tolist", "__int__", "__bool__", "item"):
        original = getattr(Tensor, name)
        counted = lambda self, name=name, original=original: fetched.append(name) or original(self)  # noqa: E731
        monkeypatch.setattr(Tensor, name, counted)
    conv(torch.randn(2, 16, 4, 4))
    assert fetched == ["tolist"]


def test_all_channels_become_a_convolution(randomize: Randomize) -> None:
    conv = with_gates(randomize(DPConv(16, attention=None)), [1, 1, 1, 1])
    static = conv.to_static()
    assert static.split_ratio == 1
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(static(x), conv(x), rtol=1e-5, atol=1e-5)


def test_out_of_order_gates_are_refused() -> None:
    with pytest.raises(ValueError, match="out of order"):
        with_gates(DPConv(24, attention=None), [1, 0, 1]).to_static()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 25}, "must be even"),
        ({"channels": 24, "kernel_size": 2}, "must be odd"),
        ({"channels": 24, "dilation": 0}, "dilation=0 must be at least 1"),
        ({"channels": 24, "split_ratio": 0.05}, "choose a ratio from 0.125 to 1"),
        ({"channels": 24, "split_ratio": 1.5}, "choose a ratio from"),
        ({"channels": 24, "attention": "eca"}, "changing number of channels"),
        ({"channels": 24, "min_channels": 48}, "No block of 24"),
        ({"channels": 24, "attention": partial(SelfAttention2d, num_heads=3), "split_ratio": 1 / 16}, "choose a ratio"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPConv(**arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_complexity_is_counted_exactly_in_half_precision(dtype: torch.dtype) -> None:
    layers = [DPConv(channels, split_ratio=1, attention=None, dtype=dtype) for channels in (264, 1280)]
    assert [layer.complexity().item() for layer in layers] == [264**2, 1280**2]
    assert sum(layer.complexity("partial") for layer in layers).item() == 264**2 + 1280**2
    layers[0].complexity().backward()
    assert layers[0].gates.grad.isfinite().all()


def test_unknown_count() -> None:
    with pytest.raises(ValueError, match="grouped"):
        DPConv(24, attention=None).complexity("flops")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_saves_and_loads(attention: str, randomize: Randomize) -> None:
    conv = randomize(DPConv(32, attention=ATTENTIONS[attention])).eval()
    with_gates(conv, in_order(1, len(conv.gates)))
    other = DPConv(32, attention=ATTENTIONS[attention]).eval()
    other.load_state_dict(conv.state_dict())
    x = torch.randn(1, 32, 4, 4)
    torch.testing.assert_close(other(x), conv(x))
    assert other.split_ratio == conv.split_ratio
