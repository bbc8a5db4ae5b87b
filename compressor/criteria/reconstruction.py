"""What the readers of a node can no longer give once it is gone, however well the rest is refitted.

Layer-wise Optimal Brain Surgeon over nodes: with C the second moments of what a layer meets, P = C^-1 and S the columns of a
node, the error that remains after the best refit is tr(W_S (P_SS)^-1 W_S^T); then W and P are those of the layer without it.
Of a layer of many columns the taps of its kernel are taken apart: the others of one tap are what stands in for a node there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.criteria.magnitude import node_magnitude
from compressor.model.affine import Affine, affine_of, draw
from compressor.model.moments import Moments, Rows
from compressor.model.observe import observed
from compressor.objective.batches import size_of
from compressor.objective.objective import Objective
from compressor.types.scores import Scores
from compressor.types.structure import Slice, Structure

SAMPLES = 1024
"""Looked at; more change the order of nodes little."""

ROWS, FEWER = 8192, 4096
"""Rows of a layer's second moments; the fewer where its columns are taken apart."""

WIDE = 1152
"""Columns that a layer's second moments have at most, 10 MB: 25,088 would take 5 GB, and 4,608 minutes."""

RIDGE = 1e-3
"""Of the mean diagonal of C, added to it."""

SHARE = 32
"""One in so many of the nodes that are left goes at a time."""

MORE = 2.0
"""Times what nodes cost each alone: those that cost more together do not go at the same time."""


@dataclass
class _Reader:
    """A layer, or one group of a grouped one, while nodes go.

    Attributes:
        weight: `(outputs, columns)` as the best refit has it now.
        inverse: of the second moments, `(columns, columns)`.
        columns: of each node, `(width, k)`.
        total: what the layer gives in the dense network, squared, per row.
    """

    weight: Tensor
    inverse: Tensor
    columns: Tensor
    total: float

    def costs(self, nodes: Tensor) -> Tensor:
        """The share of `total` that is lost with each of these nodes alone, `(nodes,)`."""
        own = self.columns[nodes]
        weights = self.weight[:, own].permute(1, 2, 0)  # (nodes, k, outputs)
        solved = torch.linalg.solve(self.inverse[own[:, :, None], own[:, None, :]], weights)
        lost: Tensor = (weights * solved).sum((1, 2)) / self.total
        return lost

    def together(self, nodes: Tensor) -> float:
        """The share of `total` that is lost with all of these nodes."""
        own = self.columns[nodes].flatten()
        weights = self.weight[:, own].T
        return float((weights * torch.linalg.solve(self.inverse[own][:, own], weights)).sum()) / self.total

    def remove(self, nodes: Tensor) -> None:
        """Refit to what is left without these nodes."""
        own = self.columns[nodes].flatten()
        beside, weights = self.inverse[:, own], self.weight[:, own]
        solved = torch.linalg.solve(beside[own], torch.cat([weights.T, beside.T], 1))
        self.weight.addmm_(solved[:, : len(weights)].T, beside.T, alpha=-1)
        self.inverse.addmm_(beside, solved[:, len(weights) :], alpha=-1)
        self.weight[:, own] = 0
        self.inverse[own] = 0
        self.inverse[:, own] = 0
        self.inverse[own, own] = 1


def reconstruction(model: nn.Module, structure: Structure, objective: Objective) -> Scores:
    """The error of a node's readers by the time it goes, the weakest first, with all that went before it.

    Summed over the readers, each as a share of what it gives. Where no convolution or linear layer reads a node, the share of
    the squared weights that made it and all weaker ones.
    """
    met: dict[tuple[object, ...], _Met] = {}
    reads: dict[str, list[_Read]] = {}
    for group in structure.prunable:
        reads[group.name] = [_read(model, s, part, met) for s in group.slices for part in _parts(model, s)]
    samples = _look(model, list(met.values()), objective)
    made = node_magnitude(model, structure).values
    values = {}
    for group in structure.prunable:
        readers = [reader for read in reads[group.name] for reader in read.readers()]
        values[group.name] = _rising(readers, group.width) if readers else _of_makers(made[group.name])
    return Scores(values, None, samples)


@dataclass
class _Met:
    """What a layer, or one group of a grouped one, meets.

    Attributes:
        layer: its module's name.
        part: the group of a grouped layer.
        columns: `(width, k)` of the nodes whose columns are taken apart; None: all columns together.
        moments: of all columns; or of each of the k alone.
    """

    layer: str
    part: int
    affine: Affine
    columns: Tensor | None
    moments: Moments = field(default_factory=Moments)

    def see(self, x: Tensor, y: Tensor, share: float, generator: torch.Generator) -> None:
        """Take in some rows: `share` of all that are wanted."""
        count = max(1, round(share * (ROWS if self.columns is None else FEWER)))
        places = [p.to(y.device) for p in draw(self.affine.positions(y), count, generator)]
        rows = self.affine.columns(x, places)[self.part]
        found = rows[None] if self.columns is None else rows[:, self.columns].permute(2, 0, 1)  # (k, rows, width)
        found = found.double()
        self.moments.add(Rows(found, found[:, :, :1]))


