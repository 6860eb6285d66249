"""Which module's output goes into which module: the flow of values between the layers of any network."""

from __future__ import annotations

import builtins
import contextlib
import copy
import inspect
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from timm.layers import get_notrace_functions
from torch import fx, nn

from .hooks import has_hooks, hooks_of

#: Assumed length of a sequence, such as the levels of a pyramid, when only the calls matter
_ITEMS = 8
#: Most ways to call a module that are followed; each optional argument doubles them
_WAYS = 16
_A_TENSOR = torch.empty(0)
#: What holds no modules
_VALUES = (type(None), bool, int, float, str, torch.Tensor, torch.dtype, torch.device, type)


@dataclass
class ModuleFlow:
    """The calls of all layers, as found by symbolic tracing.

    Attributes:
        calls: The calls of each layer, as nodes of a traced graph. A layer with calls that no trace has reached is
            missing.
        layers: The layer that a node calls; nodes of functions are missing.
        read: Modules whose parameters or buffers are used by others than themselves, or that may have further calls.
    """

    calls: dict[nn.Module, list[fx.Node]] = field(default_factory=dict)
    layers: dict[fx.Node, nn.Module] = field(default_factory=dict)
    read: set[nn.Module] = field(default_factory=set)

    def consumer(self, node: fx.Node, passes: Callable[[nn.Module], bool]) -> fx.Node | None:
        """The one call that takes ``node``'s output, looking through layers that ``passes`` holds for.

        None if the output is used several times or not by a layer's call on it alone.
        """
        while len(node.users) == 1:
            user = next(iter(node.users))
            if user not in self.layers or user.args != (node,) or user.kwargs:
                return None
            if not passes(self.layers[user]):
                return user
            node = user
        return None

    def producer(self, node: fx.Node, passes: Callable[[nn.Module], bool]) -> fx.Node | None:
        """The call whose output ``node`` takes, looking through layers that ``passes`` holds for; None if none."""
        while len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs:
            node = node.args[0]
            if node not in self.layers:
                return None
            if not passes(self.layers[node]):
                return node
        return None

    def remove(self, layer: nn.Module) -> None:
        """Take out all calls of a layer with one input, which then goes where its output went."""
        for node in self.calls.pop(layer, []):
            (source,) = node.args
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            node.graph.erase_node(node)
            del self.layers[node]


def module_flow(model: nn.Module, is_layer: Callable[[nn.Module], bool], sought: Collection[nn.Module]) -> ModuleFlow:
    """Follow a symbolic value through ``model`` as far as its code permits.

    A module with control flow is followed no further from outside, but its parts are followed, each on its own, if they
    are called as a whole. Nobody knows then which of its optional arguments such a part is given, no more than those of
    the network itself; all ways to call it are followed, or none. ``is_layer`` names the modules that count as one
    layer besides those of ``torch.nn``. Hooks are not called; what they would see counts as used by others.

    ``sought`` are the layers whose calls are asked for. What holds none of them is not followed on its own.
    """
    # tracing runs the modules' code, which may store symbolic values in them; the tensors need no copy
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo.update((id(hooks), OrderedDict()) for module in model.modules() for hooks in hooks_of(module))
    traced = copy.deepcopy(model, memo)
    ours = dict(zip(traced.modules(), model.modules(), strict=True))
    flow = ModuleFlow()
    followed = _Followed(
        is_layer,
        sought={module for module in traced.modules() if ours[module] in sought},
        watched={module for module in traced.modules() if has_hooks(ours[module])},
    )
    followed.follow(traced)
    flow.read |= {ours[module] for module in followed.read}
    for root, graph in followed.graphs:
        flow.read |= {ours[module] for module in _read_in(root, graph)}
        for node in graph.nodes:
            if node.op == "call_module" and root.get_submodule(node.target) not in followed.loose:
                layer = ours[root.get_submodule(node.target)]
                flow.calls.setdefault(layer, []).append(node)
                flow.layers[node] = layer
    return flow


def _read_in(root: nn.Module, graph: fx.Graph) -> Iterator[nn.Module]:
    """Modules whose parameters or buffers are used in a graph of ``root``, parametrized ones included."""
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            owner, parametrized, _ = node.target.partition(".parametrizations.")
            if node.op == "get_attr" or parametrized:
                yield root.get_submodule(owner if parametrized else node.target.rpartition(".")[0])


