"""Folding any network: every BatchNorm goes, no output changes, whatever the network's code does with its layers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from folded_networks import Parts, affines, batch_norms, check, images, trained
from folding import outputs
from timm.layers import BatchNormAct2d, Conv2dSame, DropPath, LayerScale2d, StdConv2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from partialnet import fold
from partialnet.layers import GaussianSE, PATConv, pat_ch
from partialnet.layers.inference import RUNTIMES

# -- layers beside a BatchNorm ---------------------------------------------------------------------------------------

#: A layer with 8 channels out of 4, its BatchNorm and an input
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d, (4, 9, 8)),
    "conv without bias": (lambda: nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d, (4, 9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d, (4, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d, (4, 9, 8)),
    "reflected": (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d, (4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 8, 3, padding="same", dilation=2), nn.BatchNorm2d, (4, 9, 8)),
    "TensorFlow's same": (lambda: Conv2dSame(4, 8, 3, stride=2), nn.BatchNorm2d, (4, 9, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2), nn.BatchNorm2d, (4, 9, 8)),
    "transposed, grouped": (
        lambda: nn.ConvTranspose2d(4, 8, 3, 2, 1, 1, groups=2, bias=False),
        nn.BatchNorm2d,
        (4, 9, 8),
    ),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), nn.BatchNorm2d, (4, 9, 8)),
    "1d": (lambda: nn.Conv1d(4, 8, 3), nn.BatchNorm1d, (4, 9)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 8, 3), nn.BatchNorm1d, (4, 9)),
    "3d": (lambda: nn.Conv3d(4, 8, 3), nn.BatchNorm3d, (4, 5, 6, 7)),
    "linear": (lambda: nn.Linear(4, 8), nn.BatchNorm1d, (4,)),
    "linear without bias": (lambda: nn.Linear(4, 8, bias=False), nn.BatchNorm1d, (4,)),
    "not affine": (lambda: nn.Conv2d(4, 8, 3), lambda c: nn.BatchNorm2d(c, affine=False), (4, 9, 8)),
    "synchronised": (lambda: nn.Conv2d(4, 8, 3), nn.SyncBatchNorm, (4, 9, 8)),
    "frozen": (lambda: nn.Conv2d(4, 8, 3), FrozenBatchNorm2d, (4, 9, 8)),
    "with activation": (lambda: nn.Conv2d(4, 8, 3), BatchNormAct2d, (4, 9, 8)),
    "frozen with activation": (
        lambda: nn.Conv2d(4, 8, 3),
        lambda c: freeze_batch_norm_2d(BatchNormAct2d(c)),
        (4, 9, 8),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_norm_behind_a_layer(name: str) -> None:
    layer, norm, shape = PAIRS[name]
    model = trained(nn.Sequential(layer(), nn.Identity(), nn.Dropout(0.5), norm(8), nn.GELU()))
    assert affines(check(model, torch.randn(2, *shape, dtype=torch.float64))) == 0


@pytest.mark.parametrize(
    ("norm", "layer", "shape"),
    [
        (nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), (4, 9, 8)),
        (nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2, bias=False), (4, 9, 8)),
        (nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, padding="valid"), (4, 9, 8)),
        (nn.BatchNorm1d(4, affine=False), nn.Conv1d(4, 8, 3), (4, 9)),
        (nn.BatchNorm1d(4), nn.Linear(4, 8), (4,)),
    ],
)
def test_norm_before_a_layer(norm: nn.Module, layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = trained(nn.Sequential(nn.ReLU(), norm, nn.Dropout(0.5), layer))
    assert affines(check(model, torch.randn(2, *shape, dtype=torch.float64))) == 0


@pytest.mark.parametrize(
    "model",
    [
        nn.BatchNorm2d(4),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, padding=1)),
        nn.Sequential(nn.BatchNorm2d(4), Conv2dSame(4, 8, 3)),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1, groups=2)),
        nn.Sequential(BatchNormAct2d(4), nn.Conv2d(4, 8, 1)),
        nn.Sequential(StdConv2d(4, 8, 3), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
    ],
)
def test_norm_without_a_partner(model: nn.Module) -> None:
    assert affines(check(trained(copy.deepcopy(model)), images(4))) == 1


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 6)])
def test_lone_norm_of_features_takes_vectors_and_sequences(shape: tuple[int, ...]) -> None:
    check(trained(nn.BatchNorm1d(6)), torch.randn(3, *shape, dtype=torch.float64))


def test_norm_of_positions_is_not_one_of_features() -> None:
    """As many positions as channels: the Linear works on the one, the BatchNorm on the other."""
    model = nn.Sequential(nn.Conv1d(4, 6, 1), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    assert affines(check(trained(model), torch.randn(2, 4, 6, dtype=torch.float64))) == 1


def test_norm_behind_a_norm() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)))
    assert affines(check(model, images(4))) == 0


def test_affine_that_our_layer_ends_in_goes_into_the_next_convolution() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), pat_ch(16), nn.Conv2d(16, 8, 1)))
    assert affines(check(model, images())) == 0


def test_norm_that_uses_each_batch_stays() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    x = images()
    assert torch.equal(fold(model)(x), model(x))


def test_part_in_training_mode_is_refused() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].train()
    with pytest.raises(ValueError, match="training mode"):
        fold(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    model = trained(timm.create_model("resnet10t")).to(dtype)
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64, dtype=dtype)
        expected, got = model(x), fold(model)(x)
    assert got.dtype == dtype
    assert (expected - got).abs().max() <= (1e-5 if dtype == torch.float32 else 0.1) * expected.abs().max()


# -- what a network's code may do with its layers --------------------------------------------------------------------


class ConvNormReLU(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class OutputUsedElsewhere(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x + self.bn2(self.conv2(self.bn1(x).relu()))


class NormUsedTwice(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.bn1(self.conv2(x)) + self.bn2(x)


class ConvUsedTwice(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(self.conv2(x)))


class PairUsedTwice(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(self.bn2(self.conv2(x)).relu()))


class SharedConvOwnNorms(Parts):
    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv1(x)
        return [self.bn1(self.conv2(x)), self.bn2(self.conv2(x.relu()))]


class WeightReadElsewhere(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(x)) + F.conv2d(x, self.conv2.weight, padding=1)


class ListOfItsOwn(Parts):
    """Holds its layers in a plain list, too, where nobody can exchange them."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [self.conv1, nn.Identity(), self.conv2]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order[::2]:
            x = layer(x)
        return self.bn1(x) + self.bn2(x).relu()


