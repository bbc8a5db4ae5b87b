"""What is known while the labels run through a network, and what can be done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.coupling.grouping import Axis
from compressor.coupling.labels import FILLER, Labels, Unfit, compact, constant_along
from compressor.settings import Attention
from compressor.types.structure import Role

NOT_A_CHANNEL = "it works along a dimension that carries no channels of its own"


OF_POSITIONS = (
    "window",
    "kernel",
    "stride",
    "patch",
    "resolution",
    "padding",
    "dilation",
    "grid",
    "reduction",
    "image",
    "img",
    "length",
)
"""Words in the names of attributes that count positions or classes, not channels."""


def _is_size(value: Any) -> bool:
    several = type(value) in (tuple, list) and len(value) > 1 and all(type(v) is int for v in value)
    return several or (type(value) is int and value > 1)


def named(text: str) -> frozenset[str]:
    """The names of a family of operators."""
    return frozenset(text.split())


def operator_of(node: fx.Node) -> str:
    """Name of the ATen operator at a node, without the mark of working in place; others have their library before it."""
    library = getattr(node.target, "namespace", "aten")
    name = str(getattr(node.target, "_opname", node.target)).removesuffix("_")
    return name if library == "aten" else f"{library}::{name}"


def run_on_labels(node: fx.Node, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What the operator at a node gives on labels in place of activations.

    Raises:
        Unfit: torch refuses. Labels repeat where activations do not, so that what is a view of those may be none of these.
    """
    target: Any = node.target
    if getattr(getattr(target, "_schema", None), "is_mutable", False):  # the labels of what goes in keep their shape
        arguments = [a.view_as(a) if isinstance(a, Tensor) else a for a in arguments]
    try:
        return target(*arguments, **options)
    except RuntimeError as error:
        raise Unfit("torch does not do it to labels") from error


def owner_of(node: fx.Node) -> str:
    """Name of the innermost module that an operator runs in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer on its way to the operator that uses it."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A constant, such as the indices of a channel shuffle; its values matter, not labels."""

    value: Tensor


