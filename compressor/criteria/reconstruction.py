"""What the readers of a node can no longer give once it is gone, however well the rest is refitted.

Layer-wise Optimal Brain Surgeon over nodes: with C the second moments of what a layer meets, P = C^-1 and S the columns of a
node, the error that remains after the best refit is tr(W_S (P_SS)^-1 W_S^T); then W and P are those of the layer without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.criteria.magnitude import node_magnitude
from compressor.model.affine import Affine, affine_of, draw
from compressor.model.moments import Moments, Rows
from compressor.model.observe import observed
from compressor.objective.batches import size_of
from compressor.objective.objective import Objective
from compressor.types.scores import Scores
from compressor.types.structure import Group, Slice, Structure

SAMPLES = 1024
"""Looked at; more change the order of nodes little."""

ROWS = 8192
"""Rows of a layer's second moments; `FEWER` where its columns are more than `WIDE`."""

FEWER, WIDE = 4096, 2048

RIDGE = 1e-3
"""Of the mean diagonal of C, added to it."""

SHARE = 32
"""One in so many of the nodes that are left goes at a time."""


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

    def remove(self, nodes: Tensor) -> float:
        """Remove them together; the share that is lost."""
        own = self.columns[nodes].flatten()
        beside, weights = self.inverse[:, own], self.weight[:, own]
        solved = torch.linalg.solve(beside[own], torch.cat([weights.T, beside.T], 1))
        lost = float((weights.T * solved[:, : len(weights)]).sum()) / self.total
        self.weight = self.weight - (beside @ solved[:, : len(weights)]).T
        self.inverse = self.inverse - beside @ solved[:, len(weights) :]
        self.weight[:, own] = 0
        self.inverse[own] = 0
        self.inverse[:, own] = 0
        self.inverse[own, own] = 1
        return lost


def reconstruction(model: nn.Module, structure: Structure, objective: Objective) -> Scores:
    """The error of a node's readers by the time it goes, the weakest first, with all that went before it.

    Summed over the readers, each as a share of what it gives. Where no convolution or linear layer reads a node, the share of
    the squared weights that made it and all weaker ones.
    """
    moments, samples = _moments(model, structure, objective)
    made = node_magnitude(model, structure).values
    values = {}
    for group in structure.prunable:
        readers = [reader for s in _reads(model, group) if s.tensor in moments for reader in _readers(model, s, moments)]
        values[group.name] = _rising(readers, group.width) if readers else _of_makers(made[group.name])
    return Scores(values, None, samples)


def _reads(model: nn.Module, group: Group) -> list[Slice]:
    return [s for s in group.slices if s.role == "read" and affine_of(model.get_submodule(s.layer)) is not None]


def _moments(model: nn.Module, structure: Structure, objective: Objective) -> tuple[dict[str, Moments], int]:
    """Weight -> second moments of what it meets, of the layers that read nodes; and the number of samples seen."""
    found: dict[str, Moments] = {}
    generator = torch.Generator().manual_seed(objective.seed)
    share, samples = 0.0, 0
    tensors = {s.tensor for g in structure.prunable for s in _reads(model, g)}
    with observed(model) as twin, torch.no_grad():
        for tensor in tensors:
            found[tensor] = Moments()
            layer = twin.get_submodule(tensor.rpartition(".")[0])
            affine = affine_of(layer)
            assert affine is not None

            def seen(
                module: nn.Module, given: tuple[Tensor, ...], y: Tensor, affine: Affine = affine, its: Moments = found[tensor]
            ) -> None:
                columns = affine.matrix(module.get_parameter("weight")).shape[2]
                count = max(1, round(share * (FEWER if columns > WIDE else ROWS)))
                places = [p.to(y.device) for p in draw(affine.positions(y), count, generator)]
                rows = affine.columns(given[0], places).double()
                its.add(Rows(rows, rows[:, :, :1]))

            layer.register_forward_hook(seen)
        for batch in objective.batches():
            size = size_of(batch)
            share = size / SAMPLES
            objective.forward(twin, batch)
            samples += size
            if samples >= SAMPLES:
                break
    return {tensor: its for tensor, its in found.items() if its.rows > 1}, samples


def _readers(model: nn.Module, s: Slice, moments: dict[str, Moments]) -> Iterator[_Reader]:
    """A layer as one reader, a grouped one as several."""
    module = model.get_submodule(s.layer)
    affine = affine_of(module)
    assert affine is not None
    matrix, its = affine.matrix(module.get_parameter("weight").detach().double()), moments[s.tensor]
    second, _ = its.centred()
    second = second / its.rows
    channels = matrix.shape[2] // max(1, _taps(affine))
    for part, (weight, c) in enumerate(zip(matrix, second, strict=True)):
        index = s.index
        if affine.transposed and affine.groups > 1:  # its channels are counted over all groups
            inside = (index >= part * channels) & (index < (part + 1) * channels)
            if not bool((inside.sum(1) == inside[0].sum()).all()) or not bool(inside.any()):
                continue  # a node has nothing here, or not as much as others
            index = index[inside].reshape(len(index), -1) - part * channels
        taps = torch.arange(_taps(affine))
        columns = (index[:, :, None] * len(taps) + taps).flatten(1).to(weight.device)
        total = float(((weight @ c) * weight).sum())
        if total > 0:
            ridge = RIDGE * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype, device=c.device)
            yield _Reader(weight.clone(), torch.linalg.inv(c + ridge), columns, total)


def _taps(affine: Affine) -> int:
    count = 1
    for size in affine.kernel:
        count *= size
    return count


def _rising(readers: Sequence[_Reader], width: int) -> Tensor:
    """The share that is lost by the time each node goes, `(width,)`."""
    left, lost = torch.arange(width), 0.0
    values = torch.zeros(width, dtype=torch.float64)
    while len(left) > 1:
        costs = torch.stack([reader.costs(left.to(reader.columns.device)).cpu() for reader in readers]).sum(0)
        count = min(max(1, len(left) // SHARE), len(left) - 1)
        gone = left[costs.argsort()[:count]]
        together = sum(reader.remove(gone.to(reader.columns.device)) for reader in readers)
        values[gone] = lost + together * torch.arange(1, count + 1, dtype=torch.float64) / count
        lost += together
        left = left[~torch.isin(left, gone)]
    values[left] = lost + sum(float(reader.costs(left.to(reader.columns.device)).sum()) for reader in readers)
    return values


def _of_makers(sizes: Tensor) -> Tensor:
    """The share of all squares that a node and all smaller ones have, `(width,)`."""
    squares = sizes.double().square()
    order = squares.argsort()
    values = torch.empty_like(squares)
    values[order] = squares[order].cumsum(0) / squares.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return values