class ControlFlow(Parts):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if y.sum() > 0:  # depends on the images
            y = self.bn1(y)
        return self.bn2(self.conv2(y)) if x.shape[2] > 4 else y


class SequentialTakenApart(nn.Module):
    """Uses what is between the layers of a Sequential, behind control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), ConvNormReLU(8, 8))
        self.whole = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.mean() > 100:
            raise ValueError("Not an image.")
        results = []
        for layer in self.features:
            x = layer(x)
            results.append(x.clone())
        return [*results, self.whole(x)]


class Loop(nn.Module):
    """As often as the image is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ConvNormReLU(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[3] // 4):
            x = self.block(x)
        return x


class StoresValues(Parts):
    def forward(self, x: Tensor) -> Tensor:
        self.size = x.shape[2:]
        self.last = self.conv1(x)
        return F.interpolate(self.bn2(self.conv2(self.bn1(self.last))), size=self.size)


class InPlace(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(x))
        y += x
        return y.relu_()


class Block(nn.Module):
    """timm's kinds of layers in one block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.bn_act = BatchNormAct2d(2 * channels, act_layer=nn.SiLU)
        self.reduce = nn.Conv2d(2 * channels, channels, 1)
        self.scale = LayerScale2d(channels, 0.1)
        self.drop_path = DropPath(0.1)
        self.last = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.drop_path(self.scale(self.reduce(self.bn_act(self.expand(self.norm(x)))))))


class FusesTwoMaps(Parts):
    """Has a method of the name that timm looks for, for something else."""

    def fuse(self, low: Tensor, high: Tensor) -> Tensor:
        return low + high

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.fuse(x, self.bn2(self.conv2(x)))


class CannotFuse(Parts):
    def fuse(self) -> nn.Module:
        del self.conv1
        raise RuntimeError

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x))


class Neck(nn.Module):
    """As in YOLO: split, concatenate, add, upsample, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = ConvNormReLU(3, 8, 2), ConvNormReLU(8, 8, 2)
        self.inner = nn.ModuleList(ConvNormReLU(4, 4) for _ in range(2))
        self.join = ConvNormReLU(16, 8)
        self.up = nn.Upsample(scale_factor=2)
        self.norm = nn.BatchNorm2d(16)  # behind a concatenation
        self.heads = nn.ModuleDict({name: nn.Conv2d(16, 4, 1) for name in ("boxes", "classes")})

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        high = self.stem(x)
        parts = list(self.down(high).chunk(2, 1))
        parts.extend(layer(parts[-1]) for layer in self.inner)
        low = self.join(torch.cat(parts, 1))
        high = self.norm(torch.cat([high, self.up(low)], 1))
        return {"maps": [low, high], **{name: [head(high)] for name, head in self.heads.items()}}


#: Networks, and how many BatchNorms become a scale and a shift
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "output used elsewhere": (OutputUsedElsewhere, 1),
    "norm used twice": (NormUsedTwice, 2),
    "convolution used twice": (ConvUsedTwice, 1),
    "pair used twice": (PairUsedTwice, 0),
    "shared convolution, own norms": (SharedConvOwnNorms, 2),
    "weight read elsewhere": (WeightReadElsewhere, 1),
    "list of its own": (ListOfItsOwn, 2),
    "control flow": (ControlFlow, 2),
    "Sequential taken apart": (SequentialTakenApart, 1),
    "loop": (Loop, 0),
    "stores values": (StoresValues, 0),
    "in place": (InPlace, 0),
    "timm's layers": (lambda: nn.Sequential(ConvNormReLU(3, 8), Block(8), Block(8)), 2),
    "fuses two maps": (FusesTwoMaps, 0),
    "cannot fuse": (CannotFuse, 1),
    "neck": (Neck, 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    build, left = NETWORKS[name]
    folded = check(trained(build()), images(3, 16, 16))
    assert affines(folded) == left
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(folded).state_dict(), buffer)
    buffer.seek(0)
    other = fold(trained(build()))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = images(3, 16, 16)
    for expected, got in zip(outputs(folded, x), outputs(other, x), strict=True):
        assert torch.equal(expected, got)


def test_parametrized_weight_that_others_use() -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight)

    model, x = trained(Twin()), images(8)
    check(model, x)
    torch.testing.assert_close(fold(model, runtime="torch")(x), model(x))


