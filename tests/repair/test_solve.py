"""Least squares against the closed form in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressor.model.moments import Moments, Rows
from compressor.repair.solve import Refit, refit, refit_dual


def rows(count: int, columns: int = 7, outputs: int = 3, groups: int = 2) -> Rows:
    """Rows of one relation, with noise."""
    relation = torch.randn(groups, columns, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(groups, count, columns, dtype=torch.float64) + 2
    return Rows(x, x @ relation + torch.randn(groups, count, outputs, dtype=torch.float64))


def by_moments(fit: Rows, aside: Rows, centred: bool, ridges: list[float]) -> Refit:
    sums = []
    for part in (fit, aside):
        of = Moments()
        for half in part.x.shape[1] // 2, part.x.shape[1]:
            start = 0 if half != part.x.shape[1] else part.x.shape[1] // 2
            of.add(Rows(part.x[:, start:half], part.e[:, start:half]))
        sums.append(of)
    return refit(*sums, centred, ridges)


def closed(x: Tensor, e: Tensor, ridge: float, centred: bool) -> tuple[Tensor, Tensor]:
    """D = C_ex (C_xx + lambda I)^-1 of one group, and what the means leave."""
    x0, e0 = (x.mean(0), e.mean(0)) if centred else (torch.zeros_like(x[0]), torch.zeros_like(e[0]))
    gram = (x - x0).T @ (x - x0) / len(x)
    ridged = gram + ridge * gram.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    change = ((e - e0).T @ (x - x0) / len(x)) @ torch.linalg.inv(ridged)
    return change, e0 - change @ x0


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("solve", [by_moments, lambda f, a, c, r: refit_dual(f, a, c, r)])
def test_the_refit_is_the_closed_form(solve, centred: bool) -> None:
    fit, aside = rows(30), rows(12)
    found = solve(fit, aside, centred, [0.05])
    assert found.ridge == 0.05
    for group in range(2):
        x, e = (torch.cat([getattr(fit, name)[group], getattr(aside, name)[group]]) for name in ("x", "e"))
        change, shift = closed(x, e, 0.05, centred)
        assert torch.allclose(found.change[group], change)
        assert torch.allclose(found.shift[group], shift)


def test_fewer_rows_than_columns_give_the_same() -> None:
    fit, aside = rows(5, columns=40), rows(4, columns=40)
    one, other = refit_dual(fit, aside, True, [0.1]), by_moments(fit, aside, True, [0.1])
    assert torch.allclose(one.change, other.change)
    assert torch.allclose(one.shift, other.shift)
    assert one.after == pytest.approx(other.after)


def test_the_ridge_is_the_one_with_the_smallest_error_on_other_rows() -> None:
    """Noise in many columns wants a large one, a clean relation a small one; where nothing helps, the weight stays."""
    clean = rows(400)
    exact = Rows(clean.x, clean.x @ torch.randn(2, 7, 3, dtype=torch.float64))
    split = [Rows(exact.x[:, part], exact.e[:, part]) for part in (slice(300), slice(300, 400))]
    found = by_moments(*split, True, [1e-8, 1e-4, 1e-1])
    assert found.ridge == 1e-8
    assert found.after < 1e-9 * found.before
    noise = Rows(torch.randn(1, 60, 50, dtype=torch.float64), torch.randn(1, 60, 2, dtype=torch.float64))
    found = by_moments(Rows(noise.x[:, :55], noise.e[:, :55]), Rows(noise.x[:, 55:], noise.e[:, 55:]), True, [1e-8, 1e-6])
    assert found.ridge is None
    assert not bool(found.change.any())


def test_columns_that_are_all_zero_change_nothing() -> None:
    fit = rows(20)
    dead = Rows(torch.zeros_like(fit.x), fit.e)
    found = by_moments(dead, dead, True, [1e-8, 1e-1])
    assert not bool(found.change.any())
    assert torch.allclose(found.shift, fit.e.mean(1))
