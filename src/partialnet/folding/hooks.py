"""Hooks on the modules of a network: what they see stays the same where other modules take these modules' place."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from partialnet.layers.affine import WEIGHT_HOOKS

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Where PyTorch keeps which of these hooks take keywords or are always called, and the kind of the backward hooks
_SETTINGS = (
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
    "_is_full_backward_hook",
)


def has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` has any hooks, those included that compute its weights."""
    return any(getattr(module, name) for name in _HOOKS)


def is_watched(module: nn.Module) -> bool:
    """Whether ``module`` has hooks other than those that compute its weights, as pruning does."""
    return any(not isinstance(hook, WEIGHT_HOOKS) for hooks in hooks_of(module) for hook in hooks.values())


def hooks_of(module: nn.Module) -> Iterator[dict[int, Callable[..., Any]]]:
    """The hooks that are called when ``module`` is, by kind."""
    return (getattr(module, name) for name in _HOOKS)


def copy_with_hooks(model: nn.Module) -> nn.Module:
    """A deep copy of a network that shares the hooks which are not bound to a part of it.

    What such a hook collects is read outside the network, through the original. A hook that is bound to a module, or to
    something that a module holds, is copied with it.
    """
    watched = [hooks for module in model.modules() for hooks in hooks_of(module) if hooks]
    memo: dict[int, Any] = {id(hooks): OrderedDict() for hooks in watched}
    copied = copy.deepcopy(model, memo)
    for hooks in watched:
        for key, hook in hooks.items():
            own = isinstance(hook, WEIGHT_HOOKS) or any(id(part) in memo for part in _bound_to(hook))
            memo[id(hooks)][key] = copy.deepcopy(hook, memo) if own else hook
    return copied


def _bound_to(hook: Any) -> Iterator[Any]:
    while isinstance(hook, partial):
        yield from (*hook.args, *hook.keywords.values())
        hook = hook.func
    yield getattr(hook, "__self__", hook)


def keeping_hooks(replacement: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Wrap a ``replacement`` for ``replace_modules``, of modules by others with the same outputs, to keep all hooks.

    The new module gets the hooks of the old one. A module with hooks on its parts is not replaced, because the values
    that they see would no longer exist.
    """

    def replaced(module: nn.Module) -> nn.Module:
        if any(is_watched(part) for part in module.modules() if part is not module):
            return module
        if not is_watched(module):
            return replacement(module)
        hooks, settings = ({name: getattr(module, name) for name in names} for names in (_HOOKS, _SETTINGS))
        # a module may copy itself, and its hooks are not to be copied
        for name in _HOOKS:
            computing = ((key, hook) for key, hook in hooks[name].items() if isinstance(hook, WEIGHT_HOOKS))
            setattr(module, name, OrderedDict(computing))
        new = replacement(module)
        for name, kept in hooks.items():
            if new is not module:
                for key in [key for key, hook in kept.items() if isinstance(hook, WEIGHT_HOOKS)]:
                    del kept[key]
                kept.update(getattr(new, name))
            setattr(new, name, kept)  # the same dictionary, to which the hooks' handles refer
        for name, kept in settings.items():
            setattr(new, name, kept)
        return new

    return replaced
