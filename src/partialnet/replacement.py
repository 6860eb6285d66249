"""Replacing modules of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_modules(model: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """``model``, which is changed, or what takes its place, with every module in it replaced.

    From the outside in: a module comes before the parts of what takes its place. Each is asked for once, so that one
    with several names stays one, under all of them.

    Args:
        model: Any network.
        replacement: What takes a module's place; the module itself where it stays.
    """
    done: dict[nn.Module, nn.Module] = {}

    def replaced(module: nn.Module) -> nn.Module:
        if module in done:
            return done[module]
        new = done[module] = replacement(module)
        done[new] = new
        # not named_children, which leaves out second names
        for name, child in list(new._modules.items()):
            if child is not None and (other := replaced(child)) is not child:
                new.register_module(name, other)
        return new

    return replaced(model)