@dataclass(frozen=True)
class _Read:
    """How a layer, or one group of it, reads the nodes of a group.

    Attributes:
        weight: `(outputs, columns)`.
        columns: of each node, `(width, k)`, in the order of `Affine.matrix`.
    """

    met: _Met
    weight: Tensor
    columns: Tensor

    def readers(self) -> list[_Reader]:
        """One, or one for each of the k columns of a node where those are taken apart."""
        if self.met.moments.rows < 2:
            return []
        second, _ = self.met.moments.centred()
        second, apart = second / self.met.moments.rows, self.met.columns is not None
        own = torch.arange(len(self.columns), device=self.columns.device)[:, None]
        weights = [self.weight[:, self.columns[:, place]] for place in range(len(second))] if apart else [self.weight]
        pairs = [(weight.double(), c) for weight, c in zip(weights, second, strict=True)]
        total = sum(float(((weight @ c) * weight).sum()) for weight, c in pairs)
        return (
            [_Reader(weight.clone(), _inverse(c), own if apart else self.columns, total) for weight, c in pairs]
            if total > 0
            else []
        )


def _inverse(c: Tensor) -> Tensor:
    ridge = RIDGE * c.diagonal().mean().clamp_min(torch.finfo(c.dtype).tiny)
    found: Tensor = torch.linalg.inv(c + ridge * torch.eye(len(c), dtype=c.dtype, device=c.device))
    return found


def _read(model: nn.Module, s: Slice, part: int, met: dict[tuple[object, ...], _Met]) -> _Read:
    """How one group of a layer reads a slice; what it meets is added to `met`, once where its columns are taken together."""
    module = model.get_submodule(s.layer)
    affine = affine_of(module)
    assert affine is not None
    weight = affine.matrix(module.get_parameter("weight").detach())[part]
    index, taps = s.index, math.prod(affine.kernel)
    if affine.transposed and affine.groups > 1:  # its channels are counted over all groups
        index = _inside(index, part, weight.shape[1] // taps)
    columns = (index[:, :, None] * taps + torch.arange(taps)).flatten(1).to(weight.device)
    whole = weight.shape[1] <= WIDE
    key = (s.layer, part) if whole else (s.layer, part, len(met))
    return _Read(met.setdefault(key, _Met(s.layer, part, affine, None if whole else columns)), weight, columns)


def _parts(model: nn.Module, s: Slice) -> range:
    """The groups of a layer in which nodes are read; none where it is no layer that could be refitted."""
    affine = affine_of(model.get_submodule(s.layer)) if s.role == "read" else None
    return range(0) if affine is None else range(affine.groups)


def _look(model: nn.Module, layers: Sequence[_Met], objective: Objective) -> int:
    """Show the layers some samples; how many those were."""
    generator = torch.Generator().manual_seed(objective.seed)
    share, samples = 0.0, 0
    with observed(model) as twin, torch.no_grad():
        for layer in layers:

            def seen(_: nn.Module, given: tuple[Tensor, ...], y: Tensor, layer: _Met = layer) -> None:
                layer.see(given[0], y, share, generator)

            twin.get_submodule(layer.layer).register_forward_hook(seen)
        for batch in objective.batches():
            size = size_of(batch)
            share = size / SAMPLES
            objective.forward(twin, batch)
            samples += size
            if samples >= SAMPLES:
                break
    return samples


def _inside(index: Tensor, part: int, channels: int) -> Tensor:
    """Of each node's channels `(width, k)`, counted over all groups of a layer, those of one group, counted within it.

    A node has as many in each group as any other: what the groups read at one place is tied.
    """
    inside = (index >= part * channels) & (index < (part + 1) * channels)
    return index[inside].reshape(len(index), -1) - part * channels


def _rising(readers: Sequence[_Reader], width: int) -> Tensor:
    """The share that is lost by the time each node goes, `(width,)`."""
    device = readers[0].columns.device
    left, lost = torch.arange(width, device=device), 0.0
    values = torch.zeros(width, dtype=torch.float64)
    while len(left) > 1:
        costs = torch.stack([reader.costs(left) for reader in readers]).sum(0)
        order = costs.argsort()
        count = min(max(1, len(left) // SHARE), len(left) - 1)
        together = _together(readers, left[order[:count]])
        while count > 1 and together > MORE * float(costs[order[:count]].sum()):  # one stands in for another of them
            count //= 2
            together = _together(readers, left[order[:count]])
        gone = left[order[:count]]
        for reader in readers:
            reader.remove(gone)
        values[gone.cpu()] = lost + together * torch.arange(1, count + 1, dtype=torch.float64) / count
        lost += together
        left = left[~torch.isin(left, gone)]
    values[left.cpu()] = lost + _together(readers, left)
    return values


def _together(readers: Sequence[_Reader], nodes: Tensor) -> float:
    return sum(reader.together(nodes) for reader in readers)


def _of_makers(sizes: Tensor) -> Tensor:
    """The share of all squares that a node and all smaller ones have, `(width,)`."""
    squares = sizes.double().square()
    order = squares.argsort()
    values = torch.empty_like(squares)
    values[order] = squares[order].cumsum(0) / squares.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return values
