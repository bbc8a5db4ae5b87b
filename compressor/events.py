"""The pruning events: score, select, remove; what one event leaves is what the next one scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.budget import Meter, Unit, prices
from compressor.cost import count
from compressor.errors import UnsupportedNetwork, first_line
from compressor.inputs import Inputs
from compressor.method import Method
from compressor.objective import Objective
from compressor.select import Selection, highest_reachable, select
from compressor.surgery import shrink
from compressor.types import Plan, Scores, Structure


@dataclass(frozen=True)
class Aim:
    """What the events of one pruning have in common.

    Attributes:
        unit: what is counted.
        per: what scores are divided by, if anything.
        round_to: what widths are multiples of.
        floor: nodes that every group keeps.
        came: the network as it came.
        total: of the unit, in the dense network.
    """

    unit: Unit
    per: Unit | None
    round_to: int
    floor: int
    came: nn.Module
    inputs: Inputs
    total: float = 0.0

    def meter(self, model: nn.Module, structure: Structure) -> Meter:
        """A meter of what `model` needs now."""
        return Meter(structure, self.unit, prices(self.unit, model, self.inputs, self.came), self.total)

    def ranked(self, scores: Scores, model: nn.Module, structure: Structure) -> Scores:
        """The scores, per unit of what goes with each node where that was asked for."""
        if self.per is None:
            return scores
        meter = Meter(structure, self.per, prices(self.per, model, self.inputs, self.came))
        return dataclasses.replace(scores, values={g.name: scores.values[g.name] / meter.price(g) for g in structure.prunable})


@dataclass(frozen=True)
class State:
    """Where the events have come to.

    Attributes:
        ranks: group -> `(width,)` of the dense network: the order in which nodes go, over all events so far.
    """

    model: nn.Module
    structure: Structure
    plan: Plan
    ranks: Mapping[str, Tensor]
    samples: int = 0


def event(state: State, method: Method, objective: Objective, target: float, aim: Aim, what: str) -> State:
    """Score, select, shrink; an event that would remove nothing is skipped."""
    left, meter = state.structure, aim.meter(state.model, state.structure)
    if meter.amount <= meter.wanted(target):
        return state
    try:
        scores = method.score(state.model, left, objective)
    except RuntimeError as error:
        raise UnsupportedNetwork(f"{what}: the network does not run: {first_line(error)}") from error
    ranked = aim.ranked(scores, state.model, left)
    selection = _cut(ranked, left, target, state.model, aim)
    plan = state.plan.event(selection.kept, target, tie=selection.tie, loss=scores.loss)
    ranks = _ranked_on(state, ranked)
    return State(shrink(state.model, left, selection.kept), left.shrink(selection.kept), plan, ranks, scores.samples)


def _ranked_on(state: State, scores: Scores) -> dict[str, Tensor]:
    """The ranks, in which the nodes that are left now come after all that are gone, by their new scores; equal stays equal."""
    names = list(state.ranks)
    _, places = torch.unique(torch.cat([scores.values[name].flatten() for name in names]), return_inverse=True)
    places = places.double() / len(places) + len(state.plan.events) + 1
    new = zip(names, places.split([len(scores.values[name]) for name in names]), strict=True)
    kept = state.plan.kept
    return {name: state.ranks[name].index_copy(0, kept[name], its) for name, its in new}


def rounded_to(state: State, dense: nn.Module, found: Structure, share: float, aim: Aim) -> State:
    """Where the events have come to, with widths that are multiples: in the order of removal, the last to go come back first.

    Rounding once, at the end, keeps the widths near the exact ones; rounded at each event, they would drift away.
    """
    selection = _cut(Scores(state.ranks), found, share, dense, aim)
    plan = state.plan.rounded(selection.kept, tie=selection.tie)
    return dataclasses.replace(
        state, model=shrink(dense, found, selection.kept), structure=found.shrink(selection.kept), plan=plan
    )


def _cut(scores: Scores, left: Structure, target: float, model: nn.Module, aim: Aim) -> Selection:
    """What stays of the nodes; where multiply-adds fall otherwise than the meter thinks, the cut moves until the count fits."""
    asked, best = target, None
    wanted = (1 - target) * aim.total
    for _ in range(CUTS):
        asked = min(max(asked, 0.0), highest_reachable(left, aim.floor, round_to=aim.round_to, meter=aim.meter(model, left)))
        selection = select(scores, left, asked, floor=aim.floor, round_to=aim.round_to, meter=aim.meter(model, left))
        if aim.unit != "macs":
            return selection
        macs = count(shrink(model, left, selection.kept), aim.inputs).macs
        off = macs - wanted
        if best is None or abs(off) < abs(best[0]):
            best = off, selection
        if round((1 - selection.reached) * aim.total) == macs or (_same(selection, best[1]) and best[1] is not selection):
            break
        asked += off / aim.total
    assert best is not None
    return best[1]


CUTS = 8
"""Times that a budget of multiply-adds is cut anew."""


def _same(one: Selection, other: Selection) -> bool:
    return all(torch.equal(one.kept[name], other.kept[name]) for name in one.kept)
