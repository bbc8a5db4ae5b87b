"""Budgets in nodes, multiply-adds, parameters and bytes, reached to within one step; widths that kernels like."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import compress, networks
from compressor.coupling import structure
from compressor.coupling.validate import feasible
from compressor.errors import UnreachableSparsity, WrongUsage
from compressor.model.cost import cost
from compressor.model.speed import FAST_MULTIPLE
from compressor.selection.budget import Meter, prices
from compressor.selection.select import rounded, select
from compressor.settings import Budget
from compressor.surgery.shrink import shrink
from compressor.types.plan import Plan
from compressor.types.scores import Scores
from tests.blocks import BLOCKS
from tests.selection.test_select import chain


@pytest.mark.parametrize(
    ("unit", "text", "keep"),
    [("macs", "0.1", 0.1), ("macs", "40M", 4e7), ("parameters", "5k", 5000), ("bytes", "500KB", 5e5), ("bytes", "1MiB", 2**20)],
)
def test_budgets_are_read(unit, text: str, keep: float) -> None:
    assert Budget.parse(unit, text).keep == keep


@pytest.mark.parametrize(
    ("unit", "text"),
    [("macs", "4MB"), ("macs", ""), ("macs", "ten"), ("bytes", "-3"), ("macs", "0"), ("parameters", "1.5"), ("bytes", "nan")],
)
def test_what_is_no_budget(unit, text: str) -> None:
    with pytest.raises(WrongUsage, match=r"is no budget|lies between 0 and 1"):
        Budget.parse(unit, text)


def resources(model, x) -> dict[str, float]:
    found = cost(model, (x,))
    return {"macs": found.macs, "parameters": found.parameters, "bytes": found.tensor_bytes}


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_the_meter_counts_what_the_surgery_leaves(name: str) -> None:
    """For every kind of coupling: the meter's amount is that of the network that is really made."""
    torch.manual_seed(0)
    model, x = BLOCKS[name]().eval(), torch.randn(2, 3, 8, 8)
    found = feasible(model, (x,))
    if not found.prunable:
        pytest.skip("nothing can be pruned")
    generator = torch.Generator().manual_seed(1)
    scores = Scores({g.name: torch.rand(g.width, generator=generator).double() for g in found.prunable})
    kept = select(scores, found, 0.3).kept
    real = resources(shrink(model, found, kept), x)
    for unit, amount in real.items():
        meter = Meter(found, unit, prices(unit, model, (x,)))
        before = resources(model, x)[unit]
        assert unit == "bytes" or meter.total == before
        for group in found.prunable:
            meter.remove(group, group.width - len(kept[group.name]))
        fixed = before - meter.total  # buffers without channels
        if unit != "macs" or name not in BEYOND_THE_METER:
            assert meter.amount + fixed == pytest.approx(amount), unit


BEYOND_THE_METER = ("Attention", "SizesFromInput", "TorchAttention", "OneHead", "Mixer", "Recurrent")
"""Their multiply-adds do not fall with the entries of weights alone."""


@pytest.mark.parametrize(
    "name", [n if n in ("Attention", "Recurrent") else pytest.param(n, marks=pytest.mark.slow) for n in BEYOND_THE_METER]
)
def test_a_budget_of_multiply_adds_is_reached_where_the_meter_only_estimates(name: str) -> None:
    torch.manual_seed(0)
    model, x = BLOCKS[name]().eval(), torch.randn(2, 3, 8, 8)
    dense = resources(model, x)["macs"]
    found = feasible(model, (x,))
    for keep in (0.8, 0.6):
        result = compress(model, "random", None, example_inputs=x, budget=Budget("macs", keep))
        spent, kept = result.summary.budget, result.plan.kept
        assert spent.dense == dense
        assert spent.reached == result.summary.after.macs
        others = [
            {**kept, g.name: torch.arange(width)}
            for g in found.prunable
            for width in (len(kept[g.name]) - 1, len(kept[g.name]) + 1)
            if 1 <= width <= g.width
        ]
        steps = [abs(resources(shrink(model, found, other), x)["macs"] - spent.reached) for other in others]
        assert abs(spent.reached - keep * dense) <= max(steps)


@pytest.mark.parametrize("unit", ["macs", "parameters", "bytes"])
@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_a_budget_is_reached_to_within_one_step(unit, keep: float) -> None:
    model = networks.build("lenet5")
    batches = [(torch.randn(32, 1, 28, 28), torch.randint(10, (32,)))]
    summary = compress(model, "snapit", batches, budget=Budget(unit, keep)).summary
    spent = summary.budget
    after = {"macs": summary.after.macs, "parameters": summary.after.parameters, "bytes": summary.after.tensor_bytes}[unit]
    before = {"macs": summary.before.macs, "parameters": summary.before.parameters, "bytes": summary.before.tensor_bytes}[unit]
    assert spent.reached == pytest.approx(after)
    assert spent.dense == pytest.approx(before)
    assert spent.asked == pytest.approx(keep * before)
    found = structure(model, (batches[0][0],))
    meter = Meter(found, unit, prices(unit, model, (batches[0][0],)))
    assert abs(after - keep * before) <= max(meter.price(g) for g in found.prunable) / 2
    absolute = compress(model, "snapit", batches, budget=Budget(unit, keep * before)).summary
    assert absolute.widths == summary.widths


