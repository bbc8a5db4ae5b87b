"""Exact counts, stable ties, floors, and refusals that say what can be reached."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.coupling import structure
from compressor.errors import UnreachableSparsity, WrongUsage
from compressor.selection.schedule import halving
from compressor.selection.select import highest_reachable, select
from compressor.settings import check_sparsity
from compressor.types.scores import Scores
from compressor.types.structure import Group, Slice, Structure
from tests.blocks import BLOCKS


def chain(*widths: int) -> Structure:
    """Groups of nodes that each count once."""
    groups = tuple(
        Group(f"g{n}", (Slice(f"g{n}.weight", 0, torch.arange(width)[:, None], "produce"),)) for n, width in enumerate(widths)
    )
    return Structure(groups, {f"g{n}.weight": (w, 1) for n, w in enumerate(widths)}, {}, frozenset(), sum(widths))


def removed(kept: dict, found: Structure) -> int:
    return sum(g.width - len(kept[g.name]) for g in found.groups)


def test_the_lowest_go() -> None:
    scores = Scores({"g0": torch.tensor([4.0, 1.0, 3.0]), "g1": torch.tensor([2.0, 9.0])})
    chosen = select(scores, chain(3, 2), 0.4)
    assert chosen.kept["g0"].tolist() == [0, 2]
    assert chosen.kept["g1"].tolist() == [1]
    assert chosen.reached == pytest.approx(0.4)
    assert not chosen.tie


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.99),
    levels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_counts_are_exact_under_ties_and_more_sparsity_keeps_a_subset(widths, sparsity, levels, seed) -> None:
    found = chain(*widths)
    generator = torch.Generator().manual_seed(seed)
    scores = Scores({g.name: torch.randint(levels, (g.width,), generator=generator).double() for g in found.groups})
    sparsity = min(sparsity, highest_reachable(found))
    some = select(scores, found, sparsity).kept
    assert removed(some, found) == round(sparsity * sum(widths))
    fewer = select(scores, found, sparsity / 2).kept
    for name in some:
        assert set(some[name].tolist()) <= set(fewer[name].tolist())


def test_ties_are_taken_where_most_is_left_and_said() -> None:
    zeros = Scores({"g0": torch.zeros(8), "g1": torch.zeros(2)})
    chosen = select(zeros, chain(8, 2), 0.5)
    assert {name: len(indices) for name, indices in chosen.kept.items()} == {"g0": 4, "g1": 1}
    assert chosen.kept["g0"].tolist() == [0, 1, 2, 3]
    assert chosen.tie


def test_floors_hold_and_the_highest_reachable_is_named() -> None:
    scores = Scores({"g0": torch.zeros(4), "g1": torch.ones(4)})
    assert len(select(scores, chain(4, 4), 0.5, floor=2).kept["g0"]) == 2
    with pytest.raises(UnreachableSparsity, match=r"highest is 0\.5"):
        select(scores, chain(4, 4), 0.7, floor=2)
    with pytest.raises(UnreachableSparsity, match=r"highest is 0\.75"):
        select(scores, chain(4, 4), 0.9)


def test_coupled_nodes_count_as_often_as_they_have_layers() -> None:
    found = structure(BLOCKS["Residual"](), (torch.randn(1, 3, 8, 8),))
    scores = Scores({g.name: torch.arange(g.width).double() for g in found.prunable})
    for sparsity in (0.2, 0.4, 0.6):
        reached = select(scores, found, sparsity).reached
        assert abs(reached - sparsity) * found.total_nodes < 3


@pytest.mark.parametrize(
    ("value", "hint"), [(93, "did you mean 0.93"), (1.0, "not in"), (-0.1, "not in"), (float("nan"), "not in")]
)
def test_sparsities_that_make_no_sense(value: float, hint: str) -> None:
    with pytest.raises(WrongUsage, match=hint):
        check_sparsity(value)


def test_the_papers_schedule() -> None:
    expected = (0.5, 0.715, 0.8225, 0.87625, 0.903125, 0.9165625, 0.93)
    assert halving(0.93, 5) == pytest.approx(expected)
    assert halving(0.4, 1) == pytest.approx((0.2, 0.3, 0.4))
    assert all(a <= b for a, b in zip(halving(0.5, 5), halving(0.5, 5)[1:], strict=False))
