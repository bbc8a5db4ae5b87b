"""What training may be made to pay for, so that what is to go becomes small on the way."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from compressor.model.weights import maskable
from compressor.surgery.shrink import tensors_of
from compressor.types.structure import Structure

SMALLEST = 1e-12
"""Added to the squares, so that a weight of zeros costs nothing and has a derivative."""


def hoyer_square(weights: Iterable[Tensor]) -> Tensor:
    """Sum over the weights of (sum |w|)^2 / sum w^2: 1 with one entry left, at most their number (DeepHoyer, eq. 3)."""
    return _sum([w.abs().sum() ** 2 / (w.square().sum() + SMALLEST) for w in weights])


def group_hoyer_square(weights: Iterable[Tensor]) -> Tensor:
    """Sum over the weights of (sum_g ||w_g||)^2 / sum_g ||w_g||^2, rows as groups and then columns (DeepHoyer, eq. 7).

    A row is all that makes one output, a column all that reads one input, `(outputs, inputs, ...)`.
    """
    parts = []
    for w in weights:
        squares = w.square().flatten(2).sum(2) if w.dim() > 2 else w.square()
        for dim in (0, 1):
            norms = (squares.sum(1 - dim) + SMALLEST).sqrt()
            parts.append(norms.sum() ** 2 / (squares.sum() + SMALLEST))
    return _sum(parts)


def norm_scales_l1(model: nn.Module, structure: Structure) -> Tensor:
    """Sum of |gamma| over the batch norms behind layers that may lose nodes (Network Slimming, eq. 1)."""
    tensors = tensors_of(model)
    names = {f"{structure.norms.get(s.layer)}.weight" for g in structure.prunable for s in g.slices if s.role == "produce"}
    return _sum([tensors[name].abs().sum() for name in sorted(names) if name in tensors])


def penalised(model: nn.Module) -> list[Tensor]:
    """The weights that a penalty on weights is about."""
    return list(maskable(model).values())


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum() if parts else torch.zeros(())
