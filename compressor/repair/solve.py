"""The least squares of a layer, in float64: what to add to its weight, and how much ridge.

For a residual e = y - W0 x between what a layer should give and what it gives, D = C_ex (C_xx + lambda I)^-1 is added to W0:
the ridge shrinks towards the weight that is there. Where rows are fewer than columns, the same by the rows' inner products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.model.moments import Moments, Rows

RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Of the mean diagonal of C_xx, tried on rows kept aside."""


@dataclass(frozen=True)
class Refit:
    """What a layer's least squares found.

    Attributes:
        change: `(groups, outputs, columns)`, to be added to the weight.
        shift: `(groups, outputs)`, to be added to what comes out.
        ridge: chosen, as a share of the mean diagonal; None: the weight stays.
        before: mean square of what is missing on the rows kept aside; `after` the refit.
        rows: fitted on.
    """

    change: Tensor
    shift: Tensor
    ridge: float | None
    before: float
    after: float
    rows: int


def refit(fit: Moments, aside: Moments, centred: bool, ridges: Sequence[float] = RIDGES) -> Refit:
    """The refit of a layer from the sums over its rows.

    Args:
        fit: rows to fit on; it takes in the others.
        aside: rows to choose the ridge on; fitted on with the others once it is chosen.
        centred: an offset may go elsewhere, into a bias or a norm.
    """
    before = float(aside.ee.sum() / aside.rows)
    changes = _solutions(*(fit.centred() if centred else (fit.xx, fit.xe)), ridges)
    best, ridge = aside.missing(torch.zeros_like(fit.xe), _shift(fit, torch.zeros_like(fit.xe), centred)), None
    for tried, change in zip(ridges, changes, strict=True):
        if change is not None and (missing := aside.missing(change, _shift(fit, change, centred))) < best:
            best, ridge = missing, tried
    del changes
    fit.absorb(aside)
    change = torch.zeros_like(fit.xe)
    if ridge is not None:
        [found] = _solutions(*(fit.centred() if centred else (fit.xx, fit.xe)), [ridge])
        change = change if found is None else found
    return Refit(change.transpose(1, 2), _shift(fit, change, centred), ridge, before, best, fit.rows)


def refit_dual(fit: Rows, aside: Rows, centred: bool, ridges: Sequence[float] = RIDGES) -> Refit:
    """The same where the rows are fewer than the columns, from the rows themselves: no matrix of columns by columns is held."""
    before = float(aside.e.square().sum() / aside.e.shape[1])
    x, e, x0, e0 = _centred(fit, centred)
    inner, columns = x @ x.transpose(1, 2), x.shape[2]
    across = (aside.x - x0) @ x.transpose(1, 2)
    best, ridge = float((aside.e - e0).square().sum() / aside.e.shape[1]), None
    for tried in ridges:
        weights = _solved(inner, e, tried * _scale(inner, columns))
        if weights is None:
            continue
        missing = float((aside.e - e0 - across @ weights).square().sum() / aside.e.shape[1])
        if missing < best:
            best, ridge = missing, tried
    both = Rows.joined([fit, aside])
    x, e, x0, e0 = _centred(both, centred)
    inner = x @ x.transpose(1, 2)
    weights = None if ridge is None else _solved(inner, e, ridge * _scale(inner, columns))
    if weights is None:
        weights = torch.zeros_like(e)
    shift = (e0 - (x0 @ x.transpose(1, 2)) @ weights)[:, 0]
    return Refit(weights.transpose(1, 2) @ x, shift, ridge, before, best, both.x.shape[1])


def _centred(rows: Rows, centred: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows without their means, and the means; those are 0 where they may not go elsewhere."""
    if not centred:
        return rows.x, rows.e, torch.zeros_like(rows.x[:, :1]), torch.zeros_like(rows.e[:, :1])
    x0, e0 = rows.x.mean(1, keepdim=True), rows.e.mean(1, keepdim=True)
    return rows.x - x0, rows.e - e0, x0, e0


def _scale(inner: Tensor, columns: int) -> Tensor:
    """The mean diagonal of the columns' products, from the rows'."""
    return torch.diagonal(inner, dim1=1, dim2=2).sum(1) / columns


def _shift(moments: Moments, change: Tensor, centred: bool) -> Tensor:
    """The mean that is missing after a change `(groups, columns, outputs)`: `(groups, outputs)`."""
    if not centred:
        return torch.zeros_like(moments.e)
    return (moments.e - (change * moments.x[:, :, None]).sum(1)) / moments.rows


def _solutions(xx: Tensor, xe: Tensor, ridges: Sequence[float]) -> list[Tensor | None]:
    scale = torch.diagonal(xx, dim1=1, dim2=2).mean(1)
    return [_solved(xx, xe, ridge * scale) for ridge in ridges]


def _solved(matrix: Tensor, right: Tensor, ridge: Tensor) -> Tensor | None:
    """`(matrix + ridge I)^-1 right` of each group; None where that is not positive definite."""
    shifted = matrix.clone()
    torch.diagonal(shifted, dim1=1, dim2=2).add_(torch.where(ridge > 0, ridge, torch.ones_like(ridge))[:, None])
    factor, info = torch.linalg.cholesky_ex(shifted)
    if bool(info.any()):
        return None
    solution: Tensor = torch.cholesky_solve(right, factor)
    return solution if bool(torch.isfinite(solution).all()) else None
