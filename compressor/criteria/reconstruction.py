"""What the readers of a node can no longer give once it is gone, however well the rest is refitted.

Layer-wise Optimal Brain Surgeon over nodes: with C the second moments of what a layer meets, P = C^-1 and S the columns of a
node, the error that remains after the best refit is tr(W_S (P_SS)^-1 W_S^T); then W and P are those of the layer without it.
Of a layer of many columns the taps of its kernel are taken apart: the others of one tap are what stands in for a node there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.criteria.magnitude import node_magnitude
from compressor.criteria.readers import Read, reads_of
from compressor.objective.objective import Objective
from compressor.types.scores import Scores
from compressor.types.structure import Structure

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
    reads, samples = reads_of(model, structure, objective)
    made = node_magnitude(model, structure).values
    values = {}
    for group in structure.prunable:
        readers = [reader for read in reads[group.name] for reader in _readers(read)]
        values[group.name] = _rising(readers, group.width) if readers else _of_makers(made[group.name])
    return Scores(values, None, samples)


def _readers(read: Read) -> list[_Reader]:
    """One, or one for each of the k columns of a node where those are taken apart."""
    if read.met.moments.rows < 2:
        return []
    plain, _ = read.met.moments.centred()
    apart = read.met.columns is not None
    own = torch.arange(len(read.columns), device=read.columns.device)[:, None]
    weights = [read.weight[:, read.columns[:, place]] for place in range(len(plain))] if apart else [read.weight]
    triples = [(w.double(), c / read.met.moments.rows, r) for w, c, r in zip(weights, plain, read.second(), strict=True)]
    total = sum(float(((weight @ c) * weight).sum()) for weight, c, _ in triples)
    if total <= 0:
        return []
    return [_Reader(w.clone(), torch.linalg.inv(ridged), own if apart else read.columns, total) for w, _, ridged in triples]


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
