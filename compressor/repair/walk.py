"""A network as an exported program that runs operator by operator, so that its weights may change on the way."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from compressor.coupling.label_flow import exported
from compressor.model.inputs import Inputs, tensors
from compressor.model.observe import observed, tensors_in
from compressor.model.weights import first_names
from compressor.surgery.shrink import tensors_of
from compressor.system.quiet import quiet

STORED = (InputKind.PARAMETER, InputKind.BUFFER)


class Program:
    """The operators of a network in eval mode, and its tensors: the parameters themselves, and copies of the buffers.

    Attributes:
        nodes: operators, in order.
        number: of each.
        stored: the parameters and buffers among its values, by their places.
        tensors: parameters and buffers by the first of their names; who changes one in place changes what the operators behind
            it give.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        """Export a network.

        Args:
            inputs: of as many samples as it will run on at a time.
        Raises:
            Untraceable: it cannot be exported.
        """
        with observed(model) as twin, quiet():
            self.exported = exported(twin, inputs)
        self.nodes: list[fx.Node] = list(self.exported.graph.nodes)
        self.number = {node: n for n, node in enumerate(self.nodes)}
        self.last = {node: max((self.number[user] for user in node.users), default=-1) for node in self.nodes}
        self.tensors: dict[str, Tensor] = {}
        self.stored: dict[fx.Node, str] = {}
        self._fixed: dict[fx.Node, Any] = {}
        self._given: dict[fx.Node, int] = {}
        signature = self.exported.graph_signature
        kinds = {spec.arg.name: spec for spec in signature.input_specs}
        there, first = tensors_of(model), first_names(model)
        for node in self.nodes:
            if node.op == "get_attr":
                self._fixed[node] = operator.attrgetter(str(node.target))(self.exported.graph_module)
            elif node.op == "placeholder" and (spec := kinds[node.name]).kind in STORED:
                name = first.get(str(spec.target), str(spec.target))
                if name not in self.tensors:
                    own = there[name].detach()
                    self.tensors[name] = own if spec.kind is InputKind.PARAMETER else own.clone()
                self._fixed[node], self.stored[node] = self.tensors[name], name
            elif node.op == "placeholder" and spec.kind is InputKind.CONSTANT_TENSOR:
                self._fixed[node] = self.exported.constants[str(spec.target)]
            elif node.op == "placeholder":
                self._given[node] = len(self._given)

    def begin(self, inputs: Inputs) -> Run:
        """Some samples before the first operator."""
        return Run(self, inputs)

    def with_zeros(self, zero: Mapping[tuple[str, int], Tensor]) -> Program:
        """The same operators on tensors of its own, of which some entries are zero.

        Args:
            zero: (tensor, dimension) -> indices of those entries.
        """
        twin = copy.copy(self)
        twin.tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        twin.clear(zero)
        twin._fixed = {node: twin.tensors[self.stored[node]] if node in self.stored else v for node, v in self._fixed.items()}
        return twin

    def clear(self, zero: Mapping[tuple[str, int], Tensor]) -> None:
        """Set some entries to zero, in place, of the tensors that the program reads. Arguments as in `with_zeros`."""
        for (name, dim), index in ((key, index) for key, index in zero.items() if key[0] in self.tensors):
            self.tensors[name].index_fill_(dim, index.to(self.tensors[name].device), 0)

    def behind(self, names: Collection[str]) -> set[fx.Node]:
        """The operators whose outcome depends on some of the tensors."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            if any(given in found or self.stored.get(given) in names for given in node.all_input_nodes):
                found.add(node)
        return found

    def put(self, model: nn.Module, names: Iterable[str]) -> None:
        """Give some of the tensors, in place, to a network of the same shapes."""
        there = tensors_of(model)
        with torch.no_grad():
            for name in names:
                there[name].copy_(self.tensors[name])


class Run:
    """Some samples on their way through a program.

    Attributes:
        done: operators that ran.
    """

    def __init__(self, program: Program, inputs: Inputs) -> None:
        self.program, self.done = program, 0
        given = [x.clone() for x in tensors(inputs)]  # a network may write into what it is given
        self._values: dict[fx.Node, Any] = {node: given[place] for node, place in program._given.items()}

    def fork(self, program: Program) -> Run:
        """As far as this one is, to go on through a program of the same operators; neither notices the other."""
        other, values = copy.copy(self), copy.deepcopy(list(self._values.values()))  # together: views stay views
        other.program, other._values = program, dict(zip(self._values, values, strict=True))
        return other

    def until(self, number: int) -> None:
        """Run all operators before that of a number."""
        p = self.program
        with torch.no_grad():
            for n in range(self.done, number):
                node = p.nodes[n]
                if node.op == "call_function":
                    target: Any = node.target
                    args: Any = fx.map_arg(node.args, self.value)
                    options: Any = fx.map_arg(node.kwargs, self.value)
                    self._values[node] = target(*args, **options)
                for gone in (node, *node.all_input_nodes):
                    if p.last[gone] <= n and node.op != "output":
                        self._values.pop(gone, None)
        self.done = max(self.done, number)

    def value(self, node: fx.Node) -> Any:
        """What an operator gave, while it is still needed."""
        return self._values[node] if node in self._values else self.program._fixed[node]

    def outputs(self) -> list[Tensor]:
        """Run to the end: what the program gives."""
        last = self.program.nodes[-1]
        self.until(self.program.number[last])
        return list(tensors_in([self.value(node) for node in last.all_input_nodes]))

    @property
    def bytes(self) -> int:
        """Of all activations that are still needed."""
        held = tensors_in(list(self._values.values()))
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())


def correspond(dense: Program, small: Program) -> bool:
    """Whether two programs run as many operators on values from the same places."""
    return len(dense.nodes) == len(small.nodes) and all(
        [dense.number[n] for n in a.all_input_nodes] == [small.number[n] for n in b.all_input_nodes]
        for a, b in zip(dense.nodes, small.nodes, strict=True)
    )
