"""A plan's text: an event says what it changes and no more, and what no pruning could have written is refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import BadInput
from compressor.selection.schedule import exponential
from compressor.types import changes
from compressor.types import plan as plans
from compressor.types.plan import Event, Mask, Plan

VGG16 = {
    **{f"features.{n}": width for n, width in enumerate([64] * 2 + [128] * 2 + [256] * 3 + [512] * 6)},
    **{f"classifier.{n}": 4096 for n in range(2)},
}


def of_events(kept: list[dict[str, list[int]]], widths: dict[str, int]) -> Plan:
    events = [Event((n + 1) / 100, {name: tuple(nodes) for name, nodes in e.items()}) for n, e in enumerate(kept)]
    return Plan(widths, "abcd", tuple(events))


def test_a_hundred_events_that_remove_weights_are_a_short_text() -> None:
    plan = Plan(VGG16, "0123456789abcdef")
    whole = {name: torch.arange(width) for name, width in VGG16.items()}
    for sparsity in exponential(0.99, 100):
        plan = plan.event(whole, sparsity, loss=2.302585092994046)
    for one in (plan, plan.rounded({name: torch.arange(0, width, 2) for name, width in VGG16.items()})):
        assert len(one.to_json()) < 100_000
        assert Plan.from_json(one.to_json()) == one
        *events, last = json.loads(one.to_json())["events"]
        assert [e["kept"] for e in events] == ["as before"] * 99
        assert last["kept"] == {name: nodes.tolist() for name, nodes in one.kept.items()}  # the outcome can be read off


def test_events_that_remove_a_node_each_list_those_that_go() -> None:
    plan, left = Plan({"a": 1000}, "x"), torch.arange(1000)
    for _ in range(300):
        left = torch.arange(len(left))[1:]
        plan = plan.event({"a": left}, 0.5)
    assert len(plan.to_json()) < 30_000
    assert Plan.from_json(plan.to_json()) == plan
    assert [json.loads(plan.to_json())["events"][n]["removed"] for n in (0, 298)] == [{"a": [0]}, {"a": [298]}]


def test_what_an_event_changes() -> None:
    before = {"a": (0, 1, 2, 3), "b": (0, 1)}
    cases = (
        (before, {"kept": "as before"}),
        ({"a": (0, 3), "b": (0, 1)}, {"kept": {"a": [0, 3]}}),
        ({"a": (0, 1, 3), "b": (1,)}, {"kept": {"b": [1]}, "removed": {"a": [2]}}),
        ({"a": (0, 1, 2, 9), "b": (0, 1)}, {"kept": {"a": [0, 1, 2, 9]}}),  # no pruning's, and yet told right
    )
    for now, text in cases:
        assert changes.changes_of(before, now) == text
        assert changes.changed(before, text) == now


@st.composite
def some_plans(draw: st.DrawFn) -> Plan:
    widths = draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1))
    plan = Plan(widths, "abcd")
    for number in range(draw(st.integers(0, 5))):
        kept = {}
        for name, nodes in plan.kept.items():
            stays = draw(st.lists(st.booleans(), min_size=len(nodes), max_size=len(nodes)).filter(any))
            kept[name] = torch.tensor(stays).nonzero().flatten()
        plan = plan.event(kept, number / 10, tie=draw(st.booleans()), loss=draw(st.none() | st.floats(0, 9)))
    shapes = draw(
        st.dictionaries(st.sampled_from(["a.weight", "b.weight"]), st.lists(st.integers(1, 4), min_size=1, max_size=4))
    )
    return plan.with_masks({name: torch.rand(shape) > 0.5 for name, shape in shapes.items()})


@given(plan=some_plans())
@settings(max_examples=150, deadline=None)
def test_every_plan_comes_back_from_its_text(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    packed = {name: mask.packed() for name, mask in plan.masks.items()}
    assert Plan.from_json(plan.to_json(masks=False), packed) == plan
    assert all("bits" not in mask for mask in json.loads(plan.to_json(masks=False))["masks"].values())


def test_events_share_what_they_do_not_change() -> None:
    """A hundred events of a large network are one list in memory, too."""
    whole = {"a": torch.arange(500), "b": torch.arange(500)}
    plan = Plan({"a": 500, "b": 500}, "x").event(whole, 0.1).event(whole, 0.2).event({**whole, "b": torch.arange(9)}, 0.3)
    for one in (plan, Plan.from_json(plan.to_json()), plan.rounded({**whole, "b": torch.arange(5)})):
        first, second, _ = one.events
        assert first.kept["a"] is second.kept["a"]
        assert first.kept["b"] is second.kept["b"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"kept": "as ever"}, "not a plan"),
        ({"kept": None}, "not a plan"),
        ({}, "not a plan: KeyError"),
        ({"kept": "as before", "removed": {"a": [1]}}, "changes nothing removes"),
        ({"kept": {"a": [0]}, "removed": {"a": [1]}}, "both what stays and what goes"),
        ({"kept": {}, "removed": {"a": [4]}}, "was not there"),
        ({"kept": {}, "removed": {"a": [1, 1]}}, "was not there"),
        ({"kept": {}, "removed": {"a": [True]}}, "was not there"),
        ({"kept": {}, "removed": {"a": [1.0]}}, "was not there"),
        ({"kept": {}, "removed": {"a": ["x"]}}, "was not there"),
        ({"kept": {}, "removed": {"a": [[0]]}}, "was not there"),
        ({"kept": {}, "removed": {"c": [0]}}, "not a plan: KeyError"),
        ({"kept": {"c": [0]}}, "speaks of other groups"),
        ({"kept": {}, "removed": {"a": [0, 1, 2, 3]}}, "keep at least one"),
        ({"kept": {}, "removed": 3}, "not a plan"),
        ({"kept": {}, "removed": {"a": 3}}, "not a plan"),
        ({"kept": {"a": [3, 1]}}, "must rise"),
        ({"kept": {"a": [True]}}, "out of range"),
    ],
)
def test_damaged_events_are_refused(event: dict, message: str) -> None:
    raw = json.loads(of_events([{"a": [0, 1, 2], "b": [0]}], {"a": 4, "b": 2}).to_json())
    raw["events"] = [{"sparsity": 0.1, "tie": False, "loss": None, **event}]
    with pytest.raises(BadInput, match=message):
        Plan.from_json(json.dumps(raw))


def test_a_node_that_comes_back_is_refused() -> None:
    raw = json.loads(of_events([{"a": [0, 1]}, {"a": [0]}], {"a": 4}).to_json())
    raw["events"][1]["kept"] = {"a": [0, 3]}
    with pytest.raises(BadInput, match="event 2, group a: a node comes back"):
        Plan.from_json(json.dumps(raw))


def test_a_short_text_that_unfolds_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few kilobytes may claim a wide network that loses one node at each of many events."""
    monkeypatch.setattr(plans, "MOST_LISTED", 10_000)
    events = [{"sparsity": 0.1, "tie": False, "loss": None, "kept": {}, "removed": {"a": [n]}} for n in range(100)]
    raw = json.loads(Plan({"a": 1000}, "x").to_json())
    assert Plan.from_json(json.dumps({**raw, "events": events[:10]}))
    with pytest.raises(BadInput, match="more than 10,000 nodes in its events"):
        Plan.from_json(json.dumps({**raw, "events": events}))
    same = [{"sparsity": 0.1, "tie": False, "loss": None, "kept": "as before"}] * 10_000
    assert len(Plan.from_json(json.dumps({**raw, "events": same})).events) == 10_000
    with pytest.raises(BadInput, match=r"more than 10,000,000 nodes"):
        Plan.from_json(json.dumps({**raw, "widths": {"a": 10**12}, "events": same[:1]}))