def test_a_budget_that_cannot_be_reached_names_the_lowest() -> None:
    model = networks.build("lenet5")
    batches = [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,)))]
    with pytest.raises(UnreachableSparsity, match=r"macs \(0\.001 of the dense network's\) cannot be reached: .*the lowest is"):
        compress(model, "snap", batches, budget=Budget("macs", 0.001))
    with pytest.raises(WrongUsage, match="ask for less"):
        compress(model, "snap", batches, budget=Budget("parameters", 10**9))


@pytest.mark.parametrize(
    ("left", "width", "floor", "multiple", "expected"),
    [
        (20, 64, 1, 16, 16), (25, 64, 1, 16, 32), (60, 64, 1, 16, 64), (64, 64, 1, 16, 64),
        (5, 12, 1, 16, 5), (99, 100, 1, 16, 100), (97, 100, 1, 16, 96), (40, 64, 30, 16, 32), (10, 64, 30, 16, 32),
        (41, 64, 30, 16, 48), (7, 9, 1, 1, 7), (24, 64, 1, 16, 16), (12, 64, 1, 16, 8),
        (13, 64, 1, 16, 16), (3, 64, 1, 16, 4), (1, 6, 1, 8, 1),
        (1, 64, 1, 6, 6),
    ],
)  # fmt: skip
def test_widths_are_rounded_to_what_is_nearest(left: int, width: int, floor: int, multiple: int, expected: int) -> None:
    assert rounded(left, width, floor, multiple) == expected


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    share=st.floats(0, 0.95),
    multiple=st.sampled_from([2, 8, 16]),
    seed=st.integers(0, 99),
)
def test_rounded_selections_hold_the_budget_and_keep_the_best(widths, share: float, multiple: int, seed: int) -> None:
    found = chain(*widths)
    generator = torch.Generator().manual_seed(seed)
    scores = Scores({g.name: torch.rand(g.width, generator=generator).double() for g in found.groups})
    try:
        chosen = select(scores, found, share, round_to=multiple)
    except UnreachableSparsity:
        return
    step = max(min(multiple, width) for width in widths) + multiple
    left = sum(len(k) for k in chosen.kept.values())
    assert abs((sum(widths) - left) - round(share * sum(widths))) <= step
    for group in found.groups:
        kept = chosen.kept[group.name]
        assert len(kept) > 0
        few = next((m for m in (multiple // 4, multiple // 2) if m >= 4 and len(kept) == m), multiple)
        assert group.width < multiple or len(kept) % few == 0 or len(kept) == group.width
        best = scores.values[group.name].topk(len(kept)).indices.sort().values
        assert torch.equal(best, kept)
    more = select(scores, found, share / 2, round_to=multiple).kept
    assert all(set(chosen.kept[name].tolist()) <= set(more[name].tolist()) for name in more)


def test_rounding_reaches_every_width_of_a_real_network() -> None:
    model = networks.build("resnet18")
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))]
    result = compress(model, "snapit", batches, 0.8, round_to="auto")
    assert FAST_MULTIPLE == result.summary.round_to == 8
    assert all(small % 8 == 0 or small == 4 for _, small in result.summary.widths.values())
    assert result.summary.reached == pytest.approx(0.8, abs=0.02)
    assert compress(model, "snapit", batches, 0.8, round_to="auto").plan == result.plan


def test_rounding_adds_to_the_exact_plan_or_takes_from_it() -> None:
    torch.manual_seed(0)
    model = networks.build("conv6")
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))]
    exact, even = (compress(model, "snapit", batches, 0.9, round_to=multiple).plan for multiple in (1, 8))
    events = [{name: set(kept) for name, kept in event.kept.items()} for event in even.events]
    assert all(later[name] <= earlier[name] for earlier, later in itertools.pairwise(events) for name in later)
    changed = 0
    for name, kept in exact.events[-1].kept.items():
        its = events[-1][name]
        assert its <= set(kept) or its >= set(kept)
        assert abs(len(its) - len(kept)) <= 8
        changed += len(its) - len(kept) != 0
    assert changed
    assert Plan.from_json(even.to_json()) == even


def test_scores_per_multiply_add_save_more_of_them() -> None:
    torch.manual_seed(0)
    model = networks.build("resnet18")
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))]
    plain, per = (compress(model, "snap", batches, 0.5, per=unit).summary for unit in (None, "macs"))
    assert [plain.reached, per.reached] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert per.after.macs < plain.after.macs
