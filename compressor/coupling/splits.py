"""Reshapes that split channels over several dimensions: shuffles, and the heads of an attention."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from compressor.coupling.flow import Flow, named, operator_of, run_on_labels
from compressor.coupling.labels import Unfit, collapsed, constant_along

MOVEMENTS = named(
    """view reshape _unsafe_view permute transpose unsqueeze squeeze contiguous clone flatten unflatten movedim
    unbind select slice narrow chunk split split_with_sizes"""
)


def divide(flow: Flow, node: fx.Node, before: tuple[int, ...], outcome: Tensor) -> Tensor:
    """Labels after a reshape; where it splits channels, what must keep as many goes together.

    In a shuffle (`view(n, 2, c // 2, h, w)`) the code divides by the smaller factor, so each of those parts keeps as many.
    In an attention (`view(n, tokens, 3, heads, dims)`) whole heads are the nodes, or the dimensions inside all of them.

    Args:
        before: the shape that was split.
        outcome: the labels in their new shape.
    """
    for first, last in _split_dimensions(before, tuple(outcome.shape)):
        inside = [d for d in range(first, last) if not constant_along(outcome, d)]
        if len(inside) < 2:
            continue
        if node in flow.in_products:
            apart = [d for d in inside if _taken_apart(node, tuple(outcome.shape), d)]
            together = [d for d in inside if d not in apart]
            heads = len(together) > 1 and flow.attention == "heads"
            gone = apart + (together[1:] if heads else together[:-1])
        else:
            if len(inside) == 2:
                inside.sort(key=lambda d: (outcome.shape[d], d), reverse=True)  # of equal ones, the first is how many parts
            gone = inside[1:]  # of more than two, a linear layer made a map: its channels come first
        for dim in gone:
            one = collapsed(outcome, dim)
            flow.labels.tie(one.expand_as(outcome), outcome)
            outcome = one.expand_as(outcome)
    return outcome


def _split_dimensions(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The ranges of dimensions in `after` that were one dimension in `before`."""
    place = start = 0
    while place < len(before) and start < len(after):
        last, stop = place + 1, start + 1
        was, now = before[place], after[start]
        while was != now:  # the shortest runs of dimensions that hold as much
            if not was or not now:
                raise Unfit("a tensor without entries")
            if was < now:
                was, last = was * before[last], last + 1
            else:
                now, stop = now * after[stop], stop + 1
        if stop - start > 1 and sum(size > 1 for size in before[place:last]) == 1:
            yield start, stop
        place, start = last, stop


def _taken_apart(node: fx.Node, shape: tuple[int, ...], dim: int) -> bool:
    """Whether the parts along a dimension go different ways, as queries, keys and values do."""
    marks = torch.arange(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
    ends = list(_ends(node, marks))
    return bool(ends) and all(bool((end == end.flatten()[0]).all()) for end in ends)


def _ends(node: fx.Node, value: Any) -> Iterator[Tensor]:
    """What a tensor becomes by moving alone, at every other operator that uses it."""
    for user in node.users:
        if user.target is operator.getitem:
            yield from _ends(user, value[user.args[1]])
        elif operator_of(user) in MOVEMENTS and user.args[0] is node:
            yield from _ends(user, run_on_labels(user, [value, *user.args[1:]], user.kwargs))
        elif isinstance(value, Tensor):
            yield value


def before_products(nodes: Iterable[fx.Node], products: frozenset[str], layers: frozenset[str]) -> frozenset[fx.Node]:
    """The nodes from which a product of activations is reached before any layer."""
    found: set[fx.Node] = set()
    for node in reversed(list(nodes)):
        for user in node.users:
            name = operator_of(user)
            if (user in found or name in products) and name not in layers:
                found.add(node)
    return frozenset(found)
