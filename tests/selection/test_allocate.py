"""How much goes from which layer: the split that loses least, against a search of all; and what each allocation means."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

from compressor import compress
from compressor.coupling.validate import feasible
from compressor.errors import BadInput, UnreachableSparsity, WrongUsage
from compressor.model.cost import count
from compressor.proof.prove import randomised
from compressor.selection.allocate import by_curves, by_kind, cheapest
from compressor.selection.budget import Meter, prices
from compressor.selection.select import select
from compressor.surgery.network import GroupedNetwork
from compressor.types.curves import Curve
from compressor.types.scores import Scores

X = (torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def net(widths: tuple[int, ...] = (6, 5, 4)) -> GroupedNetwork:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise((3, *widths)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    model = randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))).eval()
    return GroupedNetwork(model, feasible(model, X, "heads"), X)


def curves_of(network: GroupedNetwork, seed: int) -> dict[str, Curve]:
    """Any that fall with the width."""
    draw, found = random.Random(seed), {}
    for group in network.structure.prunable:
        losses = [0.0]
        for _ in range(group.width - 1):
            losses.append(losses[-1] + draw.random() ** 3)
        found[group.name] = Curve(tuple(range(1, group.width + 1)), tuple(reversed(losses)))
    return found


def lost(curves: dict[str, Curve], widths: dict[str, int]) -> float:
    return sum(curves[name].at([width])[0] for name, width in widths.items())


def amount(network: GroupedNetwork, unit: str, widths: dict[str, int]) -> float:
    meter = Meter(network.structure, unit, prices(unit, network.model, network.inputs))
    for group in network.structure.prunable:
        meter.remove(group, group.width - widths[group.name])
    return meter.amount


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("unit", ["nodes", "macs", "parameters"])
def test_the_split_is_the_best_of_all(unit: str, seed: int) -> None:
    """Of nodes exactly; of what depends on two widths at a time, nearly: no split that needs as little loses much less."""
    network, share = net(), (0.3, 0.5, 0.7)[seed % 3]
    curves = curves_of(network, seed)
    meter = Meter(network.structure, unit, prices(unit, network.model, network.inputs))
    found = cheapest(curves, network.structure, meter, share, 1)
    needs, names = amount(network, unit, found), [g.name for g in network.structure.prunable]
    ranges = (range(1, g.width + 1) for g in network.structure.prunable)
    splits = [dict(zip(names, widths, strict=True)) for widths in itertools.product(*ranges)]
    limit = meter.wanted(share) if unit == "nodes" else max(needs, meter.wanted(share))
    best = min(lost(curves, split) for split in splits if amount(network, unit, split) <= limit)
    assert needs <= 1.02 * meter.wanted(share)
    if unit == "nodes":
        assert lost(curves, found) == pytest.approx(best)
    else:
        assert lost(curves, found) <= 1.35 * best + 0.05


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_cut_is_the_split(share: float) -> None:
    """Scores that are cut as the curves want it; which nodes of a group go, their own scores say."""
    network = net()
    curves, meter = curves_of(network, 1), Meter(network.structure)
    scores = Scores(
        {g.name: torch.rand(g.width, generator=torch.Generator().manual_seed(2)) for g in network.structure.prunable}
    )
    widths = cheapest(curves, network.structure, meter, share, 1)
    cut = select(by_curves(scores, network.structure, curves, meter, share, 1), network.structure, share, meter=meter)
    assert {name: len(kept) for name, kept in cut.kept.items()} == widths
    for name, kept in cut.kept.items():
        assert kept.tolist() == scores.values[name].argsort(descending=True)[: widths[name]].sort().values.tolist()


def test_each_kind_of_group_loses_the_same_share() -> None:
    network = net((8, 8, 8))
    scores = Scores({g.name: n + torch.rand(8) for n, g in enumerate(network.structure.prunable)})
    places = by_kind(scores, network.structure).values
    [first, second, last] = [places[g.name] for g in network.structure.prunable]
    assert first.max() < second.min(), "of one kind: a ranking of both"
    assert (last.min(), last.max()) == (1 / 16, 15 / 16), "read by a linear layer: a kind of its own"


@pytest.mark.parametrize("allocate", ["global", "layer", "isomorphic", "sensitivity"])
@pytest.mark.parametrize("method", ["l-obs", "snap", "magnitude", "random"])
def test_with_every_score_the_budget_is_met(allocate: str, method: str) -> None:
    network = net((16, 16, 16))
    data = [(torch.randn(32, 3, 8, 8), torch.randint(4, (32,))) for _ in range(3)]
    how = {"unit": "node"} if method in ("magnitude", "random") else {}
    result = compress(network.model, method, data, target_macs=0.5, allocate=allocate, example_inputs=X, **how)
    assert result.summary.settings.allocate == allocate
    assert count(result.model, X).macs == pytest.approx(0.5 * count(network.model, X).macs, rel=0.06)
    left = [len(kept) / 16 for kept in result.plan.kept.values()]
    if allocate == "layer":
        assert max(left) - min(left) <= 1 / 16


def test_what_an_allocation_cannot_do_is_said() -> None:
    network = net()
    data = [(torch.randn(32, 3, 8, 8), torch.randint(4, (32,)))]
    for method, how, words in (
        ("l1-filters", {"allocate": "global"}, "this method ranks nodes within each layer"),
        ("hrank", {"allocate": "isomorphic"}, "this method ranks nodes within each layer"),
        ("snip", {"allocate": "layer"}, "is for methods that remove whole nodes"),
        ("snap", {"allocate": "sensitivity", "per": "macs"}, "leave one of them out"),
    ):
        with pytest.raises(WrongUsage, match=words):
            compress(network.model, method, data, 0.5, example_inputs=X, **how)
    with pytest.raises(UnreachableSparsity, match="the lowest is"):
        compress(network.model, "snap", data, target_macs=0.0001, allocate="sensitivity", example_inputs=X)


def test_sensitivity_needs_data() -> None:
    with pytest.raises(BadInput, match="allocate='sensitivity' measures on data; give data"):
        compress(net().model, "magnitude", None, 0.5, allocate="sensitivity", example_inputs=X, unit="node")