def test_features_that_a_module_keeps() -> None:
    """PyTorch copies no tensors with a history."""

    class Keeps(Parts):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = {"features": [self.conv1(x)]}
            return self.bn1(self.kept["features"][0])

    model, x = trained(Keeps()), images()
    model(x)
    check(model, x)


def test_hooks_see_what_they_saw() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = images()
    torch.testing.assert_close(fold(model)(x), model(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(seen[0], seen[1])


# -- networks that people use ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "size", "left"),
    [
        ("resnet10t", {}, 32, 0),
        ("mobilenetv3_small_050", {}, 32, 0),
        ("mobileone_s0", {}, 32, 0),
        ("repvit_m0_9", {}, 64, 0),
        ("fastvit_t8", {}, 64, 0),
        ("levit_128s", {}, 224, 0),
        ("resnetv2_18", {}, 32, 9),
        ("resnet10t", {"features_only": True}, 32, 0),
        ("hrnet_w18_small", {"features_only": True}, 64, 0),
    ],
)
def test_timm(name: str, options: dict[str, bool], size: int, left: int) -> None:
    folded = check(trained(timm.create_model(name, **options)), images(3, size, size))
    assert affines(folded) == left


def test_networks_in_a_network() -> None:
    backbone = timm.create_model("mobilenetv3_small_050", num_classes=0)
    head = nn.Sequential(nn.Linear(backbone.head_hidden_size, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    folded = check(trained(nn.Sequential(backbone, head)), images(3, 32, 32))
    assert affines(folded) == 0
    torch.export.export(folded, (images(3, 32, 32),))


def test_torchvision_backbone_with_frozen_norms() -> None:
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d
    )
    assert affines(check(trained(backbone), images(3, 64, 64))) == 0


def test_torchvision_detector() -> None:
    """Its code depends on the images' sizes and on what it finds; the parts fold."""
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, score_thresh=0.0, topk_candidates=5
    )
    model = trained(model)
    folded = fold(model)
    assert batch_norms(folded) == []
    assert affines(folded) == 0
    x = images(3, 64, 64)
    with torch.no_grad():
        maps, expected = (list(network.backbone(x).values()) for network in (folded, model))
        logits, right = (network.head(maps)["cls_logits"] for network in (folded, model))
        assert [len(found["boxes"]) for found in folded(list(x))] == [len(found["boxes"]) for found in model(list(x))]
    for a, b in [*zip(maps, expected, strict=True), (logits, right)]:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_folded_network_compiles_and_exports() -> None:
    folded = fold(trained(nn.Sequential(Neck())).float())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = outputs(folded, x)
        compiled = torch.compile(folded, fullgraph=True, backend="eager")
        for network in (compiled, torch.export.export(folded, (x,)).module()):
            for right, got in zip(expected, outputs(network, x), strict=True):
                torch.testing.assert_close(got, right)


def test_head_can_be_exchanged() -> None:
    """A BatchNorm before the classifier belongs to the features."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))

    model = trained(Classifier())
    folded = check(model, torch.randn(2, 6, dtype=torch.float64))
    model.head = folded.head = nn.Identity().eval()
    check(model, torch.randn(2, 6, dtype=torch.float64))
    x = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def test_parts_that_another_module_takes_out() -> None:
    """The value between a convolution and its norm goes on from both, in code that no trace can follow."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu()

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder()

        def forward(self, x: Tensor) -> Tensor:
            skipped = self.encoder.conv(x)
            deep = self.encoder.norm(skipped) if skipped.shape[2] > 4 else skipped
            return torch.cat((skipped, deep), 1)

    check(trained(UNet()), torch.randn(2, 3, 12, 12, dtype=torch.float64))


def test_norm_called_by_keyword() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(input=self.norm(input=x))

    model, x = trained(Block()), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    check(model, x)
    torch.testing.assert_close(fold(model, runtime="torch")(x), model(x))


def test_subclass_with_another_forward_is_not_folded_as_its_base() -> None:
    class Doubled(GaussianSE):
        def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
            return 2 * super().forward(x, keep)

    class Shifted(PATConv):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    x = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    for layer in (PATConv(32, attention=Doubled(24)), Shifted(32), nn.Sequential(Doubled(32))):
        model = trained(layer)
        for runtime in (None, *RUNTIMES):
            torch.testing.assert_close(fold(model, runtime=runtime)(x), model(x))


@pytest.mark.parametrize("size", [6, 7])
def test_padding_that_depends_on_the_size_stays(size: int) -> None:
    model = nn.Sequential(Conv2dSame(16, 32, 2, stride=2)).eval()
    x = torch.rand(1, 16, size, size)
    torch.testing.assert_close(fold(model, runtime="torch")(x), model(x))
