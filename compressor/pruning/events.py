"""The pruning events: score, select, remove; what one event leaves is what the next one scores."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.coupling.validate import OF_ITS_CODE, Failure, all_at_fault, on_meta
from compressor.data import length_of
from compressor.errors import BadInput, UnreachableSparsity, UnsupportedNetwork, first_line
from compressor.method import Method
from compressor.model.cost import count, count_shapes
from compressor.model.inputs import unlike
from compressor.model.observe import outputs_of
from compressor.model.origin import planned_masks
from compressor.model.weights import maskable, masked, present
from compressor.objective.batches import Batch
from compressor.objective.objective import Objective
from compressor.options import spelled
from compressor.proof.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.proof.reference import over_channels
from compressor.pruning.aim import Aim
from compressor.pruning.controls import shuffled_nodes, shuffled_weights
from compressor.pruning.unlabelled import unlabelled
from compressor.repair.sensitivity import MOST, sensitivity
from compressor.selection.budget import Meter
from compressor.selection.schedule import exponential
from compressor.selection.select import Selection, highest_reachable, select, select_weights
from compressor.surgery.dead_nodes import removable, sync_constant_running_means, without_dead
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.paths import Paths, paths
from compressor.system.files import parsed
from compressor.system.progress import Progress
from compressor.types.curves import Curve, Sensitivity
from compressor.types.plan import Plan
from compressor.types.scores import Scores
from compressor.types.structure import Group, Kept, Structure


@dataclass(frozen=True)
class PruningState:
    """Where the events have come to.

    Attributes:
        ranks: group -> `(width,)` of the dense network: the order in which nodes go, over all events so far.
        kept: weight -> booleans of its shape, where single weights are removed.
        curves: of the first event's scores, see `Scores.curves`.
        ways: through the masked network.
        sensitivities: group -> what the dense network loses as its nodes go, where that allocates.
    """

    network: GroupedNetwork
    plan: Plan
    ranks: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    ways: Paths | None = None
    sensitivities: Mapping[str, Curve] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """What is left now."""
        return self.network.model

    @property
    def structure(self) -> Structure:
        """The groups of what is left."""
        return self.network.structure

    def with_weights(self, model: nn.Module) -> PruningState:
        """The same with other weights, such as those that a training gave."""
        return dataclasses.replace(self, network=self.network.with_weights(model))


@dataclass(frozen=True)
class Events:
    """The events of one pruning; `NodeEvents` and `WeightEvents` say what an event is.

    Attributes:
        network: that the pruning starts from.
        share: of the aim's unit that goes in the end.
        held: weights that must not lose entries.
        trained: the network is trained between events, so that nothing that went can come back with its weights.
        portions: that the way to the target is divided into.
    """

    method: Method
    network: GroupedNetwork
    objective: Objective
    share: float
    aim: Aim
    progress: Progress
    held: frozenset[str] = frozenset()
    trained: bool = False
    portions: int = 1

    @property
    def dense(self) -> nn.Module:
        """The network that the pruning starts from."""
        return self.network.model

    @property
    def found(self) -> Structure:
        """Its groups."""
        return self.network.structure

    @property
    def by_portion(self) -> tuple[tuple[float, ...], ...]:
        """The sparsity after each event of each portion: what is left shrinks by the same factor each time."""
        if self.portions == 1:
            return (self.method.targets(self.share),)
        found: list[tuple[float, ...]] = []
        reached = 0.0
        for share in exponential(self.share, self.portions):
            found.append(tuple(t for t in self.method.targets(share) if t > reached))
            reached = share
        return tuple(found)

    @property
    def targets(self) -> tuple[float, ...]:
        """The sparsity after each event."""
        return tuple(target for part in self.by_portion for target in part)

    def begin(self, plan: Plan) -> PruningState:
        """Before the first event; `plan` has none."""
        raise NotImplementedError

    def one(self, state: PruningState, number: int) -> PruningState:
        """After the event of this number, from 0; one that would remove nothing is skipped."""
        raise NotImplementedError

    def settle(self, state: PruningState) -> PruningState:
        """After the last event: the widths rounded, the choice shuffled where that is the control; or a refusal."""
        raise NotImplementedError

    def after_epoch(self, state: PruningState) -> PruningState:
        """After an epoch of training the state's network in place: what it needs to be judged in eval mode."""
        return state

    def clear(self, state: PruningState) -> PruningState:
        """At the end of all events: without what lies on no path."""
        return state

    def all_of_them(self, plan: Plan) -> PruningState:
        """One after the other, with no training between."""
        state = self.begin(plan)
        for number in range(len(self.targets)):
            state = self.one(state, number)
        return self.settle(state)

    def _counted(self, number: int) -> tuple[float, Objective, str]:
        """An event's target, batches of its own draw that tell how far they are, and its name."""
        target = self.targets[number]
        what = f"event {number + 1} of {len(self.targets)}, sparsity {target:.3f}"
        batches = _Counted(self.objective, self.progress, what, number)
        return target, dataclasses.replace(self.objective, data=batches), what


