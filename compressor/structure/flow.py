"""What is known while the labels run through a network, and what can be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.structure.grouping import Axis
from compressor.structure.labels import FILLER, Labels, compact, constant_along
from compressor.types import Role


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer on its way to the operator that uses it."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A buffer or constant of integers, such as the indices of a channel shuffle; its values matter, not labels."""

    value: Tensor


@dataclass
class Flow:
    """What is known while the labels run through the network.

    Attributes:
        layers: the network's convolutions and linear layers, by name.
        frozen_layers: layer that the labels cannot follow -> why; its outputs are nodes all the same, and stay.
        where: layer and operator at hand, for messages.
    """

    layers: Mapping[str, nn.Module]
    labels: Labels = field(default_factory=Labels)
    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    frozen_layers: dict[str, str] = field(default_factory=dict)
    where: str = ""

    def axis(self, parameter: Parameter, dim: int, role: Role) -> Tensor:
        """Labels `(size,)` of one dimension of a parameter; the same at every use, so that shared weights stay shared."""
        self.shapes[parameter.name] = parameter.shape
        place = (parameter.name, dim)
        if place not in self.axes:
            self.axes[place] = Axis(parameter.name, dim, role, self.labels.fresh(parameter.shape[dim]))
        return self.axes[place].labels

    def read(self, parameter: Parameter, dim: int, labels: Tensor) -> None:
        """The parameter's dimension `dim` uses the channels `labels` `(size,)`."""
        self.labels.tie(self.axis(parameter, dim, "read"), labels)

    def carry(self, parameter: Any, labels: Tensor) -> None:
        """A one-dimensional bias, scale or statistic belongs to the channels `labels` `(size,)`."""
        if isinstance(parameter, Parameter):
            self.labels.tie(self.axis(parameter, 0, "carry"), labels)
        elif isinstance(parameter, Tensor):
            self.freeze([parameter, labels], "its bias or scale is computed, not stored")

    def entry_labels(self, parameter: Parameter) -> Tensor:
        """A label for every entry of a parameter that meets activations element by element."""
        if parameter.name not in self.entries:
            self.shapes[parameter.name] = parameter.shape
            self.entries[parameter.name] = self.labels.fresh(*parameter.shape)
        return self.entries[parameter.name]

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

    def stays(self, shape: tuple[int, ...], reason: str) -> Tensor:
        """Labels of something that is not a node: one per index of the channel dimension, frozen."""
        if len(shape) < 2:
            return torch.full(shape, FILLER)
        labels = self.labels.fresh(*(size if dim == 1 else 1 for dim, size in enumerate(shape)))
        self.labels.freeze(labels, reason)
        return labels.expand(shape)

    def channels(self, x: Tensor, dim: int, reason: str) -> Tensor:
        """The labels `(size,)` along `dim`; labels that share an index there are tied.

        Freezes `x` where its channels lie along other dimensions and none along this one.
        """
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
