"""The paired interval of a drop: by hand, and that it covers what it should."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from compressor.errors import BadInput
from compressor.objective.metrics import Metric, metric_named
from compressor.objective.objective import Objective, evaluate
from compressor.objective.paired import Outcomes, drop, outcomes, samples_for


def of(values: list[float], name: str = "accuracy", single: bool = True, higher: bool = True) -> Outcomes:
    found = torch.tensor(values, dtype=torch.float64)
    return Outcomes(found, torch.ones_like(found), name, higher, single)


def test_the_interval_is_that_of_the_pairs() -> None:
    """Ten samples, of which the small network loses two and wins one: two more that differ, so 3 and 2 of 12."""
    found = drop(of([1, 1, 1, 0, 1, 0, 1, 1, 1, 1]), of([0, 0, 1, 1, 1, 0, 1, 1, 1, 1]))
    assert found.points == pytest.approx(10.0)
    assert found.margin == pytest.approx(100 * 1.96 * math.sqrt((5 / 12 - (1 / 12) ** 2) / 12))
    assert found.most == found.points + found.margin


def test_equal_networks_may_still_differ_on_samples_not_seen() -> None:
    assert drop(of([1.0] * 300), of([1.0] * 300)).margin == pytest.approx(0.92, abs=0.01), "about the rule of three: 3 / n"


def test_lower_may_be_better_and_units_are_the_metrics_own() -> None:
    low, high = [float(n) for n in range(8)], [float(n) + 1 for n in range(8)]
    worse = drop(of(low, "error", False, False), of(high, "error", False, False))
    assert (worse.points, worse.margin) == (1.0, 0.0)
    assert drop(of(high, "score", False), of(low, "score", False)).points == 1.0


def test_a_few_batches_have_no_interval() -> None:
    """They agree more often than not."""
    with pytest.raises(BadInput, match="7 batches are too few for an interval: give 8 or more"):
        drop(of([1.0] * 7, "score", False), of([1.0] * 7, "score", False))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """2,000 draws of 200 pairs whose true drop is 4 points."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(2000):
        dense = (torch.rand(200, generator=generator) < 0.9).double()
        small = dense * (torch.rand(200, generator=generator) >= 4 / 90).double()
        found = drop(of(dense.tolist()), of(small.tolist()))
        inside += abs(found.points - 4.0) <= found.margin
    assert 0.92 <= inside / 2000 <= 0.98


def test_outcomes_add_up_to_what_evaluate_says() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    data = [(torch.randn(7, 5), torch.randint(3, (7,))) for _ in range(4)]
    data[0][1][:3] = -100
    objective = Objective(data)
    found = outcomes(model, objective)
    assert (len(found.values), found.single) == (25, True)
    assert found.mean == pytest.approx(100 * (evaluate(model, objective).accuracy or 0))
    objective.metric = metric_named("top5")
    by_sample = outcomes(model, objective)
    assert (len(by_sample.values), by_sample.single, by_sample.scale, by_sample.mean) == (25, True, 100.0, 100.0)
    objective.metric = metric_named("accuracy")
    assert torch.equal(outcomes(model, objective).values, found.values)
    objective.metric = Metric("spread", lambda outputs, batch: float(outputs.std()), higher_is_better=False)
    spread = outcomes(model, objective)
    assert (len(spread.values), spread.name, spread.higher_is_better, spread.scale) == (4, "spread", False, 1.0)
    unlabelled = Objective([(torch.randn(7, 5), torch.randn(7, 3))])
    with pytest.raises(BadInput, match="nothing says how well the network does on these data"):
        outcomes(model, unlabelled)


def test_how_many_samples_would_do() -> None:
    found = drop(of([1.0] * 99 + [1.0]), of([1.0] * 99 + [0.0]))
    assert found.most > 2
    assert samples_for(found, 100, 2.0) == math.ceil(100 * (found.margin / (2.0 - found.points)) ** 2)
