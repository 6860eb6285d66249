"""Symbolic tracing that refuses code whose way depends on what its values are."""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import itertools
import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import torch
from timm.layers import get_notrace_functions
from torch import fx, nn

#: Items that a sequence of unknown length is taken to have where only the calls matter: the levels of a pyramid, say
_ITEMS = 8
#: After these a sequence has items that it had before
_KEEP_ITEMS = (operator.getitem, operator.add, "values")


def _layer_gives_tensor(layer: nn.Module, x: _Value | None) -> bool:
    """Whether a layer that is not followed puts out one tensor, or what it takes, which is one."""
    if isinstance(layer, nn.Identity):
        return x is not None and x.is_tensor
    several = (nn.MultiheadAttention, nn.RNNBase, nn.LSTMCell, nn.AdaptiveLogSoftmaxWithLoss)
    return not isinstance(layer, several) and not getattr(layer, "return_indices", False)


@functools.cache
def _function_gives_tensor(function: Callable[..., Any] | str) -> bool:
    """Whether a function of torch, or the method of tensors with this name, returns one tensor in all its forms."""
    name = function if isinstance(function, str) else getattr(function, "__name__", "")
    if not isinstance(function, str) and not (getattr(function, "__module__", "") or "torch").startswith("torch"):
        return False
    if getattr(function, "__annotations__", {}).get("return") is torch.Tensor:
        return True
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    # some of these names have forms for numbers and lists, too, which Python itself computes
    of_tensors = [s for s in schemas if s.arguments and "Tensor" in str(s.arguments[0].type)]
    return bool(of_tensors) and all([str(r.type) for r in s.returns] == ["Tensor"] for s in of_tensors)


_isinstance = isinstance
_A_TENSOR = torch.empty(0)


def _isinstance_of_values(value: Any, kinds: Any) -> bool:
    """``isinstance`` that takes symbolic values for what they stand for, unless torch asks in order to trace."""
    if type(value) in (_Value, _Attribute) and not _is_of_tracing(sys._getframe(1)):
        return value.tracer.is_instance(value, kinds)
    return _isinstance(value, kinds)


def _is_of_tracing(frame: FrameType) -> bool:
    # in the module torch itself is torch.is_tensor, which asks for others
    name = frame.f_globals.get("__name__", "")
    return name == __name__ or name.startswith("torch.")


@contextlib.contextmanager
def _values_are_what_they_stand_for() -> Iterator[None]:
    """Within it ``isinstance`` is the above; as fx itself does with the calls of modules, while it traces.

    A value that only names another class as its own would be taken for a real tensor by torch's C++ code, too.
    """
    builtins.isinstance = _isinstance_of_values
    try:
        yield
    finally:
        builtins.isinstance = _isinstance


class _Value(fx.Proxy):
    """A symbolic value that refuses all questions whose answer depends on what it is, unless that is certain."""

    tracer: SymbolicTracer
    #: it certainly is one
    is_tensor = False
    #: it comes from outside, or from code that is not followed
    may_hold_none = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # whoever asks otherwise than by the isinstance below: torch's functions, say, before they look inside
        if not _is_of_tracing(sys._getframe(1)):
            self.tracer.check_class()
        return type(self)

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        self.tracer.check_attribute(self, name)
        return _Attribute(self, name)

    def __hash__(self) -> int:
        return self.tracer.hash_of(self)

    def __len__(self) -> int:
        self.tracer.refuse("its length")

    def __index__(self) -> int:
        self.tracer.refuse("its number")

    def __float__(self) -> float:
        self.tracer.refuse("its number")


class _Attribute(fx.proxy.Attribute, _Value):
    """A method, or another attribute, of a symbolic value."""


