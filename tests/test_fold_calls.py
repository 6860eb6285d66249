"""Folding where nobody knows how a part is called: with which arguments, and with what kinds of values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from folded_networks import Parts, affines, check, images, trained
from folding import relative_error
from torch import Tensor, nn

from partialnet import fold


class OptionalBetween(nn.Module):
    """Its arguments say what happens between a convolution and the BatchNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(
        self, x: Tensor, skip: Tensor | None = None, mask: Tensor | None = None, return_features: bool = False
    ) -> list[Tensor]:
        features = self.conv(x)
        if skip is not None:
            features = features + skip
        if mask is not None:
            features = features * mask
        x = self.bn(features).relu()
        return [x, features] if return_features else [x]


class OptionalBefore(OptionalBetween):
    def forward(
        self, x: Tensor, skip: Tensor | None = None, mask: Tensor | None = None, return_features: bool = False
    ) -> list[Tensor]:
        if skip is not None:
            x = x + skip
        if mask is not None:
            x = x * mask
        x = self.bn(self.conv(x))
        return [x.relu(), x] if return_features else [x.relu()]


class Caller(Parts):
    """Calls a part in code that depends on a value, which no trace can follow."""

    def __init__(self, part: nn.Module, *given: str) -> None:
        super().__init__()
        self.part, self.given = part, given

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv1(x)
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        possible = {"skip": x, "mask": x.sigmoid(), "return_features": True}
        result: list[Tensor] = self.part(
            self.bn2(self.conv2(self.bn1(x))), **{name: possible[name] for name in self.given}
        )
        return result


@pytest.mark.parametrize("given", [(), ("skip",), ("mask",), ("return_features",), ("skip", "mask", "return_features")])
def test_optional_arguments_of_a_part(given: tuple[str, ...]) -> None:
    """The norms of the caller are scale and shift; of the parts, where an argument may come between."""
    assert affines(check(trained(Caller(OptionalBetween(), *given)), images())) == 3
    assert affines(check(trained(Caller(OptionalBefore(), *given)), images())) == 2


def test_optional_arguments_of_the_network() -> None:
    model = trained(OptionalBetween())
    check(model, *(images(8) for _ in range(3)))
    check(model, images(8))


def test_call_that_cannot_be_followed_beside_one_that_can() -> None:
    class Part(OptionalBetween):
        def forward(self, x: Tensor, most: Tensor | None = None) -> Tensor:
            x = self.conv(x)
            if most is not None and most.mean() < 100:
                x = x.relu()
            return self.bn(x)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x) + self.part(x, x)

    check(trained(Twice()), images(8))


def test_parts_that_can_be_called_in_countless_ways() -> None:
    class AnyName(OptionalBetween):
        def forward(self, x: Tensor, **others: Tensor) -> Tensor:
            x = self.conv(x)
            if others.get("skip") is None:
                x = x.relu()
            return self.bn(x)

    class ManyNames(OptionalBetween):
        def forward(
            self, x: Tensor, skip: Tensor | None = None, a: int = 1, b: int = 2, c: int = 3, d: int = 4
        ) -> Tensor:
            x = self.conv(x)
            return self.bn(x if skip is None else x + skip)

    assert affines(check(trained(AnyName()), images(8))) == 1
    assert affines(check(trained(ManyNames()), images(8), images(8))) == 1


class TakesApart(nn.Module):
    """Code that nobody can follow, where a part is called as a whole and taken apart, too, or its statistics used."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(x) if x.sum() < 1e9 else x
        y = self.pair[0](x)
        x = y.relu() + self.pair[1](y)
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias) * x.mean()


def test_part_that_is_also_taken_apart_where_code_cannot_be_followed() -> None:
    model = trained(TakesApart())
    folded = fold(model)
    assert relative_error(model, folded, images(8)) <= 1e-9
    assert isinstance(folded.norm, nn.BatchNorm2d)


def test_part_without_norms_that_is_also_called_where_code_cannot_be_followed() -> None:
    class Chain(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part, self.norm = part, nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.part(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 1))
            self.chain = Chain(self.part)

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
            return self.chain(x) + self.part(x)

    assert affines(check(trained(Network()), images(8))) == 1


class Tap(nn.Module):
    """Holds no layers, but calls one that it knows."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.known = {"convolutions": [conv]}

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.known["convolutions"][0](x)
        return result


def test_part_that_holds_no_layers_but_knows_one() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
            self.tap = Tap(self.pair[0])

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
            return self.pair(x) + self.tap(x)

    assert affines(check(trained(Network()), images(8))) == 1


class AsksForTensor(OptionalBetween):
    """Symbolic values are no tensors; real ones are."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(x, Tensor):
            x = x.relu()
        return self.bn(x)


class AsksTorch(OptionalBetween):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.bn(x.relu() if torch.is_tensor(x) else x)


class GivesNumbers(OptionalBetween):
    """torch's functions of numbers look into what passes for a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        number = x.mean() if isinstance(x, Tensor) else 1.0
        x = self.conv(x)
        if isinstance(x, Tensor):
            x = x.relu()
        return self.bn(x) + torch.full((1,), number, dtype=x.dtype)


class AsksWhatItIsGiven(OptionalBetween):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        last = self.conv(x[-1] if isinstance(x, list) else x)
        if isinstance(x, Tensor):
            last = last.relu()
        return self.bn(last)


class AsksForListBefore(OptionalBetween):
    """What is asked decides nothing between the two."""

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        return self.bn(self.conv(x if isinstance(x, Tensor) else x[-1]))


class Required(OptionalBetween):
    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.conv(x)
        return self.bn(x.relu() if skip is None else x)


class RequiredOfTwo(OptionalBetween):
    def forward(self, x: Tensor, skip, mask) -> Tensor:  # type: ignore[no-untyped-def]
        x = self.conv(x)
        return self.bn(x.relu() if skip is None and mask is None else x)


class NeverNone(OptionalBetween):
    """Its code shows that the second argument is a tensor, though nothing says so."""

    def forward(self, x: Tensor, skip) -> Tensor:  # type: ignore[no-untyped-def]
        y: Tensor = self.bn(self.conv(x))
        return y + skip.mean()


class CallerWith(Parts):
    """Calls a part with more than the image, in code that no trace can follow."""

    def __init__(self, part: nn.Module, *more: object) -> None:
        super().__init__()
        self.part, self.more = part, more

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        x = self.bn2(self.conv2(self.bn1(x)))
        result: Tensor = self.part(x, *self.more)
        return result


@pytest.mark.parametrize(
    ("part", "more", "left"),
    [
        (AsksForTensor, (), 1),
        (AsksTorch, (), 1),
        (GivesNumbers, (), 1),
        (AsksWhatItIsGiven, (), 1),
        (AsksForListBefore, (), 0),
        (Required, (None,), 1),
        (RequiredOfTwo, (None, None), 1),
        (NeverNone, (torch.ones(1),), 0),
    ],
)
def test_code_that_asks_what_a_value_is(part: type[nn.Module], more: tuple[object, ...], left: int) -> None:
    """What may come between a convolution and its BatchNorm keeps the two apart, whether a trace meets it or not."""
    if not more:
        assert affines(check(trained(part()), images(8))) == left
    assert affines(check(trained(CallerWith(part(), *more)), images())) == 2 + left