@dataclass(frozen=True)
class NodeEvents(Events):
    """The nodes that the method scores lowest go."""

    def begin(self, plan: Plan) -> PruningState:
        ranks = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in self.found.prunable}
        return PruningState(self.network, plan, ranks, sensitivities=self._read())

    def _read(self) -> Mapping[str, Curve]:
        """The curves that the user gave; none, where they are to be measured or not needed."""
        if (named := self.aim.settings.sensitivity) is not None:
            return parsed(Path(named), lambda text: Sensitivity.from_json(text).fitting(self.found))
        if self.aim.by_sensitivity and self.objective.data == ():
            raise BadInput(f"{spelled('allocate', 'sensitivity')} measures on data; give {spelled('data')}")
        return {}

    def one(self, state: PruningState, number: int) -> PruningState:
        target, counted, what = self._counted(number)
        last = self.trained and number == len(self.targets) - 1
        aim = self.aim if last else dataclasses.replace(self.aim, exact=True)
        return event(state, self.method, counted, target, aim, what, self._measured)

    def _measured(self, network: GroupedNetwork, scores: Scores) -> Mapping[str, Curve]:
        return measured(network, scores, self.objective, self.progress)

    def settle(self, state: PruningState) -> PruningState:
        if self.share > 0 and not state.plan.events:
            raise BadInput(f"sparsity {self.share:g} of {self.found.total_nodes} nodes is less than one node; ask for more")
        if self.trained:
            return state
        if self.aim.round_to > 1 and self.share > 0:
            state = rounded_to(state, self.network, self.share, self.aim)
        if self.aim.ablation == "shuffle":
            kept = shuffled_nodes(self.found, state.plan.kept, self.objective.seed)
            plan = state.plan.rounded(kept, tie=False)
            state = dataclasses.replace(state, network=self.network.shrink(kept), plan=plan)
        return state


@dataclass(frozen=True)
class WeightEvents(Events):
    """The weights that the method scores lowest are set to zero, and in the end the nodes go that lie on no path then."""

    def begin(self, plan: Plan) -> PruningState:
        weights = maskable(self.dense)
        total = sum(weight.numel() for weight in weights.values())
        if (left := total - round(self.share * total)) < len(weights) and not self.aim.settings.allow_disconnect:
            raise UnreachableSparsity(
                f"sparsity {self.share:g} leaves {left} weights for {len(weights)} layers; ask for less, or "
                f"{spelled('allow_disconnect', True)}"
            )
        return PruningState(self.network, plan, kept=present(self.dense, planned_masks(self.dense)))

    def one(self, state: PruningState, number: int) -> PruningState:
        target, counted, what = self._counted(number)
        free = maskable(self.dense).keys() - self.held
        return weight_event(state, self.method, counted, target, self.aim, free, what)

    def settle(self, state: PruningState) -> PruningState:
        if self.share > 0 and not state.plan.events:
            raise BadInput(f"sparsity {self.share:g} of the weights is not more than what is zero already; ask for more")
        if self.aim.ablation == "shuffle":
            drawn = shuffled_weights(state.kept, self.objective.seed)
            state = dataclasses.replace(state.with_weights(masked(self.dense, drawn)), kept=drawn)
        found = self._ways(state)
        if not found.connected and not self.aim.settings.allow_disconnect:
            empty = [name for name, mask in state.kept.items() if not bool(mask.any())]
            raise UnreachableSparsity(
                f"at sparsity {self.share:g} the output no longer depends on the input"
                f"{f' ({empty[0]} is empty)' if empty else ''}; ask for less, or {spelled('allow_disconnect', True)}"
            )
        return dataclasses.replace(state, ways=found)

    def after_epoch(self, state: PruningState) -> PruningState:
        ways, kept = state.ways or self._ways(state), state.plan.kept
        reachable = {name: there[kept[name]] if name in kept else there for name, there in ways.reachable.items()}
        sync_constant_running_means(state.network, reachable)
        return dataclasses.replace(state, ways=ways)

    def clear(self, state: PruningState) -> PruningState:
        ways = state.ways or self._ways(state)
        if state.plan.masks:  # that was done already
            return dataclasses.replace(state, ways=ways)
        return _without_dead(state, self.network.with_weights(state.model), ways, self.aim.floor)

    def _ways(self, state: PruningState) -> Paths:
        return paths(state.model, self.found, state.kept, over_channels(state.model, self.network.inputs))


