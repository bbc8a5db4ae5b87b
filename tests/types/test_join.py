"""One plan for two: replayed, it gives what the earlier one gives, and then the later one."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.coupling import structure
from compressor.coupling.validate import feasible
from compressor.errors import BadInput
from compressor.model.observe import outputs_of
from compressor.model.weights import maskable, masked
from compressor.proof.prove import randomised
from compressor.proof.reference import over_channels
from compressor.pruning.events import PruningState
from compressor.pruning.replay import applied
from compressor.surgery.dead_nodes import ALIKE, removable
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.paths import paths
from compressor.types.mask import Mask
from compressor.types.plan import Plan
from compressor.types.structure import Structure
from tests.blocks import BLOCKS

X = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

KINDS = st.sampled_from(["nodes", "weights"])
LAYERS = st.lists(
    st.tuples(
        st.sampled_from(["conv", "conv", "residual", "depthwise"]),
        st.integers(2, 6),  # width
        st.sampled_from([0, 1]),  # padding
        st.booleans(),  # bias
        st.booleans(),  # norm
    ),
    min_size=1,
    max_size=3,
)


class Drawn(nn.Module):
    """Convolutions with and without bias, norm, padding and a way around, between a first one and two linear layers."""

    def __init__(self, layers: list[tuple[str, int, int, bool, bool]]) -> None:
        super().__init__()
        self.layers, self.around, inputs = nn.ModuleList(), [], 3
        for kind, width, padding, bias, norm in [("conv", 4, 0, True, True), *layers]:
            outputs = width if kind == "conv" else inputs
            around = kind == "residual"
            pad = 1 if around else padding
            groups = inputs if kind == "depthwise" else 1
            conv = nn.Conv2d(inputs, outputs, 3 if pad else 1, padding=pad, bias=bias, groups=groups)
            self.layers.append(nn.Sequential(conv, nn.BatchNorm2d(outputs) if norm else nn.Identity(), nn.LeakyReLU()))
            self.around.append(around)
            inputs = outputs
        self.hidden, self.out = nn.Linear(inputs, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer, around in zip(self.layers, self.around, strict=True):
            x = layer(x) + x if around else layer(x)
        return self.out(torch.relu(self.hidden(x.mean((2, 3)))))


def some_nodes(found: Structure, share: float, draw: torch.Generator) -> dict[str, Tensor]:
    """Some of each group's nodes, at least one."""
    kept = {}
    for group in found.prunable:
        stays = torch.rand(group.width, generator=draw) >= share
        stays[int(torch.randint(group.width, (), generator=draw))] = True
        kept[group.name] = stays.nonzero().flatten()
    return kept


def some_weights(model: nn.Module, share: float, draw: torch.Generator) -> dict[str, Tensor]:
    """Some of the weights that are left."""
    return {n: (torch.rand(w.shape, generator=draw) >= share) & (w.detach() != 0) for n, w in maskable(model).items()}


def drawn_plan(model: nn.Module, found: Structure, kind: str, share: float, draw: torch.Generator) -> Plan:
    """A plan as a pruning makes it: some nodes go, or some weights and with them the nodes on no path."""
    plan = Plan({g.name: g.width for g in found.prunable}, "any")
    if kind == "nodes":
        return plan.event(some_nodes(found, share, draw), share)
    kept = some_weights(model, share, draw)
    whole, ways = masked(model, kept), paths(model, found, kept, over_channels(model, (X,)))
    return plan.event(found.keep_all(), share).rounded(removable(GroupedNetwork(whole, found, (X,)), ways)).with_masks(kept)


def replayed(plan: Plan, model: nn.Module, found: Structure) -> PruningState:
    return applied(Plan.from_json(plan.to_json()), GroupedNetwork(model, found, (X,)))


def one_after_the_other(
    model: nn.Module, found: Structure, kinds: tuple[str, ...], shares: tuple[float, ...], seed: int
) -> tuple[PruningState, Plan]:
    """The network after all plans, and the plans joined."""
    draw, state, joined = (
        torch.Generator().manual_seed(seed),
        PruningState(GroupedNetwork(model, found, (X,)), Plan({}, "none")),
        None,
    )
    for kind, share in zip(kinds, shares, strict=True):
        plan = drawn_plan(state.model, state.structure, kind, share, draw)
        state = replayed(plan, state.model, state.structure)
        joined = state.plan if joined is None else joined.then(state.plan, found)
    assert joined is not None
    return state, joined


def values(model: nn.Module) -> Mapping[str, Tensor]:
    return model.state_dict()


def check(last: PruningState, joined: Plan, model: nn.Module, found: Structure) -> None:
    """The joined plan's network is the last one: it computes the same, its tensors are as large, and its zeros are there.

    Or it keeps constant nodes that lost their readers one by one, whose constants masks cannot say: no other ones.
    """
    once = replayed(joined, model, found)
    kept, at_once = ({n: set(nodes.tolist()) for n, nodes in plan.kept.items()} for plan in (joined, once.plan))
    if kept != at_once:
        assert all(nodes <= at_once[name] for name, nodes in kept.items())
        assert once.ways is not None
        assert not any(bool(once.ways.reachable[n][sorted(at_once[n] - nodes)].any()) for n, nodes in kept.items())
        return
    for one, other in zip(outputs_of(once.model, (OTHER,)), outputs_of(last.model, (OTHER,)), strict=True):
        torch.testing.assert_close(one, other, rtol=10 * ALIKE, atol=10 * ALIKE)  # what is so alike counts as constant
    assert {n: t.shape for n, t in values(once.model).items()} == {n: t.shape for n, t in values(last.model).items()}
    for name in maskable(last.model):
        assert torch.equal(values(once.model)[name] == 0, values(last.model)[name] == 0), name


