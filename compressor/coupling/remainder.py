"""What is left of a value in the smaller network, and of the arguments of an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compressor.coupling.labels import FILLER, compact

ELSEWHERE = ("device", "pin_memory")
"""Options that say where a tensor lies, not what it holds."""


class Differs(Exception):
    """An operator of the small network does something else than the dense one's does to what is left; the message says what."""


@dataclass(frozen=True)
class Held:
    """A value that depends on inputs or weights.

    Attributes:
        shape: in the dense network.
        places: for each dimension, the sorted indices that the small network has.
        uniform: dimensions along which it is the same everywhere, as an expanded value is: they may have any size.
    """

    shape: tuple[int, ...]
    places: tuple[Tensor, ...]
    uniform: frozenset[int] = frozenset()

    @property
    def whole(self) -> bool:
        """Nothing of it is gone."""
        return all(len(p) == size for p, size in zip(self.places, self.shape, strict=True))

    @property
    def small_shape(self) -> tuple[int, ...]:
        """In the small network."""
        return tuple(map(len, self.places))

    def of(self, dense: Tensor) -> Tensor:
        """The entries of a tensor of the dense shape that the small network has."""
        for dim, places in enumerate(self.places):
            if len(places) < self.shape[dim]:
                dense = dense.index_select(dim, places)
        return dense


@dataclass(frozen=True)
class Known:
    """A value that is the same in every run: what it is in the dense and in the small network."""

    dense: Tensor
    small: Tensor

    def held(self) -> Held:
        """As a whole value, where both are equal.

        Raises:
            Differs: they are not.
        """
        if not equal(self.dense, self.small):
            raise Differs("a constant has other values")
        return all_of(tuple(self.dense.shape))


def all_of(shape: Iterable[int]) -> Held:
    """A value of which nothing is gone."""
    shape = tuple(shape)
    return Held(shape, tuple(torch.arange(size) for size in shape))


def held_by(labels: Tensor, gone: Tensor) -> Held:
    """What is left of a value by its labels.

    Args:
        labels: of its entries.
        gone: booleans by label.
    Raises:
        Differs: what is gone is no whole slice of it.
    """
    shape, labels = tuple(labels.shape), compact(labels)
    lost = gone[labels]
    fits = lost | (labels == FILLER)  # padding lies in every slice
    places = []
    explained = torch.zeros_like(lost)
    for dim, size in enumerate(shape):
        others = [d for d in range(lost.dim()) if d != dim]
        out = fits.movedim(dim, 0).flatten(1).all(1) & lost.movedim(dim, 0).flatten(1).any(1) if others else lost
        if lost.shape[dim] < size and bool(out.any()):
            raise Differs("all that it gives is removed")
        explained |= out.reshape([-1 if d == dim else 1 for d in range(lost.dim())])
        places.append((~out).nonzero().flatten() if lost.shape[dim] == size else torch.arange(size))
    if bool((lost & ~explained).any()):
        raise Differs("what is removed of it is no whole slice")
    if shape and not all(map(len, places)) and all(shape):
        raise Differs("all that it gives is removed")
    return Held(shape, tuple(places))


def uniform_along(value: Held | Known, dim: int, dims: int) -> bool:
    """Whether a value is the same everywhere along a dimension of what it is broadcast to, which has `dims`."""
    shape = value.shape if isinstance(value, Held) else value.dense.shape
    place = dim - (dims - len(shape))
    if place < 0 or shape[place] == 1:
        return True
    if isinstance(value, Held):
        return place in value.uniform
    first = [t.narrow(place, 0, 1) for t in (value.dense, value.small)]
    return equal(*first) and all(bool((t == one).all()) for t, one in zip((value.dense, value.small), first, strict=True))


def widened(out: Held, sizes: tuple[int, ...], values: list[Held | Known]) -> Held:
    """What is left of a value, of the small network's sizes along dimensions along which all that it is made of is uniform."""
    dims = len(out.shape)
    free = [d for d in range(dims) if out.shape[d] > 1 and all(uniform_along(v, d, dims) for v in values)]
    if len(sizes) != dims or not free:
        return out
    places = [torch.zeros(sizes[d], dtype=torch.long) if d in free else p for d, p in enumerate(out.places)]
    return Held(out.shape, tuple(places), frozenset(free))