@dataclass
class Flow:
    """What is known while the labels run through the network.

    Attributes:
        layers: the network's convolutions and linear layers, by name.
        modules: all its modules, by name.
        attention: what the nodes of an attention are.
        frozen_layers: layer that the labels cannot follow -> why; its outputs are nodes all the same, and stay.
        made_by: operator -> the layer, or the bare parameter, whose stored weight it applies.
        functional: weights that are applied by a function, not by the module that owns them.
        running: modules that are called, with all that they are in.
        in_products: nodes behind a node that lead to a product of activations before any layer.
        seen_writes: operators that write into memory that others see afterwards, and those values.
        where: layer and operator at hand, for messages.
    """

    layers: Mapping[str, nn.Module]
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    attention: Attention = "heads"
    labels: Labels = field(default_factory=Labels)
    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    frozen_layers: dict[str, str] = field(default_factory=dict)
    functional: set[str] = field(default_factory=set)
    made_by: dict[fx.Node, str] = field(default_factory=dict)
    running: frozenset[str] = frozenset()
    _remembered: dict[str, dict[str, int | tuple[int, ...]]] = field(default_factory=dict)
    in_products: frozenset[fx.Node] = frozenset()
    seen_writes: Mapping[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    where: str = ""

    def axis(self, parameter: Parameter, dim: int, role: Role) -> Tensor:
        """Labels `(size,)` of one dimension of a parameter; the same at every use, so that shared weights stay shared."""
        self.shapes[parameter.name] = parameter.shape
        place = (parameter.name, dim)
        if place not in self.axes:
            self.axes[place] = Axis(parameter.name, dim, role, self.labels.fresh(parameter.shape[dim]))
        known = self.axes[place]
        if known.role != role and role == "read":  # an embedding that is a linear layer's weight too
            if known.role != "carry":
                self.labels.freeze(
                    known.labels, f"{self.where}: the layer that makes its outputs reads them with the same weight"
                )
            self.axes[place] = replace(known, role="read")
        return known.labels

    def read(self, parameter: Parameter, dim: int, labels: Tensor) -> None:
        """The parameter's dimension `dim` uses the channels `labels` `(size,)`."""
        self.labels.tie(self.axis(parameter, dim, "read"), labels)

    def carry(self, parameter: Any, labels: Tensor) -> None:
        """A one-dimensional bias, scale or statistic belongs to the channels `labels` `(size,)`."""
        if isinstance(parameter, Parameter):
            self.labels.tie(self.axis(parameter, 0, "carry"), labels)
        elif isinstance(parameter, Tensor):  # computed from stored ones
            if bool((parameter == FILLER).any()):
                self.freeze([parameter, labels], "its bias or scale is computed, not stored")
            self.labels.tie(parameter.expand_as(labels), labels)

    def entry_labels(self, parameter: Parameter) -> Tensor:
        """A label for every entry of a parameter that meets activations element by element."""
        if parameter.name not in self.entries:
            self.shapes[parameter.name] = parameter.shape
            self.entries[parameter.name] = self.labels.fresh(*parameter.shape)
        return self.entries[parameter.name]

    def is_stored(self, labels: Tensor) -> bool:
        """Whether all labels are those of one parameter's entries."""
        low, high = int(labels.min()), int(labels.max())
        return any(int(e.flatten()[0]) <= low and high <= int(e.flatten()[-1]) for e in self.entries.values() if e.numel())

    def freeze(self, values: Any, reason: str) -> None:
        """Every channel in `values` stays whole, because of the operator at hand."""
        for value in flat(values):
            if isinstance(value, Constant):
                continue
            if isinstance(value, Parameter):
                for dim in range(len(value.shape)):
                    self.labels.freeze(self.axis(value, dim, "carry"), f"{self.where}: {reason}")
            else:
                self.labels.freeze(value, f"{self.where}: {reason}")

    def remembered(self, module: str) -> dict[str, int | tuple[int, ...]]:
        """Whole numbers and shapes that a module remembers, by name; and those of its parts that do not run by themselves."""
        if module not in self._remembered and module in self.modules:
            parts = [n for n in self.modules if n.rpartition(".")[0] == module and n not in self.running and n != module]
            self._remembered[module] = {
                f"{owner}.{attribute}".removeprefix("."): value if isinstance(value, int) else tuple(value)
                for owner in [module, *parts]
                for attribute, value in vars(self.modules[owner]).items()
                if _is_size(value) and not any(word in attribute for word in OF_POSITIONS)
            }
        return self._remembered.get(module, {})

    def size(self, name: str, labels: Tensor) -> None:
        """The number that a module remembers is how many of the channels `labels` `(size,)` there are."""
        self.labels.tie(self.axis(Parameter(name, (len(labels),)), 0, "size"), labels)

    def stays(self, shape: tuple[int, ...]) -> Tensor:
        """Labels of something that is no node's and whose size cannot change: what meets it element by element must stay.

        They are filler, written out, where filler that fits anything is a single 0, expanded.
        """
        return torch.full(shape, FILLER)

    def channels(self, x: Tensor, dim: int, reason: str) -> Tensor:
        """The labels `(size,)` along `dim`; labels that share an index there are tied.

        Freezes `x` where its channels lie along other dimensions and none along this one.

        Raises:
            Unfit: there is no such dimension, or nothing along it.
        """
        if x.dim() <= dim or not x.numel():
            raise Unfit("a tensor without channels")
        size = x.shape[dim]
        x = compact(x).movedim(dim, 0).flatten(1) if x.dim() > 1 else x[:, None]  # (size or 1, others)
        first = x.amax(1, keepdim=True)  # filler, the smallest of all, is where the map was padded
        if not constant_along(x, 1):
            if constant_along(x, 0):
                self.labels.freeze(x, f"{self.where}: {reason}")
                return torch.full((size,), FILLER)
            self.labels.tie(first.expand_as(x), x)
        return first[:, 0].expand(size)


def flat(values: Any) -> list[Any]:
    """All tensors of labels, parameters and constants in nested arguments."""
    if isinstance(values, (Tensor, Parameter, Constant)):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    return [leaf for value in values for leaf in flat(value)] if isinstance(values, (list, tuple)) else []


def meet(flow: Flow, operands: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Labels of tensors that meet element by element: those in one position are tied, never through a broadcast axis of size 1.

    Args:
        operands: labels, broadcastable to `shape`.
    """
    aligned = [compact(v.reshape((1,) * (len(shape) - v.dim()) + tuple(v.shape))) for v in operands]
    alive = [bool((v != FILLER).any()) for v in aligned]
    fixed = [v for v, lives in zip(aligned, alive, strict=True) if not lives and v.numel() > 1]
    if not any(alive):
        first: Tensor = torch.broadcast_tensors(*(fixed or aligned[:1]))[0]
        return first.clone().expand(shape)
    candidates = [v for v, lives in zip(aligned, alive, strict=True) if lives]
    main = start = max(candidates, key=lambda v: (not flow.is_stored(v), v.numel()))
    for other in candidates:
        if other is start:
            continue
        varies = [d for d in range(len(shape)) if not constant_along(main, d)]
        spread = any(other.shape[d] == 1 and shape[d] > 1 for d in varies)
        if spread and all(constant_along(other, d) for d in varies):
            flow.freeze(other, "it multiplies or shifts several channels at once")
            continue
        main, other = torch.broadcast_tensors(main, other)
        flow.labels.tie(main, other)
        if compact(other).numel() < compact(main).numel():  # what is tied may stand for all: the simpler one does
            main, other = other, main
        main = compact(torch.where(main == FILLER, other, main)) if bool((main == FILLER).any()) else compact(main)
    if any(other.shape[d] > 1 for other in fixed for d in range(len(shape)) if not constant_along(main, d)):
        flow.freeze(main, "it meets a tensor of fixed size")
    return main.expand(shape)
