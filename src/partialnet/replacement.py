"""Replacing modules of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_modules(model: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace modules of ``model`` in place, from the outside in, and return it or what replaces it.

    A module is replaced before the parts of its replacement are. ``replacement`` is called once for each module, so
    that one with several names stays one, under all of them.

    Args:
        model: Any network.
        replacement: Gives a module's replacement, or the module itself to keep it.
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
