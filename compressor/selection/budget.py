"""What a pruning counts: nodes, multiply-adds, parameters or bytes, and how they fall while nodes are removed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from compressor.model.cost import count
from compressor.model.inputs import Inputs
from compressor.settings import Resource
from compressor.types.structure import Group, Structure


class Meter:
    """How much of a resource a network needs, while nodes of its groups are removed one by one.

    Attributes:
        unit: what is counted.
        total: what the network had as it was first given.
        amount: what is left.
    """

    def __init__(self, structure: Structure, unit: Resource = "nodes", prices: Prices | None = None, total: float = 0) -> None:
        """Start from a structure.

        Args:
            prices: what each tensor's entries cost; not needed for nodes.
            total: of the network as it was first given; that of `structure` by default.
        """
        self.unit = unit
        self.prices = dict(prices.of_entries) if prices else {}
        self._sizes = {name: list(structure.shapes.get(name, ())) for name in self.prices}  # one entry: a counter
        rest = prices.rest if prices else 0.0
        self.amount: float = structure.nodes if unit == "nodes" else rest + sum(map(self._of, self._sizes))
        self.total = total or (structure.total_nodes if unit == "nodes" else self.amount)
        self._places = {g.name: _places(g, self._sizes) for g in structure.prunable}

    def _of(self, tensor: str) -> float:
        return self.prices[tensor] * math.prod(self._sizes[tensor])

    def remove(self, group: Group, nodes: int) -> None:
        """Count that many nodes of a group less; a negative number brings them back."""
        if self.unit == "nodes":
            self.amount -= nodes * group.multiplicity
            return
        places = self._places[group.name]
        tensors = {tensor for tensor, _ in places}
        self.amount -= sum(map(self._of, tensors))
        for (tensor, dim), each in places.items():
            self._sizes[tensor][dim] -= nodes * each
        self.amount += sum(map(self._of, tensors))

    def price(self, group: Group) -> float:
        """What one node of a group costs now."""
        before = self.amount
        self.remove(group, 1)
        cost = before - self.amount
        self.remove(group, -1)
        return cost

    def wanted(self, removed: float) -> float:
        """What is left when a share of the total is gone."""
        return self.total - round(removed * self.total) if self.unit == "nodes" else (1 - removed) * self.total


def _places(group: Group, sizes: Mapping[str, list[int]]) -> dict[tuple[str, int], int]:
    """(tensor, dimension) -> entries along it that go with one node."""
    found: dict[tuple[str, int], int] = {}
    for s in group.slices:
        if s.tensor in sizes:
            found[s.tensor, s.dim] = found.get((s.tensor, s.dim), 0) + s.index.shape[1]
    return found


@dataclass(frozen=True)
class Prices:
    """What a network's tensors cost.

    Attributes:
        of_entries: tensor -> what one of its entries costs.
        rest: what belongs to no tensor, such as the multiply-adds of products of activations.
    """

    of_entries: Mapping[str, float]
    rest: float = 0.0


def prices(unit: Resource, model: nn.Module, inputs: Inputs, came: nn.Module | None = None) -> Prices:
    """What the entries of every tensor cost.

    A layer's multiply-adds fall with the entries of its weights: each of them meets as many positions as before. That is
    exact for convolutions and linear layers over channels; where it is not (attention, layers over positions), the pipeline
    counts the network that is left, and cuts again.

    Args:
        came: the network in the precision that it is saved in, for bytes.
    """
    if unit == "nodes":
        return Prices({})
    if unit == "parameters":
        return Prices({name: 1.0 for name, _ in model.named_parameters()})
    if unit == "bytes":
        source = came or model
        return Prices({name: float(t.element_size()) for name, t in (*source.named_parameters(), *source.named_buffers())})
    found: dict[str, float] = {}
    counted = count(model, inputs)
    rest = float(counted.macs)
    for layer, macs in counted.by_layer.items():
        own = {
            f"{layer}.{n}".removeprefix("."): p
            for n, p in model.get_submodule(layer).named_parameters(recurse=False)
            if p.dim() > 1
        }
        if entries := sum(p.numel() for p in own.values()):
            found |= dict.fromkeys(own, macs / entries)
            rest -= macs
    return Prices(found, rest)