def _ways_to_call(module: nn.Module) -> tuple[list[dict[str, Any]], bool]:
    """For each way to call a module, the arguments that are constants there; and whether these ways are all.

    An optional argument has its default or something else: the other truth value, or a symbolic value. One that must
    be given may be None, but for the first. Where the ways are too many, these are the one with all defaults and the
    one with none.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    choices: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for index, p in enumerate(parameters):
        if p.default is not p.empty:
            choices.append(({p.name: p.default}, {p.name: not p.default} if isinstance(p.default, bool) else {}))
        elif index > 0 and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and _admits_none(p.annotation):
            choices.append(({p.name: None}, {}))
    known = all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) and 2 ** len(choices) <= _WAYS
    ways = itertools.product(*choices) if known else zip(*choices, strict=True)
    return [dict(itertools.chain(*(part.items() for part in way))) for way in ways] or [{}], known


def _admits_none(annotation: Any) -> bool:
    """Whether an argument's annotation, which may be missing or a text, allows None."""
    if isinstance(annotation, str):
        return "None" in annotation or "Optional" in annotation or "Any" in annotation
    return annotation in (inspect.Parameter.empty, Any) or type(None) in get_args(annotation)


def _may_hold_modules(module: nn.Module) -> bool:
    """Whether ``module`` may keep other modules in plain attributes, as far as their types show."""
    pending = [value for name, value in vars(module).items() if name != "_modules"]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, (dict, list, tuple, set)):
            if id(value) not in seen:
                seen.add(id(value))
                pending += value.values() if isinstance(value, dict) else value
        elif not isinstance(value, _VALUES):
            return True
    return False


class _Followed:
    """Graphs that together cover as much of a network as can be followed, as (root, graph) in ``graphs``.

    ``loose`` are layers that are called in code that cannot be followed, whatever calls of them there are besides;
    ``read`` are modules whose parameters or buffers such code uses, and layers in what holds none that is sought.
    """

    def __init__(self, is_layer: Callable[[nn.Module], bool], sought: set[nn.Module], watched: set[nn.Module]) -> None:
        self.graphs: list[tuple[nn.Module, fx.Graph]] = []
        self.loose: set[nn.Module] = set()
        self.read: set[nn.Module] = set()
        self._is_layer = is_layer
        self._sought = sought
        self._watched = watched
        self._seen: set[nn.Module] = set()
        self._taken_apart: set[nn.Module] = set()
        self._called: set[nn.Module] = set()

    def follow(self, module: nn.Module) -> None:
        """Follow ``module`` inside, in all ways in which it may be called from outside."""
        if self._is_layer(module):
            self.loose.add(module)
            return
        if module in self._seen or module in self._taken_apart or not self._matters(module):
            return
        self._seen.add(module)
        try:
            ways, all_known = _ways_to_call(module)
            if not all_known:
                raise fx.proxy.TraceError("called in too many ways")
            traced = [traced for way in ways for traced in self._trace(module, way)]
        except Exception:  # whatever a network's code raises when it meets a symbolic value
            self._follow_parts(module)
            return
        for graph, opaque in traced:
            self.graphs.append((module, graph))
            for part in opaque:
                self._follow_parts(part)

    def _matters(self, module: nn.Module) -> bool:
        """Whether ``module`` holds a layer that is sought, or its code may reach one; else its layers count as read."""
        parts = list(module.modules())
        if any(part in self._sought or _may_hold_modules(part) for part in parts):
            return True
        self.read |= {part for part in parts if self._is_layer(part)}
        return False

    def _trace(self, module: nn.Module, way: dict[str, Any]) -> Iterator[tuple[fx.Graph, list[nn.Module]]]:
        """The graph of ``module`` called in this way and what is one layer in it; two where it asks for tensors."""
        tracers = [_Tracer(self._is_layer, self._watched)]
        for tracer in tracers:
            try:
                yield tracer.follow(module, way), tracer.opaque
            except Exception as error:
                if not tracer.cannot_be_none(error):
                    raise
            if tracer.asked_for_tensors and not tracer.values_are_tensors:
                tracers.append(_Tracer(self._is_layer, self._watched, values_are_tensors=True))

    def _follow_parts(self, module: nn.Module) -> None:
        if module in self._taken_apart or not self._matters(module):
            return
        self._taken_apart.add(module)
        with contextlib.suppress(TypeError, ValueError):  # of a forward without a signature
            for answer, way in itertools.product((True, False), _ways_to_call(module)[0]):
                tracer = _Tracer(self._is_layer, self._watched, answer)
                with contextlib.suppress(Exception):  # as far as it gets
                    tracer.follow(module, way)
                self._called |= tracer.called
                self.loose |= {layer for layer in tracer.called_by_root if self._is_layer(layer)}
                self.read |= set(_read_in(module, tracer.graph))
        self._follow_children(module)

    def _follow_children(self, module: nn.Module) -> None:
        for child in module.children():
            # others may take a module apart, and use what is between its parts
            parts_called = any(part in self._called for part in child.modules())
            taken_apart = child not in self._called and (parts_called or isinstance(child, nn.Sequential))
            if taken_apart or type(child) in (nn.ModuleList, nn.ModuleDict):
                self._follow_children(child)
            else:
                self.follow(child)


