"""The pruning events: score, select, remove; what one event leaves is what the next one scores."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.coupling.validate import OF_ITS_CODE, Wrong, all_at_fault, on_meta
from compressor.data import Drawn, length_of
from compressor.errors import BadInput, UnreachableSparsity, UnsupportedNetwork, first_line
from compressor.method import Method
from compressor.model.cost import count, count_shapes
from compressor.model.inputs import Inputs, unlike
from compressor.model.observe import outputs_of
from compressor.model.origin import planned_masks
from compressor.model.weights import maskable, masked, present
from compressor.objective.batches import Batch
from compressor.objective.objective import Objective
from compressor.proof.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.proof.reference import over_channels
from compressor.pruning.controls import Ablation, shuffled_nodes, shuffled_weights
from compressor.selection.budget import Meter, Unit, prices
from compressor.selection.select import Selection, highest_reachable, select, select_weights
from compressor.surgery.dead_nodes import removable, steady, without_dead
from compressor.surgery.paths import Paths, paths
from compressor.surgery.shrink import shrink
from compressor.types.plan import Plan
from compressor.types.scores import Scores
from compressor.types.structure import Group, Kept, Structure

Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all); 0 in all where that is unknown."""


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
        ablation: the control that is run in place of the method itself.
    """

    unit: Unit
    per: Unit | None
    round_to: int
    floor: int
    came: nn.Module
    inputs: Inputs
    total: float = 0.0
    ablation: Ablation | None = None

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
        kept: weight -> booleans of its shape, where single weights are removed.
        curves: of the first event's scores, see `Scores.curves`.
        ways: through the masked network.
    """

    model: nn.Module
    structure: Structure
    plan: Plan
    ranks: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    ways: Paths | None = None


@dataclass(frozen=True)
class Events:
    """The events of one pruning; `NodeEvents` and `WeightEvents` say what an event is.

    Attributes:
        dense: the network that the pruning starts from; where it was trained in between, as it is now.
        share: of the aim's unit that goes in the end.
        held: weights that must not lose entries.
        trained: the network is trained between events, so that nothing that went can come back with its weights.
        allow_disconnect: also where the output no longer depends on the input.
    """

    method: Method
    dense: nn.Module
    found: Structure
    objective: Objective
    share: float
    aim: Aim
    progress: Progress
    held: frozenset[str] = frozenset()
    trained: bool = False
    allow_disconnect: bool = False

    @property
    def targets(self) -> tuple[float, ...]:
        """The sparsity after each event."""
        return self.method.targets(self.share)

    def begin(self, plan: Plan) -> State:
        """Before the first event; `plan` has none."""
        raise NotImplementedError

    def one(self, state: State, number: int) -> State:
        """After the event of this number, from 0; one that would remove nothing is skipped."""
        raise NotImplementedError

    def settle(self, state: State) -> State:
        """After the last event: the widths rounded, the choice shuffled where that is the control; or a refusal."""
        raise NotImplementedError

    def after_epoch(self, state: State) -> State:
        """After an epoch of training the state's network in place: what it needs to be judged in eval mode."""
        return state

    def clear(self, state: State) -> State:
        """At the end of all events: without what lies on no path."""
        return state

    def all_of_them(self, plan: Plan) -> State:
        """One after the other, with no training between."""
        state = self.begin(plan)
        for number in range(len(self.targets)):
            state = self.one(state, number)
        return self.settle(state)

    def _counted(self, number: int) -> tuple[float, Objective, str]:
        """An event's target, batches of its own draw that tell how far they are, and its name."""
        target = self.targets[number]
        what = f"event {number + 1} of {len(self.targets)}, sparsity {target:.3f}"
        if isinstance(self.objective.data, Drawn):
            self.objective.data.skip_to(number)
        return target, dataclasses.replace(self.objective, data=_Counted(self.objective, self.progress, what)), what


@dataclass(frozen=True)
class NodeEvents(Events):
    """The nodes that the method scores lowest go."""

    def begin(self, plan: Plan) -> State:
        ranks = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in self.found.prunable}
        return State(self.dense, self.found, plan, ranks)

    def one(self, state: State, number: int) -> State:
        target, counted, what = self._counted(number)
        last = self.trained and number == len(self.targets) - 1
        aim = self.aim if last else dataclasses.replace(self.aim, round_to=1)
        return event(state, self.method, counted, target, aim, what)

    def settle(self, state: State) -> State:
        if self.share > 0 and not state.plan.events:
            raise BadInput(f"sparsity {self.share:g} of {self.found.total_nodes} nodes is less than one node; ask for more")
        if self.trained:
            return state
        if self.aim.round_to > 1 and self.share > 0:
            state = rounded_to(state, self.dense, self.found, self.share, self.aim)
        if self.aim.ablation == "shuffle":
            kept = shuffled_nodes(self.found, state.plan.kept, self.objective.seed)
            plan = state.plan.rounded(kept, tie=False)
            state = dataclasses.replace(
                state, model=shrink(self.dense, self.found, kept), structure=self.found.shrink(kept), plan=plan
            )
        return state


