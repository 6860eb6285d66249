"""Which module's output goes into which module: the flow of values between the layers of any network."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from .symbolic_tracer import SymbolicTracer

#: Ways to call a module that are followed, at most; each optional argument doubles them
_WAYS = 16
#: Traces of one module, at most; every value of which nobody knows whether it is None adds one
_TRACES = 48


@dataclass
class ModuleFlow:
    """The calls of all layers, as found by symbolic tracing.

    Attributes:
        calls: The calls of each layer, as nodes of a traced graph. A layer with calls that no trace has reached is
            missing.
        layers: The layer that a node calls; nodes of functions are missing.
        read: Modules whose parameters or buffers are used by others than themselves.
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


def module_flow(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> ModuleFlow:
    """Follow a symbolic value through ``model`` as far as its code permits.

    A module with control flow is followed no further from outside, but its parts are followed, each on its own, if they
    are called as a whole. Nobody knows then which of its optional arguments such a part is given, no more than those of
    the network itself; all ways to call it are followed, or none. ``is_layer`` names the modules that count as one
    layer besides those of ``torch.nn``.
    """
    # tracing runs the modules' code, which may store symbolic values in them; the tensors need no copy
    traced = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    ours = dict(zip(traced.modules(), model.modules(), strict=True))
    flow = ModuleFlow()
    followed = _Followed(is_layer)
    followed.follow(traced)
    for root, graph in followed.graphs:
        for node in graph.nodes:
            if node.op == "call_module" and root.get_submodule(node.target) not in followed.loose:
                layer = ours[root.get_submodule(node.target)]
                flow.calls.setdefault(layer, []).append(node)
                flow.layers[node] = layer
            elif node.op == "get_attr":
                flow.read.add(ours[root.get_submodule(node.target.rpartition(".")[0])])
    return flow


def _ways_to_call(module: nn.Module) -> tuple[list[dict[str, Any]], bool]:
    """For each way to call a module, the arguments that are constants there; and whether these ways are all.

    An optional argument has its default or something else: the other truth value, or a symbolic value. Where the ways
    are too many, these are the one with all defaults and the one with none.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    choices = [
        ({p.name: p.default}, {p.name: not p.default} if isinstance(p.default, bool) else {})
        for p in parameters
        if p.default is not p.empty
    ]
    known = all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) and 2 ** len(choices) <= _WAYS
    ways = itertools.product(*choices) if known else zip(*choices, strict=True)
    return [dict(itertools.chain(*(part.items() for part in way))) for way in ways] or [{}], known


class _Followed:
    """Graphs that together cover as much of a network as can be followed, as (root, graph) in ``graphs``.

    ``loose`` are layers that are called in code that cannot be followed, whatever calls of them there are besides.
    """

    def __init__(self, is_layer: Callable[[nn.Module], bool]) -> None:
        self.graphs: list[tuple[nn.Module, fx.Graph]] = []
        self.loose: set[nn.Module] = set()
        self._is_layer = is_layer
        self._seen: set[nn.Module] = set()
        self._taken_apart: set[nn.Module] = set()
        self._called: set[nn.Module] = set()

    def follow(self, module: nn.Module) -> None:
        """Follow ``module`` inside, in all ways in which it may be called from outside."""
        if self._is_layer(module):
            self.loose.add(module)
            return
        if module in self._seen or module in self._taken_apart:
            return
        self._seen.add(module)
        try:
            graphs, opaque = self._all_ways(module)
        except Exception:  # whatever a network's code raises when it meets a symbolic value
            self._follow_parts(module)
            return
        self.graphs += [(module, graph) for graph in graphs]
        for part in opaque:
            self._follow_parts(part)

    def _all_ways(self, module: nn.Module) -> tuple[list[fx.Graph], list[nn.Module]]:
        """The graphs of all ways through ``module``, and the parts that are one layer in them.

        Raises:
            Exception: Not all ways can be followed.
        """
        ways, all_known = _ways_to_call(module)
        if not all_known:
            raise fx.proxy.TraceError("called in too many ways")
        opaque: list[nn.Module] = []
        while True:
            graphs, found = self._all_ways_past(opaque, module, ways)
            if len(found) == len(opaque):
                return graphs, opaque
            opaque = found

    def _all_ways_past(
        self, opaque: list[nn.Module], module: nn.Module, ways: list[dict[str, Any]]
    ) -> tuple[list[fx.Graph], list[nn.Module]]:
        """The graphs of all ways through ``module`` that do not enter ``opaque``; or these and more, not to be entered.

        A part that cannot be followed at one call is followed at none, so that all ways meet the same values.
        """
        graphs = []
        left: list[tuple[dict[str, Any], tuple[bool, ...]]] = [(way, ()) for way in ways]
        for traces in itertools.count(1):
            if traces + len(left) > _TRACES:
                raise fx.proxy.TraceError("too many values that may be None")
            way, nones = left.pop()
            tracer = SymbolicTracer(self._is_layer, nones=nones, opaque=opaque)
            try:
                graphs.append(tracer.follow(module, way))
            except Exception as error:
                if not tracer.cannot_be(error):
                    raise
            if len(tracer.opaque) > len(opaque):
                return [], tracer.opaque
            # the same way up to each value that was something, which now is None
            values = tracer.nones[len(nones) :]
            left += [(way, (*nones, *values[:index], True)) for index in range(len(values))]
            if not left:
                break
        return graphs, opaque

    def _follow_parts(self, module: nn.Module) -> None:
        if module in self._taken_apart:
            return
        self._taken_apart.add(module)
        with contextlib.suppress(TypeError, ValueError):  # of a forward without a signature
            for answer, way in itertools.product((True, False), _ways_to_call(module)[0]):
                tracer = SymbolicTracer(self._is_layer, answer)
                with contextlib.suppress(Exception):  # as far as it gets
                    tracer.follow(module, way)
                self._called |= tracer.called
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