@dataclass(frozen=True)
class Step:
    """An operator in both networks.

    Attributes:
        dense: the operator in the dense network.
        small: the same in the small one.
        dense_args: its arguments by the schema's names, values of the network as `Held` or `Known`.
        small_args: likewise; the values are the same objects.
        out: what is left of what it gives: `Held`, or a list of them.
    """

    dense: fx.Node
    small: fx.Node
    dense_args: Mapping[str, Any]
    small_args: Mapping[str, Any]
    out: Any

    def values(self) -> list[Held | Known]:
        """What goes into it, in order."""
        return leaves(list(self.dense_args.values()))

    def held(self, name: str) -> Held:
        """An argument that is a value; a constant must be equal in both.

        Raises:
            Differs: it is a constant and is not, or no value at all.
        """
        value = self.dense_args.get(name)
        if isinstance(value, Known):
            return value.held()
        if not isinstance(value, Held):
            raise Differs("an argument is missing")
        return value

    def result(self) -> Held:
        """What it gives, where that is one tensor (or several alike)."""
        first = self.out[0] if isinstance(self.out, list) else self.out
        if not isinstance(first, Held):
            raise Differs("it gives something else")
        return first

    def same_options(self, *but: str) -> None:
        """All arguments that are no values are equal.

        Raises:
            Differs: one is not.
        """
        for name in self.dense_args.keys() | self.small_args.keys():
            if name not in but and name not in ELSEWHERE:
                one, other = (plain(a.get(name)) for a in (self.dense_args, self.small_args))
                if one != other:
                    raise Differs(f"its {name} is {short(other)}, in the dense network {short(one)}")


Rule = Callable[[Step], None]
"""Raises `Differs` where the small operator does something else to what is left."""


def meets(values: Iterable[Held | Known], out: Held) -> None:
    """Values that are broadcast to one shape have the same left of every dimension."""
    for value in values:
        if isinstance(value, Known):
            wanted = out.of(value.dense.expand(out.shape))
            if not equal(wanted, value.small.expand(out.small_shape)):
                raise Differs("a constant that meets what is removed has other values")
            continue
        first = len(out.shape) - len(value.shape)
        for dim, (size, places) in enumerate(zip(value.shape, value.places, strict=True)):
            if dim in value.uniform:
                continue
            if size == out.shape[first + dim]:
                alike(places, out.places[first + dim])
            elif len(places) != size:
                raise Differs("it is removed where others are not")


def alike(one: Tensor, other: Tensor, what: str = "other channels meet") -> None:
    if not torch.equal(one, other):
        raise Differs(what)


def through(x: Held, out: Held) -> None:
    if len(x.places) != len(out.places):
        raise Differs("it gives another number of dimensions")
    for one, other in zip(x.places, out.places, strict=True):
        alike(one, other)


def all_whole(x: Held, dims: Iterable[int]) -> bool:
    """Nothing is removed along these dimensions."""
    return all(len(x.places[d]) == x.shape[d] for d in dims)


def argument(step: Step, *names: str) -> Held | None:
    for name in names:
        if step.dense_args.get(name) is not None:
            return step.held(name)
    return None


def arguments_of(node: fx.Node, value: Callable[[fx.Node], Any]) -> dict[str, Any]:
    """The arguments of an operator by the names of its schema, the network's values replaced."""
    schema = getattr(node.target, "_schema", None)
    known = schema.arguments if schema is not None else ()
    names = [*(a.name for a in known), *(f"argument {n}" for n in range(len(known), len(node.args)))]
    usual = {a.name: a.default_value for a in known if a.has_default_value()}  # what is as usual may be left out
    arguments = dict.fromkeys(names) | usual | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {name: mapped(a, lambda v: value(v) if isinstance(v, fx.Node) else v) for name, a in arguments.items()}


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return [mapped(v, change) for v in value]
    return change(value)


def leaves(value: Any) -> list[Held | Known]:
    if isinstance(value, (Held, Known)):
        return [value]
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, (list, tuple)) else []


def tensors_of_value(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of_value(part)


def plain(value: Any) -> Any:
    """An argument as something that can be compared; the network's values all alike, for rules look at those."""
    if isinstance(value, (Held, Known)):
        return Held
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, fx.GraphModule):
        return "\n".join(part.code for part in value.modules() if isinstance(part, fx.GraphModule))
    return value


def short(value: Any) -> str:
    return "a value" if value is Held else str(value)[:40]


def equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