@dataclass(frozen=True)
class WeightEvents(Events):
    """The weights that the method scores lowest are set to zero, and in the end the nodes go that lie on no path then."""

    def begin(self, plan: Plan) -> State:
        weights = maskable(self.dense)
        total = sum(weight.numel() for weight in weights.values())
        if (left := total - round(self.share * total)) < len(weights) and not self.allow_disconnect:
            raise UnreachableSparsity(
                f"sparsity {self.share:g} leaves {left} weights for {len(weights)} layers; ask for less, or --allow-disconnect"
            )
        return State(self.dense, self.found, plan, kept=present(self.dense, planned_masks(self.dense)))

    def one(self, state: State, number: int) -> State:
        target, counted, what = self._counted(number)
        free = maskable(self.dense).keys() - self.held
        return weight_event(state, self.method, counted, target, self.aim, free, what)

    def settle(self, state: State) -> State:
        if self.share > 0 and not state.plan.events:
            raise BadInput(f"sparsity {self.share:g} of the weights is not more than what is zero already; ask for more")
        if self.aim.ablation == "shuffle":
            drawn = shuffled_weights(state.kept, self.objective.seed)
            state = dataclasses.replace(state, model=masked(self.dense, drawn), kept=drawn)
        found = self._ways(state)
        if not found.connected and not self.allow_disconnect:
            empty = [name for name, mask in state.kept.items() if not bool(mask.any())]
            raise UnreachableSparsity(
                f"at sparsity {self.share:g} the output no longer depends on the input"
                f"{f' ({empty[0]} is empty)' if empty else ''}; ask for less, or --allow-disconnect"
            )
        return dataclasses.replace(state, ways=found)

    def after_epoch(self, state: State) -> State:
        ways, kept = state.ways or self._ways(state), state.plan.kept
        fed = {name: there[kept[name]] if name in kept else there for name, there in ways.fed.items()}
        steady(state.model, state.structure, fed, self.aim.inputs)
        return dataclasses.replace(state, ways=ways)

    def clear(self, state: State) -> State:
        ways = state.ways or self._ways(state)
        if state.plan.masks:  # that was done already
            return dataclasses.replace(state, ways=ways)
        return _without_dead(state, self.found, ways, self.aim)

    def _ways(self, state: State) -> Paths:
        return paths(state.model, self.found, state.kept, over_channels(state.model, self.aim.inputs))


def _without_dead(state: State, found: Structure, ways: Paths, aim: Aim) -> State:
    """Dead nodes go, but for those of groups in which that changes what comes out, on these inputs or on unlike ones."""
    kept = removable(state.model, found, ways, aim.inputs, aim.floor)
    pairs = [(given, outputs_of(state.model, given)) for given in unlike(aim.inputs)]
    pairs = [(given, outputs) for given, outputs in pairs if all(bool(torch.isfinite(y).all()) for y in outputs)]

    def failure(groups: tuple[Group, ...]) -> Wrong | None:
        some = found.keep_all() | {g.name: kept[g.name] for g in groups}
        small = without_dead(state.model, found, ways, some, aim.inputs)
        proofs = [Equivalence.of("", outputs, outputs_of(small, given), TORCH_TOLERANCE) for given, outputs in pairs]
        varies = not ways.connected or any(proof.conclusive for proof in proofs)
        return None if varies and all(proofs) else Wrong("it changes the result")

    losing = {g.name: g for g in found.prunable if len(kept[g.name]) < g.width}
    wrong = all_at_fault(tuple(losing.values()), failure)
    kept = found.keep_all() | {name: kept[name] for name in losing.keys() - wrong.keys()}
    small = without_dead(state.model, found, ways, kept, aim.inputs)
    plan = state.plan.rounded(kept).with_masks(state.kept)
    return dataclasses.replace(state, model=small, structure=found.shrink(kept), plan=plan, ways=ways)


