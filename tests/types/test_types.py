"""Plans as data, structures that refuse what does not fit, and the arithmetic of equivalence."""

from __future__ import annotations

import pytest
import torch

from compressor.coupling import structure
from compressor.errors import BadInput
from compressor.proof.equivalence import Equivalence
from compressor.types.plan import Plan
from compressor.types.scores import Scores
from compressor.types.structure import Group, Slice
from tests.blocks import BLOCKS

X = (torch.randn(1, 3, 8, 8),)


def plan() -> Plan:
    start = Plan({"a": 4, "b": 3}, "abcd", (), {"c": "its size is in the code"})
    first = start.event({"a": torch.tensor([0, 2, 3]), "b": torch.tensor([0, 1, 2])}, 0.2, loss=1.5)
    return first.event({"a": torch.tensor([1, 2]), "b": torch.tensor([2])}, 0.5, tie=True)


def test_events_index_the_original_network() -> None:
    assert plan().kept["a"].tolist() == [2, 3]
    assert plan().kept["b"].tolist() == [2]
    assert plan().events[0].kept["a"] == (0, 2, 3)


def test_json_round_trip() -> None:
    assert Plan.from_json(plan().to_json()) == plan()


def test_then_composes() -> None:
    later = Plan({"a": 2, "b": 1}, "small").event({"a": torch.tensor([1]), "b": torch.tensor([0])}, 0.7)
    joined = plan().then(later)
    assert joined.kept["a"].tolist() == [3]
    assert len(joined.events) == 3
    with pytest.raises(BadInput, match="does not start from"):
        plan().then(Plan({"a": 4, "b": 1}, "other"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 99}', '{"schema": 1, "events": [1]}'])
def test_damaged_plans_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Plan.from_json(text)


def test_a_structure_refuses_what_does_not_fit() -> None:
    found = structure(BLOCKS["Plain"](), X)
    good = found.keep_all()
    name = next(iter(good))
    for bad, message in (
        ({}, "another architecture"),
        ({**good, "other": torch.tensor([0])}, "does not have"),
        ({**good, name: torch.tensor([], dtype=torch.long)}, "no node would be left"),
        ({**good, name: torch.tensor([0, 99])}, "out of range"),
        ({**good, name: torch.tensor([1, 1])}, "each once"),
        ({**good, name: torch.tensor([2, 1])}, "must rise"),
    ):
        with pytest.raises(BadInput, match=message):
            found.kept_entries(bad)


def test_a_group_needs_nodes() -> None:
    with pytest.raises(ValueError, match="no nodes"):
        Group("empty", (Slice("w", 0, torch.zeros(0, 1, dtype=torch.long), "produce"),))


def test_scores_refuse_nan_and_missing_groups() -> None:
    with pytest.raises(BadInput, match="not finite"):
        Scores({"a": torch.tensor([1.0, float("nan")])})
    found = structure(BLOCKS["Plain"](), X)
    with pytest.raises(ValueError, match="do not fit"):
        Scores({"net.0.0": torch.ones(5)}).covers(found)


def test_equivalence_arithmetic() -> None:
    reference = torch.tensor([[0.0, 10.0], [4.0, 2.0]])
    proof = Equivalence.of("x", [reference], [reference + torch.tensor([[0.0, 0.05], [0.0, 0.0]])], 1e-2)
    assert proof
    assert proof.max_difference == pytest.approx(0.05, rel=1e-4)
    assert proof.output_range == 8  # of the second channel
    assert proof.needed_tolerance == pytest.approx(0.05 / 8, rel=1e-4)
    assert (proof.agreement, proof.clear_samples) == (1.0, 2)
    assert not Equivalence.of("x", [reference], [reference + 1], 1e-2)


@pytest.mark.parametrize(
    "candidate",
    [
        [torch.zeros(2, 3)],
        [torch.tensor([[0.0, float("nan")], [0, 0]])],
        [torch.zeros(2, 2), torch.zeros(2, 2)],
        [torch.full((2, 2), float("inf"))],
    ],
)
def test_equivalence_fails_closed(candidate: list) -> None:
    assert not Equivalence.of("x", [torch.zeros(2, 2)], candidate, 1e9)


def test_of_several_outputs_the_worst_decides() -> None:
    good, bad = torch.randn(3, 4), torch.randn(3, 4)
    assert not Equivalence.of("x", [good, bad], [good, bad + 1], 1e-4)
    assert not Equivalence.of("x", [bad, good], [bad + 1, good], 1e-4)
    assert Equivalence.of("x", [bad, good], [bad, good], 1e-4)