def test_masks_and_their_tensors_must_belong_together() -> None:
    kept = torch.tensor([[True, False, True], [False, True, True]])
    plan = Plan({"a": 2}, "x").with_masks({"a.weight": kept})
    text, packed = plan.to_json(masks=False), plan.masks["a.weight"].packed()
    assert packed.tolist() == [0b10101100]
    assert Plan.from_json(text, {"a.weight": packed}) == plan
    for tensors in (
        {}, {"b.weight": packed}, {"a.weight": packed, "b.weight": packed}, {"a.weight": packed.int()},
        {"a.weight": packed.repeat(2)}, {"a.weight": packed[None]}, {"a.weight": packed.to_sparse()},
        {"a.weight": torch.zeros(0, dtype=torch.uint8)},
    ):  # fmt: skip
        with pytest.raises(BadInput, match="not a plan"):
            Plan.from_json(text, tensors)
    with pytest.raises(BadInput, match="does not speak of it"):  # the text has its bits already
        Plan.from_json(plan.to_json(), {"a.weight": packed})


def test_masks_that_claim_too_much_together_are_refused() -> None:
    raw = json.loads(Plan({"a": 2}, "x").with_masks({"a.weight": torch.ones(2, 2, dtype=torch.bool)}).to_json())
    large = Mask.of(torch.ones(1, dtype=torch.bool)).as_json() | {"shape": [6 * 10**9]}
    with pytest.raises(BadInput, match="the masks' shapes"):
        Plan.from_json(json.dumps({**raw, "masks": {"a.weight": large, "b.weight": large}}))
    with pytest.raises(BadInput, match="a mask's shape"):
        Plan.from_json(json.dumps({**raw, "masks": {"a.weight": large | {"shape": [2] * 20}}}))