def event(state: State, method: Method, objective: Objective, target: float, aim: Aim, what: str) -> State:
    """Score, select, shrink; an event that would remove nothing is skipped."""
    left, meter = state.structure, aim.meter(state.model, state.structure)
    if meter.amount <= meter.wanted(target):
        return state
    scores = _scored(method, state, objective, what, aim)
    ranked = aim.ranked(scores, state.model, left)
    selection = _cut(ranked, left, target, state.model, meter, aim)
    plan = state.plan.event(selection.kept, target, tie=selection.tie, loss=scores.loss)
    ranks = _ranked_on(state, ranked)
    small, structure = shrink(state.model, left, selection.kept), left.shrink(selection.kept)
    return State(small, structure, plan, ranks, scores.samples, curves=state.curves or scores.curves())


def weight_event(
    state: State, method: Method, objective: Objective, target: float, aim: Aim, free: Collection[str], what: str
) -> State:
    """Score, select, set to zero; `free` are the weights that may lose entries."""
    total = sum(mask.numel() for mask in state.kept.values())
    if sum(int(mask.sum()) for mask in state.kept.values()) <= total - round(target * total):
        return state
    scores = _scored(method, state, objective, what, aim)
    scores.cover({name: tuple(mask.shape) for name, mask in state.kept.items()})
    scores = dataclasses.replace(scores, values={name: value for name, value in scores.values.items() if name in free})
    kept, tie = select_weights(scores, state.kept, total, target)
    plan = state.plan.event(state.structure.keep_all(), target, tie=tie, loss=scores.loss)
    return dataclasses.replace(
        state,
        model=masked(state.model, kept),
        plan=plan,
        samples=scores.samples,
        kept=kept,
        curves=state.curves or scores.curves(),
        ways=None,
    )


def _scored(method: Method, state: State, objective: Objective, what: str, aim: Aim) -> Scores:
    try:
        scores = method.score(state.model, state.structure, objective)
        return scores.negative() if aim.ablation == "invert" else scores
    except RuntimeError as error:
        raise UnsupportedNetwork(f"{what}: the network does not run: {first_line(error)}") from error


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
    selection = _cut(Scores(state.ranks), found, share, dense, aim.meter(dense, found), aim)
    plan = state.plan.rounded(selection.kept, tie=selection.tie)
    return dataclasses.replace(
        state, model=shrink(dense, found, selection.kept), structure=found.shrink(selection.kept), plan=plan
    )


def _cut(scores: Scores, left: Structure, target: float, model: nn.Module, meter: Meter, aim: Aim) -> Selection:
    """What stays of the nodes; where multiply-adds fall otherwise than the meter thinks, the cut moves until the count fits.

    Args:
        meter: of what `model` needs; it stays as it is.
    """

    def cut_at(asked: float) -> Selection:
        return select(scores, left, asked, floor=aim.floor, round_to=aim.round_to, meter=copy.deepcopy(meter))

    highest = highest_reachable(left, aim.floor, round_to=aim.round_to, meter=meter)
    asked = min(max(target, 0.0), highest)
    if aim.unit != "macs":
        return cut_at(asked)
    macs_of, wanted, best = _counter(model, left, meter, aim), (1 - target) * aim.total, None
    for _ in range(CUTS):
        selection = cut_at(asked)
        macs = macs_of(selection.kept)
        off = macs - wanted
        if best is None or abs(off) < abs(best[0]):
            best = off, selection
        if round((1 - selection.reached) * aim.total) == macs or (_same(selection, best[1]) and best[1] is not selection):
            break
        asked = min(max(asked + off / aim.total, 0.0), highest)
    assert best is not None
    return best[1]


def _counter(model: nn.Module, left: Structure, meter: Meter, aim: Aim) -> Callable[[Kept], int]:
    """What counts the multiply-adds of what is kept of `model`: by shapes alone, where that agrees for the whole of it."""
    hollow = on_meta(model)

    def by_shapes(kept: Kept) -> int:
        return count_shapes(shrink(hollow, left, kept), aim.inputs).macs

    try:
        alike = by_shapes(left.keep_all()) == round(meter.amount)
    except OF_ITS_CODE:
        alike = False
    return by_shapes if alike else lambda kept: count(shrink(model, left, kept), aim.inputs).macs


CUTS = 8
"""Times that a budget of multiply-adds is cut anew."""


def _same(one: Selection, other: Selection) -> bool:
    return all(torch.equal(one.kept[name], other.kept[name]) for name in one.kept)


class _Counted:
    """Batches as they are given, that report how far they are; who reads them checks them."""

    def __init__(self, objective: Objective, progress: Progress, what: str) -> None:
        self.objective, self.progress, self.what = objective, progress, what

    def __iter__(self) -> Iterator[Batch]:
        data = self.objective.data
        total = length_of(data) or 0
        for done, batch in enumerate(self.objective.as_given()):
            self.progress(self.what, done, total)
            yield batch