class SymbolicTracer(fx.Tracer):
    """Follows modules inside as long as their code permits, and takes them as one layer otherwise.

    A symbolic value stands for whatever the value may be in truth: code that would go another way for some of them is
    refused. Only a comparison with None cannot be noticed; a value that may be None is therefore followed as something
    and, in another trace, as None.

    Args:
        is_layer: Modules that count as one layer.
        answer: What conditions on values come out as; None refuses them. With an answer the graph is only good for
            learning what is called.
        nones: Which of the values that may be None are, in the order in which they come; the others are not.
        opaque: Modules that are not followed.

    Attributes:
        nones: The same for all values of the last trace.
        opaque: Modules that are, or cannot be, followed no further.
    """

    def __init__(
        self,
        is_layer: Callable[[nn.Module], bool],
        answer: bool | None = None,
        nones: tuple[bool, ...] = (),
        opaque: list[nn.Module] | None = None,
    ) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._is_layer = is_layer
        self._answer = answer
        self._given = nones
        self._refused = False
        self._symbolic: set[str] = set()
        self.nones: list[bool] = []
        self.opaque = list(opaque or [])
        self.called: set[nn.Module] = set()

    def follow(self, module: nn.Module, constants: dict[str, Any]) -> fx.Graph:
        """The graph of ``module`` with these values of its arguments; the others are symbolic."""
        self._symbolic = inspect.signature(module.forward).parameters.keys() - constants.keys()
        with _values_are_what_they_stand_for():
            graph = self.trace(module, concrete_args=constants)
        self._check_all_answered()
        return graph

    def cannot_be(self, error: Exception) -> bool:
        """Whether ``error`` shows that one of the values that were None in this trace never is."""
        if not any(self.nones) or self._refused:
            return False
        return isinstance(error, (AssertionError, ValueError)) or "NoneType" in str(error)

    def refuse(self, what: str) -> NoReturn:
        """Refuse code that depends on ``what`` of a value (TraceError)."""
        self._refused = True
        raise fx.proxy.TraceError(f"The code depends on a value: {what}.")

    def is_instance(self, value: _Value, kinds: Any) -> bool:
        """Whether what the value stands for is of one of these classes."""
        if value.is_tensor or self._answer:
            return _isinstance(_A_TENSOR, kinds)
        self.check_class()
        return False

    def check_class(self) -> None:
        """Refuse to tell what class a value has."""
        if self._answer is None:
            self.refuse("its type")

    def hash_of(self, value: _Value) -> int:
        """Refuse to tell a value's hash, by which a network could look something up."""
        if self._answer is None:
            self.refuse("its hash")
        return id(value)

    def check_attribute(self, value: _Value, name: str) -> None:
        """Refuse attributes that a tensor has not, of values that may be something else."""
        if self._answer is None and not hasattr(torch.Tensor, name):
            if value.is_tensor:
                raise AttributeError(f"'Tensor' object has no attribute {name!r}")
            self.refuse(f"its attribute {name}")

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether a module is one layer."""
        return self._is_layer(module) or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The symbolic value that a node puts out."""
        return _Value(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> Any:
        """A new node's symbolic value with what is known of it, or None where this trace has it so."""
        value: Any = super().create_proxy(kind, target, args, kwargs, *others, **named)
        first = args[0] if args and type(args[0]) in (_Value, _Attribute) else None
        may_be_none = False
        if kind == "placeholder":
            value.may_hold_none = True
            # where the default is None, another way to call has that
            may_be_none = target in self._symbolic and args != (None,)
        elif kind == "call_module":
            module = self.root.get_submodule(target)
            may_be_none = value.may_hold_none = module in self.opaque or isinstance(module, nn.MultiheadAttention)
            value.is_tensor = module not in self.opaque and _layer_gives_tensor(module, first)
        else:
            value.may_hold_none = target in _KEEP_ITEMS and first is not None and first.may_hold_none
            may_be_none = value.may_hold_none and target is operator.getitem and isinstance(args[1], (int, str))
            of_tensor = any(type(arg) is _Value and arg.is_tensor for arg in args)
            value.is_tensor = (
                of_tensor if getattr(target, "__module__", "") == "_operator" else _function_gives_tensor(target)
            ) and (of_tensor or kind == "call_function")
        return None if may_be_none and self._answer is None and self._is_none() else value

    def _is_none(self) -> bool:
        index = len(self.nones)
        self.nones.append(index < len(self._given) and self._given[index])
        return self.nones[-1]

    def _check_all_answered(self) -> None:
        """Refuse code that has caught a refusal and went on."""
        if self._refused:
            raise fx.proxy.TraceError("The code depends on a value.")

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow a module inside; where its code does not permit it, take it as one layer."""
        self.called.add(module)
        name = self.path_of_module(module)
        if self.is_leaf_module(module, name) or module in self.opaque:
            if module not in self.opaque and next(itertools.chain(args, kwargs.values()), self) is None:
                if isinstance(module, nn.Identity):
                    return None
                raise TypeError(f"{type(module).__name__} takes no NoneType")
            return self.create_proxy("call_module", name, args, kwargs)
        last, depth = next(iter(reversed(self.graph.nodes)), None), len(self.module_stack)
        refused = self._refused
        try:
            result = super().call_module(module, forward, args, kwargs)
            self._check_all_answered()
            return result
        except Exception as error:  # whatever a network's code raises when it meets a symbolic value
            if self.cannot_be(error):
                raise
            self._refused = refused
            for node in list(itertools.takewhile(lambda node: node is not last, reversed(self.graph.nodes))):
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            self.opaque.append(module)
            return self.create_proxy("call_module", name, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """What a condition comes out as."""
        if self._answer is None:
            self.refuse("a condition")
        return self._answer

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a value."""
        if self._answer is None:
            self.refuse("the number of its items")
        return iter([obj[i] for i in range(_ITEMS)])  # type: ignore[index]