def _without_dead(state: PruningState, whole: GroupedNetwork, ways: Paths, floor: int) -> PruningState:
    """Dead nodes of `whole` go, but for groups in which that changes what comes out, on its inputs or on unlike ones."""
    found, kept = whole.structure, removable(whole, ways, floor)
    pairs = [(given, outputs_of(whole.model, given)) for given in unlike(whole.inputs)]
    pairs = [(given, outputs) for given, outputs in pairs if all(bool(torch.isfinite(y).all()) for y in outputs)]

    def failure(groups: tuple[Group, ...]) -> Failure | None:
        some = found.keep_all() | {g.name: kept[g.name] for g in groups}
        small = without_dead(whole, ways, some)
        proofs = [Equivalence.of("", outputs, outputs_of(small, given), TORCH_TOLERANCE) for given, outputs in pairs]
        varies = not ways.connected or any(proof.conclusive for proof in proofs)
        return None if varies and all(proofs) else Failure("it changes the result")

    losing = {g.name: g for g in found.prunable if len(kept[g.name]) < g.width}
    wrong = all_at_fault(tuple(losing.values()), failure)
    kept = found.keep_all() | {name: kept[name] for name in losing.keys() - wrong.keys()}
    small = GroupedNetwork(without_dead(whole, ways, kept), found.shrink(kept), whole.inputs)
    plan = state.plan.rounded(kept).with_masks(state.kept)
    return dataclasses.replace(state, network=small, plan=plan, ways=ways)


def event(
    state: PruningState, method: Method, objective: Objective, target: float, aim: Aim, what: str,
    curves: Callable[[GroupedNetwork, Scores], Mapping[str, Curve]],
) -> PruningState:  # fmt: skip
    """Score, select, shrink; an event that would remove nothing is skipped. Its `curves` are measured at the first event."""
    left, meter = state.network, aim.meter(state.network)
    if meter.amount <= meter.wanted(target):
        return state
    scores = _scored(method, state, objective, what, aim)
    ranked, sensitivities = aim.ranked(scores, left), state.sensitivities
    if aim.by_sensitivity and not sensitivities:
        sensitivities = curves(left, ranked)
    ranked = aim.allocated(ranked, left, meter, target, sensitivities)
    selection = _cut(ranked, left, target, meter, aim)
    plan = state.plan.event(selection.kept, target, tie=selection.tie, loss=scores.loss)
    ranks = _ranked_on(state, ranked)
    return PruningState(
        left.shrink(selection.kept), plan, ranks, scores.samples, curves=state.curves or scores.curves(),
        sensitivities=sensitivities,
    )  # fmt: skip


def measured(
    network: GroupedNetwork, scores: Scores, objective: Objective, progress: Progress, *, refits: bool = True
) -> dict[str, Curve]:
    """The curves of a network's groups, on the objective's data. Arguments as in `repair.sensitivity`."""
    shown = unlabelled(network, objective, MOST)
    return sensitivity(network, scores, shown, refits=refits, seed=objective.seed, progress=progress)


