"""What networks do on a GPU, without one: which kernels they start there, and that these compute the same."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import Randomize
from folding import small, trained
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from partialnet import fold
from partialnet.layers.eager import may_write_in_place
from partialnet.layers.gaussian_se import deviation_and_mean

#: What waits for the device
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")
#: What starts no kernel
FREE = ("device", "detach", "alias", "_unsafe_view", "as_strided_", "new_empty_strided")


def _imagines_gpus() -> bool:
    """Whether tensors without content can be on a GPU where there is none; torch 2.8 asks for its driver."""
    try:
        with FakeTensorMode():
            torch.empty(1, 2, 2, 2, device="cuda").contiguous(memory_format=torch.channels_last)
    except RuntimeError:
        return False
    return True


on_imagined_gpu = pytest.mark.skipif(
    not _imagines_gpus(), reason="this torch needs a GPU even for tensors without content"
)


class OnGpu(Tensor):
    """A tensor in the CPU's memory of which Python code believes that it is on a GPU."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]


class Kernels(TorchDispatchMode):
    """Counts the operations that start a kernel; refuses what a GPU would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.started: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        assert name not in SYNCHRONISING, f"{name} waits for the GPU"
        assert all(tensor.device.type == "cuda" for tensor in tensors), f"{name} takes or gives a tensor on the CPU"
        if name not in FREE and not func.is_view and not name.startswith("empty"):
            self.started[name] += 1
        return out


def on_fake_gpu(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy without numbers whose parameters and buffers are on a GPU; to be called within FakeTensorMode."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    fake: Tensor = torch.empty(tensor.shape, device="cuda", dtype=kind)
                    if tensor.ndim == 4:
                        fake = fake.contiguous(memory_format=torch.channels_last)
                    tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
    return model


def kernels(model: nn.Module, dtype: torch.dtype, batch: int = 256, train: bool = False) -> Counter[str]:
    """Operations of a forward pass of images of 224×224, channels_last."""
    model = copy.deepcopy(model).to("meta").train(train)
    with FakeTensorMode():
        model = on_fake_gpu(model, dtype)
        images = torch.empty(batch, 3, 224, 224, device="cuda", dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(train), Kernels() as counted:
            model(images)
    return counted.started


@on_imagined_gpu
def test_folded_network_on_a_gpu() -> None:
    model = small(depths=(1, 1, 1, 1)).eval()
    plain, fast = (kernels(fold(model, 224, runtime), torch.bfloat16) for runtime in (None, "torch"))
    for counted in (plain, fast):
        # statistics in one kernel for all images, without a copy in float32
        assert counted["std_mean"] == 3
        assert counted["_to_copy"] == 0
    # one product for a whole map: of four MLPs with gate, three other gates, mergings, the self-attention, and the head
    assert fast["addmm"] + fast["mm"] == 4 * 3 + 3 + 3 + 2 + 2
    assert fast["convolution"] == 1 + 4  # the stem, and 3×3 in each block
    assert fast.total() < plain.total() - plain["cat"]


@on_imagined_gpu
@pytest.mark.parametrize("train", [False, True])
def test_unfolded_network_on_a_gpu(train: bool) -> None:
    model = small(depths=(1, 0, 0, 1), drop_path_rate=0.1)
    assert kernels(model, torch.float32, 2, train) == kernels(model, torch.float32, 64, train)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("act_layer", ["relu", "gelu"])
def test_fastest_form_on_a_gpu_computes_the_same(
    act_layer: str, batch: int, randomize: Randomize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partialnet.layers.eager.CACHED_BYTES", 10_000)
    monkeypatch.delattr(torch, "batch_norm_update_stats")  # the CPU's way to the statistics
    model = trained(small(act_layer=act_layer, depths=(1, 1, 1, 1)), randomize)
    folded = fold(model, (64, 96), "torch").to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 64, 96, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model(images)
        for form in (folded, fold(model, (64, 96))):
            logits = form(images.as_subclass(OnGpu)).as_subclass(Tensor)
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 9)])
def test_deviation_in_one_kernel(size: tuple[int, int]) -> None:
    x = torch.randn(2, 5, *size, dtype=torch.float64) + 3
    std, mean = deviation_and_mean(x)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    single = size == (1, 1)
    torch.testing.assert_close(std, torch.zeros_like(std) if single else x.flatten(2).std(2))


def test_nothing_is_written_in_place_under_the_gpus_autocast() -> None:
    before = torch.is_autocast_enabled("cuda")
    with torch.no_grad():
        try:
            torch.set_autocast_enabled("cuda", True)
            assert not may_write_in_place(torch.empty(1).as_subclass(OnGpu))
            assert may_write_in_place(torch.empty(1))
        finally:
            torch.set_autocast_enabled("cuda", before)
