"""Penalties against their closed formulas, by hand, and their derivatives against differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.coupling import structure
from compressor.criteria.penalties import group_hoyer_square, hoyer_square
from compressor.method import make

W = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)


def test_hoyer_square_by_hand() -> None:
    # (3 + 4)^2 / (9 + 16); a single entry costs 1, n equal ones n
    assert float(hoyer_square([W])) == pytest.approx(49 / 25)
    assert float(hoyer_square([torch.tensor([0.0, -5.0]), torch.ones(7)])) == pytest.approx(1 + 7)
    assert float(hoyer_square([torch.zeros(3)])) == 0


def test_group_hoyer_square_by_hand() -> None:
    # rows have norms 3 and 4, columns as well
    assert float(group_hoyer_square([W])) == pytest.approx(2 * 49 / 25)
    # one row of norm 5 and one of 0; columns of norms 3 and 4
    assert float(group_hoyer_square([torch.tensor([[3.0, 4.0], [0.0, 0.0]])])) == pytest.approx(1 + 49 / 25, rel=1e-5)


def test_group_hoyer_square_takes_a_kernel_as_one() -> None:
    # both kernels of the one output together: norm 5; per input: norms 3 and 4
    kernel = torch.zeros(1, 2, 2, 2)
    kernel[0, 0, 0, 1], kernel[0, 1, 1, 0] = 3, 4
    assert float(group_hoyer_square([kernel])) == pytest.approx(1 + 49 / 25, rel=1e-5)


@pytest.mark.parametrize("penalty", [hoyer_square, group_hoyer_square])
def test_the_penalties_do_not_depend_on_scale(penalty) -> None:
    w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(penalty([10 * w])) == pytest.approx(float(penalty([w])))


@pytest.mark.parametrize("penalty", [hoyer_square, group_hoyer_square])
def test_derivatives_are_those_of_the_formula(penalty) -> None:
    w = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: penalty([v]), (w,))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()


def test_each_method_adds_its_penalty_times_its_strength() -> None:
    model = network()
    found = structure(model, (torch.randn(2, 1, 4, 4),))
    weights = [model[0].weight.detach(), model[4].weight.detach()]
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.0]))
    wanted = {
        "slimming": 6.0,
        "hoyer-square": float(sum(w.abs().sum() ** 2 / w.square().sum() for w in weights)),
        "group-hs": float(group_hoyer_square(weights)),
    }
    for name, value in wanted.items():
        penalty = make(name, {"strength": 0.5}).penalty(model, found)
        assert float(penalty.detach()) == pytest.approx(0.5 * value)
        assert penalty.requires_grad
    assert make("snapit", {}).penalty(model, found) is None


def test_slimming_pays_for_gamma_with_its_sign() -> None:
    model = network()
    found = structure(model, (torch.randn(2, 1, 4, 4),))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.0]))
    make("slimming", {"strength": 0.1}).penalty(model, found).backward()
    assert model[1].weight.grad.tolist() == pytest.approx([0.1, -0.1, 0.1, 0.0])
    assert model[0].weight.grad is None
