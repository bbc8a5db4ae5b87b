"""Sums over the rows of a layer's least squares, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of a layer's least squares, float64.

    Attributes:
        x: `(groups, rows, columns)`.
        e: `(groups, rows, outputs)`, what is missing.
    """

    x: Tensor
    e: Tensor

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """All rows of several."""
        return Rows(torch.cat([p.x for p in parts], 1), torch.cat([p.e for p in parts], 1))


class Moments:
    """Sums over rows that a least squares needs: `(groups, columns, columns)` and the like, float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.x = self.e = self.xx = self.xe = self.ee = torch.zeros((), dtype=torch.float64)

    def add(self, part: Rows) -> None:
        if not self.rows:
            groups, _, columns = part.x.shape
            self.xx = part.x.new_zeros(groups, columns, columns)
            self.xe = part.x.new_zeros(groups, columns, part.e.shape[2])
        self.rows += part.x.shape[1]
        turned = part.x.transpose(1, 2)
        self.x, self.e, self.ee = self.x + part.x.sum(1), self.e + part.e.sum(1), self.ee + part.e.square().sum(1)
        self.xx.baddbmm_(turned, part.x)  # in place: the matrices are what fills the memory
        self.xe.baddbmm_(turned, part.e)

    def absorb(self, other: Moments) -> None:
        """Take in, in place, what another has summed."""
        self.rows += other.rows
        for name in ("x", "e", "xx", "xe", "ee"):
            setattr(self, name, getattr(self, name).add_(getattr(other, name)))

    def centred(self) -> tuple[Tensor, Tensor]:
        """`C_xx` and `C_xe`, times the number of rows."""
        mean = self.x / self.rows
        return self.xx - mean[:, :, None] * self.x[:, None, :], self.xe - mean[:, :, None] * self.e[:, None, :]

    def missing(self, change: Tensor, shift: Tensor) -> float:
        """Mean square that is still missing after a refit, per row.

        Args:
            change: `(groups, columns, outputs)`.
        """
        square = self.ee - 2 * (change * self.xe).sum(1) + (change * (self.xx @ change)).sum(1)
        cross = self.e - (change * self.x[:, :, None]).sum(1)
        return float((square - 2 * shift * cross + self.rows * shift.square()).sum() / self.rows)
