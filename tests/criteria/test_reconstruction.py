"""L-OBS over nodes against the closed form: what readers miss, after the best refit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from compressor.coupling.validate import feasible
from compressor.criteria import readers
from compressor.criteria.readers import RIDGE, WIDE
from compressor.criteria.reconstruction import reconstruction
from compressor.model.affine import affine_of, draw
from compressor.objective.objective import Objective
from compressor.proof.prove import randomised
from compressor.surgery.shrink import tensors_of
from tests.blocks import BLOCKS


class Two(nn.Sequential):
    """Six nodes that one linear layer reads."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def scored(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found = feasible(model, (x[:2],))
    return dict(reconstruction(model, found, Objective([(x, torch.zeros(len(x)))])).values)


def missed(weight: Tensor, c: Tensor, gone: list[int]) -> float:
    """min over W' without the columns of E |W x - W' x|^2, as a share of E |W x|^2."""
    stay = [n for n in range(len(c)) if n not in gone]
    best = weight @ c[:, stay] @ torch.linalg.inv(c[stay][:, stay])
    left = weight @ c @ weight.T - 2 * best @ (c[stay] @ weight.T) + best @ c[stay][:, stay] @ best.T
    return float(left.trace() / (weight @ c @ weight.T).trace())


def test_costs_are_the_closed_form_and_each_next_node_is_the_cheapest() -> None:
    model, x = Two(), torch.randn(500, 4)
    with torch.no_grad():
        met = model[1](model[0](x)).double()
    c = torch.cov(met.T, correction=0)
    ridged = c + RIDGE * c.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    weight = model[2].weight.detach().double()
    total = float((weight @ c @ weight.T).trace() / (weight @ ridged @ weight.T).trace())
    [values] = scored(model, x).values()
    order = values.argsort().tolist()
    for count in range(1, 6):
        gone = order[:count]
        assert float(values[order[count - 1]]) == pytest.approx(missed(weight, ridged, gone) / total, rel=1e-6)
        others = [missed(weight, ridged, [*order[: count - 1], n]) for n in range(6) if n not in order[: count - 1]]
        assert missed(weight, ridged, gone) == pytest.approx(min(others)), "greedy"


@pytest.mark.parametrize("wide", [WIDE, 0])
def test_a_copy_of_a_node_costs_nothing(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the columns of a layer are taken apart."""
    monkeypatch.setattr(readers, "WIDE", wide)
    model, x = Two(), torch.randn(400, 4)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[4] = tensor[1]
    [values] = scored(model, x).values()
    assert values.argsort()[0] in (1, 4)
    assert float(values.min()) < 0.01 * float(values.sort().values[1:].mean())


def test_a_layer_too_wide_for_its_second_moments_is_scored_tap_by_tap() -> None:
    """Maps of 7x7, flattened, as in VGG16, whose 25,088 columns together would take 5 GB."""
    model = nn.Sequential(nn.Conv2d(3, 64, 2), nn.Tanh(), nn.Flatten(), nn.Linear(64 * 49, 4))
    with torch.no_grad():
        model[0].weight[7], model[0].bias[7] = model[0].weight[3], model[0].bias[3]
    [values] = scored(model, torch.randn(400, 3, 8, 8)).values()
    assert model[3].in_features > WIDE
    order = values.argsort().tolist()
    assert order[0] in (3, 7)
    assert order[1] not in (3, 7), "the other one is what stands in for it"


@pytest.mark.parametrize("wide", [WIDE, 0])
@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_coupling_is_scored(name: str, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "WIDE", wide)
    torch.manual_seed(0)
    model = randomised(BLOCKS[name]()).eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    values = scored(model, torch.randn(64, 3, 8, 8))
    widths = {g.name: g.width for g in feasible(model, (torch.randn(2, 3, 8, 8),)).prunable}
    assert {n: len(v) for n, v in values.items()} == widths
    assert all(bool((v >= -1e-9).all()) for v in values.values())
    assert all(torch.equal(t, before[n]) for n, t in tensors_of(model).items() if n in before)


def test_columns_of_nodes_are_those_that_vanish_with_them() -> None:
    """On convolutions, grouped and transposed: without a channel, its columns are others, and no more."""
    for module, shape in (
        (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 6, 6)),
        (nn.Conv2d(4, 6, 3, groups=2), (5, 4, 6, 6)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (5, 4, 4, 4)),
    ):
        x = torch.randn(shape)
        affine = affine_of(module)
        assert affine is not None
        y = module(x)
        places = draw(affine.positions(y), 50, torch.Generator().manual_seed(0))
        rows, groups = affine.columns(x, places), affine.groups
        taps = rows.shape[2] // (4 // groups)
        for channel, part in itertools.product(range(4 // groups), range(groups)):
            without = x.clone()
            without[:, part * (4 // groups) + channel] = 0
            changed = affine.columns(without, places) != rows
            where = changed.any(1).nonzero()
            assert {int(g) for g, _ in where} <= {part}
            assert {int(c) for _, c in where} <= set(range(channel * taps, (channel + 1) * taps))
