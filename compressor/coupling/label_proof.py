"""Proof by labels: operator by operator, the smaller network does to what is left what the dense one does.

Both networks are exported. Where they run the same operators, each value of the small one is the dense one's without the slices
whose labels were removed: that is shown for every operator from the same of what goes into it, so that it holds for all
values of the inputs, not for samples. Operators that move data are run on the numbers of their entries' places; constants are
compared by value where they are used.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compressor.coupling.flow import Constant, Parameter, named, operator_of, owner_of
from compressor.coupling.labels import compact
from compressor.coupling.remainder import (
    Differs,
    Held,
    Known,
    Step,
    all_of,
    arguments_of,
    held_by,
    leaves,
    plain,
    tensors_of_value,
)
from compressor.coupling.remainder_rules import MOVING, PADS, check, evaluated, spread
from compressor.coupling.writes import seen_writes, writes

CHECKS = named("_assert_scalar _assert_tensor_metadata _assert_async sym_size sym_constrain_range_for_size")


@dataclass(frozen=True)
class Comparison:
    """What came of comparing two programs; false where an operator of the small network does something else.

    Attributes:
        operators: how many were shown to do the same.
        unlike: why they cannot be compared: they do not run the same operators.
        wrong: the first operator that does something else, and what.
        labels: removed labels that meet there.
        groups: names of the groups that they belong to.
    """

    operators: int
    unlike: str = ""
    wrong: str = ""
    labels: frozenset[int] = frozenset()
    groups: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return not self.wrong


def compare(
    dense: ExportedProgram, small: ExportedProgram, labels: Mapping[fx.Node, Any], gone: Tensor,
    entries: Mapping[tuple[str, int], Tensor],
) -> Comparison:  # fmt: skip
    """Walk two programs side by side.

    Args:
        labels: of every value of the dense program.
        gone: booleans by label: removed.
        entries: (tensor, dimension) -> sorted indices that stay, of what the small network's tensors lost.
    """
    walk = _Walk(dense, small, labels, gone, entries)
    if unlike := walk.unlike():
        return Comparison(0, unlike)
    done = 0
    for one, other in zip(walk.nodes, walk.others, strict=True):
        try:
            walk.step(one, other)
        except Differs as what:
            lost = [v for n in (*one.all_input_nodes, one) for v in tensors_of_value(labels.get(n))]
            found = {int(label) for v in lost for label in torch.unique(compact(v)) if gone[label]}
            return Comparison(done, wrong=f"{named_node(one)}: {what}", labels=frozenset(found))
        except UNKNOWN_FORM as error:
            return Comparison(done, f"no rule for this form of {named_node(one)} ({type(error).__name__})")
        done += one.op == "call_function"
    return Comparison(done)


UNKNOWN_FORM = (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration)
"""What a rule ends in where an operator is called as it does not expect; nothing is proven then, and that is said."""


class _Walk:
    """Two programs, and what is known of their values so far."""

    def __init__(
        self, dense: ExportedProgram, small: ExportedProgram, labels: Mapping[fx.Node, Any], gone: Tensor,
        entries: Mapping[tuple[str, int], Tensor],
    ) -> None:  # fmt: skip
        self.dense, self.small, self.labels, self.gone, self.entries = dense, small, labels, gone, entries
        self.nodes, self.others = list(dense.graph.nodes), list(small.graph.nodes)
        self.specs = {spec.arg.name: spec for spec in dense.graph_signature.input_specs}
        self.their_specs = {spec.arg.name: spec for spec in small.graph_signature.input_specs}
        self.shared = seen_writes(self.nodes)
        self.of: dict[fx.Node, fx.Node] = {}
        self.values: dict[fx.Node, Any] = {}

    def unlike(self) -> str:
        """Where the programs first run other operators; nothing where they run the same on the same."""
        number = {node: n for n, node in enumerate(self.nodes)}
        numbers = {node: n for n, node in enumerate(self.others)}
        for one, other in zip(self.nodes, self.others, strict=False):
            if self._called(one, self.specs) != self._called(other, self.their_specs):
                return f"the small network runs {named_node(other)} where the dense one runs {named_node(one)}"
            if _wired(one, number) != _wired(other, numbers):
                return f"{named_node(other)} takes its values from elsewhere in the small network"
            self.of[other] = one
        if len(self.nodes) != len(self.others):
            return f"the small network runs {len(self.others)} operators, the dense one {len(self.nodes)}"
        return ""

    @staticmethod
    def _called(node: fx.Node, specs: Mapping[str, Any]) -> tuple[Any, ...]:
        if node.op == "placeholder":
            spec = specs[node.name]
            constant = spec.kind is InputKind.CONSTANT_TENSOR
            return node.op, spec.kind, None if constant else spec.target
        if node.op != "call_function":
            return node.op, None, None
        moves = operator_of(node) in MOVING - PADS and not writes(node)
        return node.op, None, "a move" if moves else str(node.target)  # a cut of all there is becomes an alias

    def step(self, one: fx.Node, other: fx.Node) -> None:
        """Follow one operator.

        Raises:
            Differs: it does something else.
        """
        if one.op == "placeholder":
            self.values[one] = self._placeholder(one, other)
        elif one.op == "get_attr":
            self.values[one] = self._stored(one, other)
        elif one.op == "output":
            self._output(one, other)
        elif one.target is operator.getitem:
            whole, part = self.values[one.all_input_nodes[0]], one.args[1]
            self.values[one] = whole[part] if isinstance(whole, list) and isinstance(part, int) else whole
            if part != other.args[1]:
                raise Differs("it takes another part")
        elif operator_of(one) in CHECKS:
            self.values[one] = None
        else:
            self.values[one] = self._called_on(one, other)

    def _called_on(self, one: fx.Node, other: fx.Node) -> Any:
        dense_args = arguments_of(one, self.values.__getitem__)
        small_args = arguments_of(other, lambda n: self.values[self.of[n]])
        step = Step(one, other, dense_args, small_args, None)
        if (known := evaluated(step)) is not None:
            return known
        if writes(one):
            self._written(one)
        found = self.labels.get(one)
        out = [self._left(v) for v in found] if isinstance(found, (list, tuple)) else self._left(found)
        step = Step(one, other, dense_args, small_args, out)
        if (wider := spread(step)) is not None:
            out, step = wider, Step(one, other, dense_args, small_args, wider)
        check(step)
        return out

    def _written(self, one: fx.Node) -> None:
        """What a write that is no constant's reaches must be whole: the values of before are not what others see then."""
        reached = leaves([self.values[n] for n in (*self.shared.get(one, ()), *one.all_input_nodes[:1])])
        if one in self.shared and not all(v.whole if isinstance(v, Held) else v.dense.shape == v.small.shape for v in reached):
            raise Differs("it writes into a value that others see")
        memory = {v.dense.untyped_storage().data_ptr() for v in reached if isinstance(v, Known)}
        for node, value in self.values.items():
            if isinstance(value, Known) and value.dense.untyped_storage().data_ptr() in memory:
                if value.dense.shape != value.small.shape:
                    raise Differs("it writes into a constant of the width of channels")
                self.values[node] = all_of(value.dense.shape)

    def _left(self, labels: Any) -> Held | None:
        if isinstance(labels, Constant):
            return all_of(labels.value.shape)
        return held_by(labels, self.gone) if isinstance(labels, Tensor) else None

    def _placeholder(self, one: fx.Node, other: fx.Node) -> Any:
        value = self.labels[one]
        if isinstance(value, Constant):
            return Known(*(_constant(p, s[n.name]) for p, s, n in (
                (self.dense, self.specs, one), (self.small, self.their_specs, other),
            )))  # fmt: skip
        if isinstance(value, Parameter):
            whole = all_of(value.shape)
            held = Held(whole.shape, tuple(self.entries.get((value.name, d), p) for d, p in enumerate(whole.places)))
            if held.small_shape != tuple(other.meta["val"].shape):
                raise Differs(f"{value.name} is {tuple(other.meta['val'].shape)} where {held.small_shape} is left")
            return held
        return all_of(value.shape) if isinstance(value, Tensor) else None

    def _stored(self, one: fx.Node, other: fx.Node) -> Any:
        dense, small = (getattr(p.graph_module, str(n.target)) for p, n in ((self.dense, one), (self.small, other)))
        if isinstance(dense, Tensor):
            return Known(dense.detach().cpu().clone(), small.detach().cpu().clone())
        if plain(dense) != plain(small):
            raise Differs("a part of its code is another")
        return dense

    def _output(self, one: fx.Node, other: fx.Node) -> None:
        if fx.map_arg(one.args, lambda _: None) != fx.map_arg(other.args, lambda _: None):
            raise Differs("it gives another number beside its tensors")
        for node in one.all_input_nodes:
            for value in leaves([self.values[node]]):
                held = value.held() if isinstance(value, Known) else value
                if not held.whole:
                    raise Differs("a removed channel reaches the output")


def _constant(program: ExportedProgram, spec: Any) -> Tensor:
    value: Any = program.state_dict.get(spec.target)
    found: Tensor = program.constants[spec.target] if value is None else value
    return found.detach().cpu().clone()  # operators may write into it


def named_node(node: fx.Node) -> str:
    return f"{owner_of(node) or 'the network'} ({operator_of(node)})"


def _wired(node: fx.Node, numbers: Mapping[fx.Node, int]) -> list[int]:
    """Where each value that an operator takes comes from, in order."""
    found: list[int] = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(numbers[n]))
    return found