@given(
    layers=LAYERS,
    kinds=st.lists(KINDS, min_size=2, max_size=3).map(tuple),
    shares=st.tuples(*[st.sampled_from([0.2, 0.5, 0.8])] * 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_then_is_one_after_the_other(layers: list, kinds: tuple[str, ...], shares: tuple[float, ...], seed: int) -> None:
    torch.manual_seed(seed)
    model = randomised(Drawn(layers)).double().eval()
    found = structure(model, (X,))
    last, joined = one_after_the_other(model, found, kinds, shares[: len(kinds)], seed)
    check(last, joined, model, found)


def test_a_constant_whose_readers_went_later_may_keep_its_node() -> None:
    """The readers' own constants went into biases with it; at once, its border of zeros keeps it from being moved there."""
    layers = [("depthwise", 2, 1, False, False), ("depthwise", 2, 0, False, True), ("conv", 3, 1, False, False)]
    torch.manual_seed(580)
    model = randomised(Drawn(layers)).double().eval()
    found = structure(model, (X,))
    last, joined = one_after_the_other(model, found, ("weights", "weights", "nodes"), (0.5, 0.8, 0.2), 580)
    assert joined.kept["layers.0.0"].tolist() == [1, 2, 3]
    assert replayed(joined, model, found).plan.kept["layers.0.0"].tolist() == [0, 1, 2, 3]
    check(last, joined, model, found)


@functools.cache
def block(name: str) -> tuple[nn.Module, Structure]:
    torch.manual_seed(0)
    model = randomised(BLOCKS[name]()).double().eval()
    return model, feasible(model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),))


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("kinds", [("nodes", "weights"), ("weights", "nodes"), ("weights", "weights")])
def test_then_is_one_after_the_other_or_is_refused(name: str, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm over channels sees nodes that have lost their weights, so that masks cannot say that they are gone."""
    monkeypatch.setitem(globals(), "X", torch.randn(4, 3, 8, 8, dtype=torch.float64))
    monkeypatch.setitem(globals(), "OTHER", torch.randn(5, 3, 8, 8, dtype=torch.float64))
    model, found = block(name)
    through = bool(over_channels(model, (X,))) or any(g.multiplied for g in found.groups)
    refusals = []
    for seed in range(2):
        last, joined = one_after_the_other(model, found, kinds, (0.4, 0.6), seed)
        if (refusal := refusal_of(joined, model, found)) is None:
            check(last, joined, model, found)
        else:
            refusals.append(refusal)
    assert not refusals or (through and len(set(kinds)) == 2)
    assert all("its masks leave alive" in refusal for refusal in refusals)
    assert len(refusals) == 2 or name != "Attention" or len(set(kinds)) == 1


def refusal_of(plan: Plan, model: nn.Module, found: Structure) -> str | None:
    try:
        replayed(plan, model, found)
    except BadInput as refused:
        return str(refused)
    return None


def test_masks_by_hand() -> None:
    """Two layers `3 -> 4 -> 2`: node 1 of the first goes, then weights of what is left; and the other way round."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    found = structure(model, (torch.randn(1, 3),))
    nodes = Plan({"0": 4}, "x").event({"0": torch.tensor([0, 2, 3])}, 0.25)
    kept = {"0.weight": torch.ones(3, 3, dtype=torch.bool), "2.weight": torch.ones(2, 3, dtype=torch.bool)}
    kept["0.weight"][1, 2] = kept["2.weight"][0, 2] = False
    weights = Plan({"0": 3}, "y").event({"0": torch.arange(3)}, 0.1).with_masks(kept)
    joined = nodes.then(weights, found)
    assert joined.masks["0.weight"].tensor().int().tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert joined.masks["2.weight"].tensor().int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 1]]
    whole = {"0.weight": torch.ones(4, 3, dtype=torch.bool), "2.weight": torch.ones(2, 4, dtype=torch.bool)}
    whole["2.weight"][1, 3] = False
    first = Plan({"0": 4}, "x").event({"0": torch.arange(4)}, 0.1).with_masks(whole)
    joined = first.then(nodes, found)
    assert joined.masks["0.weight"].tensor().int().tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert joined.masks["2.weight"].tensor().int().tolist() == [[1, 0, 1, 1], [1, 0, 1, 0]]


def test_what_does_not_belong_together_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    found = structure(model, (torch.randn(1, 3),))
    nodes = Plan({"0": 4}, "x").event({"0": torch.tensor([0, 2, 3])}, 0.25)
    wrong = Plan({"0": 3}, "y", masks={"0.weight": Mask.of(torch.ones(5, 3, dtype=torch.bool))})
    with pytest.raises(BadInput, match=r"0\.weight: the later plan's mask does not fit"):
        nodes.then(wrong, found)
    with pytest.raises(BadInput, match="need the original network's structure"):
        nodes.then(wrong)