def weight_event(
    state: PruningState, method: Method, objective: Objective, target: float, aim: Aim, free: Collection[str], what: str
) -> PruningState:
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
        state.with_weights(masked(state.model, kept)), plan=plan, samples=scores.samples, kept=kept,
        curves=state.curves or scores.curves(), ways=None,
    )  # fmt: skip


def _scored(method: Method, state: PruningState, objective: Objective, what: str, aim: Aim) -> Scores:
    try:
        scores = method.score(state.model, state.structure, objective)
        return scores.negative() if aim.ablation == "invert" else scores
    except RuntimeError as error:
        raise UnsupportedNetwork(f"{what}: the network does not run: {first_line(error)}") from error


def _ranked_on(state: PruningState, scores: Scores) -> dict[str, Tensor]:
    """The ranks, in which the nodes that are left now come after all that are gone, by their new scores; equal stays equal."""
    names = list(state.ranks)
    _, places = torch.unique(torch.cat([scores.values[name].flatten() for name in names]), return_inverse=True)
    places = places.double() / len(places) + len(state.plan.events) + 1
    new = zip(names, places.split([len(scores.values[name]) for name in names]), strict=True)
    kept = state.plan.kept
    return {name: state.ranks[name].index_copy(0, kept[name], its) for name, its in new}


def rounded_to(state: PruningState, dense: GroupedNetwork, share: float, aim: Aim) -> PruningState:
    """Where the events have come to, with widths that are multiples: in the order of removal, the last to go come back first.

    Rounding once, at the end, keeps the widths near the exact ones; rounded at each event, they would drift away.
    """
    selection = _cut(Scores(state.ranks), dense, share, aim.meter(dense), aim)
    plan = state.plan.rounded(selection.kept, tie=selection.tie)
    return dataclasses.replace(state, network=dense.shrink(selection.kept), plan=plan)


def _cut(scores: Scores, left: GroupedNetwork, target: float, meter: Meter, aim: Aim) -> Selection:
    """What stays of the nodes; where multiply-adds fall otherwise than the meter thinks, the cut moves until the count fits.

    Args:
        meter: of what `left` needs; it stays as it is.
    """

    def cut_at(asked: float) -> Selection:
        return select(scores, left.structure, asked, floor=aim.floor, round_to=aim.round_to, meter=copy.deepcopy(meter))

    highest = highest_reachable(left.structure, aim.floor, round_to=aim.round_to, meter=meter)
    asked = min(max(target, 0.0), highest)
    if aim.unit != "macs":
        return cut_at(asked)
    macs_of, wanted, best = _counter(left, meter), (1 - target) * aim.total, None
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


def _counter(left: GroupedNetwork, meter: Meter) -> Callable[[Kept], int]:
    """What counts the multiply-adds of what is kept: by shapes alone, where that agrees for the whole of it."""
    hollow = left.with_weights(on_meta(left.model))

    def by_shapes(kept: Kept) -> int:
        return count_shapes(hollow.shrink(kept).model, left.inputs).macs

    try:
        alike = by_shapes(left.structure.keep_all()) == round(meter.amount)
    except OF_ITS_CODE:
        alike = False
    return by_shapes if alike else lambda kept: count(left.shrink(kept).model, left.inputs).macs


CUTS = 8
"""Times that a budget of multiply-adds is cut anew."""


def _same(one: Selection, other: Selection) -> bool:
    return all(torch.equal(one.kept[name], other.kept[name]) for name in one.kept)


class _Counted:
    """The batches of one event as they are given, which report how far they are; a further pass is an epoch of its own.

    Who reads them checks them.
    """

    def __init__(self, objective: Objective, progress: Progress, what: str, number: int) -> None:
        self.objective, self.progress, self.what = objective, progress, what
        self.epochs = itertools.count(number)

    def __iter__(self) -> Iterator[Batch]:
        total = length_of(self.objective.data) or 0
        for done, batch in enumerate(self.objective.as_given(next(self.epochs))):
            self.progress(self.what, done, total)
            yield batch