class _Tracer(fx.Tracer):
    """Follows modules inside as long as their code permits, and takes them as one layer otherwise.

    Args:
        is_layer: Modules that count as one layer.
        watched: Modules with hooks, which use what goes in and comes out.
        answer: What conditions on values come out as; None refuses them. With an answer the graph is only good for
            learning what is called.
        values_are_tensors: Whether code that asks for it is told that symbolic values are tensors.

    Attributes:
        opaque: Modules that are one layer because they cannot be followed.
        called: All modules called so far.
        called_by_root: Those of them that the code of the followed module itself called.
        asked_for_tensors: Whether code asked whether a symbolic value is a tensor.
    """

    def __init__(
        self,
        is_layer: Callable[[nn.Module], bool],
        watched: set[nn.Module],
        answer: bool | None = None,
        values_are_tensors: bool = False,
    ) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._is_layer = is_layer
        self._watched = watched
        self._answer = answer
        self._nothing_given = False
        self.values_are_tensors = values_are_tensors
        self.opaque: list[nn.Module] = []
        self.called: set[nn.Module] = set()
        self.called_by_root: set[nn.Module] = set()
        self.graph = fx.Graph()
        self.asked_for_tensors = False

    def follow(self, module: nn.Module, constants: dict[str, Any]) -> fx.Graph:
        """The graph of ``module`` with these values of its arguments; the others are symbolic."""
        parameters = inspect.signature(module.forward).parameters
        self._nothing_given = any(parameters[name].default is inspect.Parameter.empty for name in constants)
        with _isinstance_answered_by(self):
            return self.trace(module, concrete_args=constants)

    def cannot_be_none(self, error: Exception) -> bool:
        """Whether ``error`` shows that an argument which was None in this trace, and must be given, never is."""
        if not self._nothing_given or isinstance(error, fx.proxy.TraceError):
            return False
        return isinstance(error, (AssertionError, ValueError)) or "NoneType" in str(error)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return self._is_layer(module) or super().is_leaf_module(module, name)

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.called.add(module)
        if not self.module_stack:
            self.called_by_root.add(module)
        name = self.path_of_module(module)
        if self.is_leaf_module(module, name) or module in self.opaque:
            return self.create_proxy("call_module", name, args, kwargs)
        last, depth = next(iter(reversed(self.graph.nodes)), None), len(self.module_stack)
        try:
            result = super().call_module(module, forward, args, kwargs)
            if module in self._watched:
                self.create_proxy("call_function", _watch, (args, kwargs, result), {})
            return result
        except Exception as error:  # whatever a network's code raises when it meets a symbolic value
            if self.cannot_be_none(error):
                raise
            for node in list(itertools.takewhile(lambda node: node is not last, reversed(self.graph.nodes))):
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            self.opaque.append(module)
            return self.create_proxy("call_module", name, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return super().to_bool(obj) if self._answer is None else self._answer

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            if self._answer is None:
                raise
            return iter([obj[i] for i in range(_ITEMS)])  # type: ignore[index]


def _watch(*values: Any) -> None:
    """In a graph, what stands for a module's hooks as a user of these values."""


@contextlib.contextmanager
def _isinstance_answered_by(tracer: _Tracer) -> Iterator[None]:
    """Within it ``isinstance`` takes symbolic values for tensors where ``tracer`` does.

    A value with a class of its own, as mocks have, would be taken for a real tensor by torch's C++ code, too.
    """
    isinstance_ = builtins.isinstance

    def answer(value: Any, kinds: Any) -> bool:
        known = isinstance_(value, kinds)
        # fx asks as well, in order to trace; torch.is_tensor is in the module torch itself
        if known or not isinstance_(value, fx.Proxy) or sys._getframe(1).f_globals["__name__"].startswith("torch."):
            return known
        if not isinstance_(_A_TENSOR, kinds):
            return False
        tracer.asked_for_tensors = True
        return tracer.values_are_tensors

    builtins.isinstance = answer
    try:
        yield
    finally:
        builtins.isinstance = isinstance_
