"""Operators that write into a value in place, while others see the same memory: labels and proofs take operators for pure."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

from torch import fx

from compressor.coupling.flow import named, operator_of

MAY_ALIAS = named(
    """view view_as reshape reshape_as _unsafe_view flatten unflatten slice select narrow transpose permute t numpy_T mT
    swapaxes swapdims movedim moveaxis unsqueeze squeeze expand expand_as broadcast_to alias detach split split_with_sizes
    chunk tensor_split unbind diagonal unfold contiguous to type_as _to_copy real imag as_strided"""
)
"""Operators whose outcome may lie in the memory of what goes in: it depends on strides whether it does."""


def writes(node: fx.Node) -> bool:
    """Whether an operator changes a value that goes in."""
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def seen_writes(nodes: Iterable[fx.Node]) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
    """Writing operator -> other values in the memory that it writes into and that are used afterwards.

    What is used after a write under the writer's own name is no other value.
    """
    nodes = list(nodes)
    number = {node: n for n, node in enumerate(nodes)}
    last = {node: max((number[user] for user in node.users), default=-1) for node in nodes}
    root: dict[fx.Node, fx.Node] = {}
    alike: dict[fx.Node, list[fx.Node]] = {}
    found = {}
    for node in nodes:
        sources = node.all_input_nodes
        shares = (
            node.target is operator.getitem or writes(node) or (node.op == "call_function" and operator_of(node) in MAY_ALIAS)
        )
        root[node] = root[sources[0]] if shares and sources else node
        if writes(node) and sources:
            written = sources[0]
            others = [n for n in alike.get(root[node], ()) if n is not written and last[n] > number[node]]
            if last[written] > number[node]:
                others.append(written)
            if others:
                found[node] = tuple(others)
        alike.setdefault(root[node], []).append(node)
    return found
