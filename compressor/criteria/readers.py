"""The convolutions and linear layers that read a group's nodes and what they meet there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.model.affine import Affine, affine_of, draw
from compressor.model.moments import Moments, Rows
from compressor.model.observe import observed
from compressor.objective.batches import size_of
from compressor.objective.objective import Objective
from compressor.types.structure import Slice, Structure

SAMPLES = 1024
"""Looked at; more change the order of nodes little."""

ROWS, FEWER = 8192, 4096
"""Rows of a layer's second moments; the fewer where its columns are taken apart."""

WIDE = 1152
"""Columns that a layer's second moments have at most, 10 MB: 25,088 would take 5 GB, and 4,608 minutes."""

RIDGE = 1e-3
"""Of the mean diagonal of C, added to it."""


@dataclass
class Met:
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
class Read:
    """How a layer, or one group of it, reads the nodes of a group.

    Attributes:
        weight: `(outputs, columns)`.
        columns: of each node, `(width, k)`, in the order of `Affine.matrix`.
    """

    met: Met
    weight: Tensor
    columns: Tensor

    def second(self) -> Tensor:
        """The second moments of what is met, centred and with a ridge, `(1, columns, columns)` or `(k, width, width)`."""
        found, _ = self.met.moments.centred()
        found = found / self.met.moments.rows
        ridge = RIDGE * found.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(found.dtype).tiny)
        return found + ridge[:, None, None] * torch.eye(found.shape[1], dtype=found.dtype, device=found.device)


def reads_of(model: nn.Module, structure: Structure, objective: Objective) -> tuple[dict[str, list[Read]], int]:
    """Group -> how its nodes are read, with the moments of what is met there on some samples; and how many samples."""
    met: dict[tuple[object, ...], Met] = {}
    reads = {g.name: [_read(model, s, part, met) for s in g.slices for part in _parts(model, s)] for g in structure.prunable}
    return reads, _look(model, list(met.values()), objective)


def _read(model: nn.Module, s: Slice, part: int, met: dict[tuple[object, ...], Met]) -> Read:
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
    return Read(met.setdefault(key, Met(s.layer, part, affine, None if whole else columns)), weight, columns)


def _parts(model: nn.Module, s: Slice) -> range:
    """The groups of a layer in which nodes are read; none where it is no layer that could be refitted."""
    affine = affine_of(model.get_submodule(s.layer)) if s.role == "read" else None
    return range(0) if affine is None else range(affine.groups)


def _look(model: nn.Module, layers: Sequence[Met], objective: Objective) -> int:
    """Show the layers some samples; how many those were."""
    generator = torch.Generator().manual_seed(objective.seed)
    share, samples = 0.0, 0
    with observed(model) as twin, torch.no_grad():
        for layer in layers:

            def seen(_: nn.Module, given: tuple[Tensor, ...], y: Tensor, layer: Met = layer) -> None:
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
