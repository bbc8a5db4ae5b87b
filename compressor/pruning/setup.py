"""All that is decided before the first event."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from compressor.coupling import Traced, Untraced, check_prunable
from compressor.coupling.validate import explored
from compressor.errors import BadInput, CompressError, UnsupportedNetwork, WrongUsage
from compressor.method import Method, make
from compressor.model.check import architecture_of, check_weights
from compressor.model.inputs import Inputs, as_inputs, precision_of, several
from compressor.model.origin import origin_of, set_origin
from compressor.model.precision import as_it_came, in_other_precision, wide, working_copy
from compressor.model.weights import maskable
from compressor.objective.batches import Batch, call, check_finite, inputs_of, suited_batch, to_device
from compressor.objective.calibrate import calibrated, is_fresh
from compressor.objective.losses import Loss, loss_named
from compressor.objective.objective import Objective
from compressor.options import divided, options_of, spelled
from compressor.proof.equivalence import Equivalence
from compressor.pruning.aim import Aim
from compressor.pruning.choice import state_of
from compressor.pruning.controls import afresh
from compressor.pruning.events import Events, NodeEvents, PruningState, WeightEvents
from compressor.pruning.facts import Fact, Note, note
from compressor.pruning.proofs import same_operators, since
from compressor.pruning.result import BudgetOutcome, Clock, Result, reasons_of, summarise
from compressor.repair import Repair
from compressor.selection.select import check_reachable
from compressor.settings import Attention, Budget, Pruning
from compressor.sources.noise import example_of
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.shrink import sizes_of
from compressor.system.progress import Progress
from compressor.types.origin import Origin
from compressor.types.plan import Plan
from compressor.types.reason import Cause, asked_for, summed_up
from compressor.types.structure import Structure


@dataclass(frozen=True)
class Setup:
    """All that is decided before the first event.

    Attributes:
        name: of the method.
        model: as it was given.
        events: what is to happen.
        plan: without events yet.
        notes: for the reader.
        traced: the dense network, to be compared with the small one.
    """

    name: str
    model: nn.Module
    events: Events
    plan: Plan
    notes: list[Note]
    clock: Clock
    traced: Traced | Untraced

    def conclude(
        self, state: PruningState, proofs: tuple[Equivalence, ...], *, inplace: bool = False, fresh: bool = False,
        repair: Repair | None = None,
    ) -> Result:  # fmt: skip
        """The result of where the events have come to.

        Args:
            proofs: that nothing but what went is gone.
            fresh: hand it over with fresh weights.
            repair: what was done to what is left.
        """
        e, aim, model = self.events, self.events.aim, self.model
        nodes = e.method.unit == "node"
        with self.clock.timed("proof by labels"):
            shown, unshown = same_operators(self.traced, e.found, state.model, state.plan.kept, e.network.inputs)
        proofs = (*shown, *(since(proofs, "fresh") if fresh else proofs))
        ties = [note(Fact.TIE, sparsity=v.sparsity, unit=e.method.unit) for v in state.plan.events if v.tie]
        mended = [] if repair is None else [
            *([note(Fact.LESS_REPAIR, why=repair.why)] if repair.why else []),
            *([note(Fact.REPAIR_ON_NOISE)] if repair.noise else []),
            *([note(Fact.FEW_ROWS, layers=few)] if (few := sum(x.rows < x.columns for x in repair.layers)) else []),
        ]  # fmt: skip
        notes = [*self.notes, *mended, *unshown, *ties, *([note(Fact.EXACT_WIDTHS)] if aim.round_to == 1 and nodes else [])]
        left = aim.meter(state.network)
        summary = summarise(
            self.name, dataclasses.asdict(e.method), e.share, model, e.network, state, proofs, self.clock,
            notes, repair,
        )  # fmt: skip
        spent = BudgetOutcome(left.unit, left.wanted(e.share), left.amount, left.total) if nodes else None
        summary = dataclasses.replace(summary, budget=spent, settings=aim.settings)
        as_it_came(state.model, model)  # in place: it is handed over in the precision that it came in
        if fresh:
            state = state.with_weights(refreshed(state, e.objective.seed))
        if repair is not None and repair.kept != "as pruned":
            state = dataclasses.replace(state, plan=dataclasses.replace(state.plan, repaired=True))
        return Result(handed_over(state, model, inplace), state.plan, summary, state.curves)


def refreshed(state: PruningState, seed: int) -> nn.Module:
    """The small network with fresh weights; what is zero because it was masked stays zero."""
    return afresh(state.model, _zeros(state.model) if state.kept else _zeros_beside(state.model), seed)


def settings_of(
    pruning: Pruning | None, given: Mapping[str, Any], sparsity: float | None = None, budget: Budget | None = None
) -> tuple[Pruning, dict[str, Any]]:
    """What Python's keywords ask of a pruning, and those that are left for the method.

    Args:
        pruning: what is asked already; `given` comes on top of it.
        sparsity: where it was given by its place.
    Raises:
        WrongUsage: a value that no option can have, or several targets.
    """
    named, options = divided(given, Pruning)
    named |= {} if sparsity is None else {"sparsity": sparsity}
    if pruning is not None:
        named = {o.name: getattr(pruning, o.name) for o in options_of(Pruning)} | named
    return Pruning.of(named, budget), options


def prepare(
    model: nn.Module,
    method: str | Method,
    data: Iterable[Batch] | None,
    asked_for: Pruning,
    options: Mapping[str, Any],
    *,
    loss: str | Loss = "cross-entropy",
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Setup:
    """Check what was asked for, and find the groups. Other arguments and errors as in `compress`.

    Args:
        options: of the method.
    """
    check_weights(model)
    chosen = chosen_method(method, options)
    check_effect(asked_for, chosen)
    objective = Objective(data if data is not None else (), loss_named(loss), forward, device_of(model), seed)
    notes: list[Note] = []
    if data is None:
        if example_inputs is None:
            notes.append(note(Fact.ON_NOISE))
        needs_data = chosen.uses_data or asked_for.calibrate_bn
        example_inputs = example_without_data(model, example_inputs, needs_data, seed)
    if chosen.uses_data and is_fresh(model) and not asked_for.calibrate_bn:
        notes.append(note(Fact.FRESH_NORMS))
    objective.example = inputs = example_for(objective, example_inputs)
    if chosen.suits is not None and (seen := state_of(model, asked_for.state)).state != chosen.suits:
        fact = Fact.FOR_FRESH if chosen.suits == "fresh" else Fact.FOR_TRAINED
        notes.append(note(fact, method=method if isinstance(method, str) else type(chosen).__name__, why=seen.why))
    if chosen.unit == "weight":
        notes.append(note(Fact.MASKS_ONLY, nodes=any(o.name == "unit" for o in options_of(type(chosen)))))
    if data is not None and not chosen.uses_data and not asked_for.calibrate_bn and not asked_for.repairs:
        notes.append(note(Fact.UNUSED_DATA))
    dense = working_copy(model, inputs)
    if in_other_precision(dense, model):
        notes.append(note(Fact.OTHER_PRECISION, precision=str(precision_of(dense)).removeprefix("torch.")))
        objective.forward = _widened(forward)
    dense = calibrated(dense, objective) if asked_for.calibrate_bn else dense
    if chosen.unit == "weight" and (zeros := sum(int((w == 0).sum()) for w in _sparse_already(dense).values())):
        notes.append(note(Fact.ZEROS_BEFORE, zeros=zeros))

    clock = Clock()
    progress("finding the groups", 0, 0)
    runnable, traced = _runnable_structure(dense, inputs, asked_for.attention)
    found = _restricted(runnable, asked_for.freeze, asked_for.only)
    if chosen.unit == "node":
        found = _scorable(found, dense, chosen)
    aim, network = Aim(asked_for, model), GroupedNetwork(dense, found, inputs)
    full, budget = aim.meter(network), asked_for.budget
    share = asked_for.share if budget is None else budget.removed_share(full.total)
    aim = dataclasses.replace(aim, total=full.total)
    if chosen.unit == "node":
        check_reachable(found, share, aim.floor, round_to=aim.round_to, meter=full)
    if found.untraceable is not None:
        notes.append(note(Fact.OTHER_GRAPH, found_by=found.found_by))
    clock.lap("structure")
    plan = Plan(
        {g.name: g.width for g in found.prunable}, architecture_of(model), (), reasons_of(found), found.attention, found.bound
    )
    kind = WeightEvents if chosen.unit == "weight" else NodeEvents
    held = _held(dense, found, asked_for.freeze, asked_for.only)
    events = kind(chosen, network, objective, share, aim, progress, held)
    return Setup(method if isinstance(method, str) else type(chosen).__name__, model, events, plan, notes, clock, traced)


FOR_NODES = (
    "target_nodes", "target_macs", "target_params", "target_size", "allocate", "sensitivity",
    "per", "round_to", "repair", "repair_samples",
)  # fmt: skip
FOR_WEIGHTS = ("allow_disconnect",)
"""Options that have an effect on the one unit only."""


def check_effect(asked_for: Pruning, method: Method) -> None:
    """Refuse options that have no effect on what the method removes.

    Raises:
        WrongUsage: naming the first.
    """
    others, what = (FOR_NODES, "whole nodes") if method.unit == "weight" else (FOR_WEIGHTS, "single weights")
    for o in options_of(Pruning):
        if o.name in others and getattr(asked_for, o.name) not in (o.default, "none"):
            raise WrongUsage(
                f"{spelled(o.name, getattr(asked_for, o.name))} is for methods that remove {what}, this one removes "
                f"{method.unit}s; leave it out"
            )
    if asked_for.allocate in ("global", "isomorphic") and not method.across_layers:
        raise WrongUsage(
            f"{spelled('allocate', asked_for.allocate)}: this method ranks nodes within each layer, and its scores of "
            "different layers cannot be compared; give layer or sensitivity, or leave it out"
        )
    if asked_for.sensitivity is not None and asked_for.allocate not in (None, "sensitivity"):
        raise WrongUsage(
            f"{spelled('sensitivity')} is for {spelled('allocate', 'sensitivity')}, not for "
            f"{spelled('allocate', asked_for.allocate)}; leave one of them out"
        )
    if asked_for.by_sensitivity and asked_for.per is not None:
        raise WrongUsage(
            f"{spelled('per', asked_for.per)} ranks nodes of different layers, which "
            f"{spelled('allocate', 'sensitivity')} does by measurement; leave one of them out"
        )
    if not asked_for.repairs and asked_for.repair_samples != Pruning().repair_samples:
        raise WrongUsage(
            f"{spelled('repair_samples', asked_for.repair_samples)} is for a repair: give "
            f"{spelled('repair', 'least-squares')}, or leave it out"
        )


def _sparse_already(model: nn.Module) -> dict[str, Tensor]:
    """The weights that have zeros beside other values."""
    return {name: w.detach() for name, w in maskable(model).items() if 0 < int(torch.count_nonzero(w)) < w.numel()}


def _zeros_beside(model: nn.Module) -> dict[str, Tensor]:
    """Weight -> booleans, where it is zero, of weights that were masked before."""
    return {name: weight == 0 for name, weight in _sparse_already(model).items()}


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    """Weight -> booleans, where it is zero."""
    return {name: weight.detach() == 0 for name, weight in maskable(model).items()}


def chosen_method(method: str | Method, options: Mapping[str, Any]) -> Method:
    """The method with its options set."""
    if isinstance(method, str):
        return make(method, options)
    return dataclasses.replace(method, **options) if options else method


def example_without_data(model: nn.Module, given: Tensor | Inputs | None, needs_data: bool, seed: int) -> Tensor | Inputs:
    """What the network takes, where no data says so: as it was given, or noise of the shape that the network remembers.

    Raises:
        BadInput: data are needed, or nothing says what the network takes.
    """
    if needs_data:
        raise BadInput("no data: give batches of (inputs, target)")
    if given is not None:
        return given
    origin = origin_of(model)
    if origin is None or not origin.inputs:
        raise BadInput("no data: the scores need none, but say what the network takes with example_inputs=")
    return example_of(model, seed=seed)


def example_for(objective: Objective, given: Tensor | Inputs | None) -> Inputs:
    """Inputs for tracing and proofs: more than one sample, so that a proof can see the output vary."""
    if given is None:
        return several(wide(inputs_of(next(objective.batches()))))
    check_finite(given)
    return several(wide(as_inputs(to_device(given, objective.device))))


def device_of(model: nn.Module) -> str:
    """Where a network's parameters are."""
    return str(next((p.device for p in model.parameters()), "cpu"))


def _widened(forward: Callable[[nn.Module, Batch], Any]) -> Callable[[nn.Module, Batch], Any]:
    """A forward pass that takes batches in half precision into a network that works in float32."""

    def widened(model: nn.Module, batch: Batch) -> Any:
        return forward(model, suited_batch(model, batch))

    return widened


def _runnable_structure(model: nn.Module, inputs: Inputs, attention: Attention) -> tuple[Structure, Traced | Untraced]:
    found, traced = explored(model, inputs, attention)
    check_prunable(found)
    return found, traced


def _held(model: nn.Module, found: Structure, freeze: Sequence[str], only: Sequence[str]) -> frozenset[str]:
    """The weights that must not lose entries: of layers that the user named, and of those that never run."""
    held = {s.tensor for g in found.frozen if g.cause is Cause.TRAINING for s in g.slices if s.role in ("produce", "pass")}
    for name in maskable(model):
        layer = name.rpartition(".")[0]
        if any(fnmatchcase(layer, p) for p in freeze) or (only and not any(fnmatchcase(layer, p) for p in only)):
            held.add(name)
    return frozenset(held)


def _restricted(found: Structure, freeze: Sequence[str], only: Sequence[str]) -> Structure:
    """The structure in which only what the user allows may lose nodes."""
    layers = {g.name: tuple(dict.fromkeys((*g.layers("produce", "pass"), *g.makers))) for g in found.groups}
    for pattern in (*freeze, *only):
        if not any(fnmatchcase(layer, pattern) for names in layers.values() for layer in names):
            some = ", ".join(list(layers)[:5])
            raise WrongUsage(f"no layer is called {pattern}; there are {some} ...; `compress show` lists them")
    reasons = {}
    for group in found.prunable:
        names = layers[group.name]
        if asked := [p for p in freeze if any(fnmatchcase(layer, p) for layer in names)]:
            reasons[group.name] = asked_for(f"freeze {asked[0]}")
        elif only and not any(fnmatchcase(layer, p) for layer in names for p in only):
            reasons[group.name] = asked_for(f"only {', '.join(only)}")
    restricted = found.freeze(reasons)
    if not restricted.prunable:
        raise WrongUsage("nothing is left to prune: every layer is frozen")
    return restricted


def _scorable(found: Structure, model: nn.Module, method: Method) -> Structure:
    """The structure in which only what the method can score may lose nodes."""
    reasons = method.cannot_score(model, found)
    scorable = found.freeze(reasons)
    if not scorable.prunable:
        raise UnsupportedNetwork(f"no layer can be scored by this method: {'; '.join(summed_up(reasons.values()))}")
    return scorable


def handed_over(state: PruningState, model: nn.Module, inplace: bool) -> nn.Module:
    """The small network with its origin and the flags it came with; `model` itself, made small, where that was asked."""
    _remember(state, model)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in state.model.named_modules():
        module.training = modes.get(name, model.training)
    if not inplace:
        return state.model
    model.__dict__.update(state.model.__dict__)
    return model


def _remember(state: PruningState, model: nn.Module) -> None:
    """The small network's origin carries everything that was removed since it was built."""
    origin, plan = origin_of(model) or Origin(None, {}), state.plan
    joined = plan if origin.plan is None else _joined(origin.plan, plan)
    sizes = {**origin.sizes, **sizes_of(state.structure)}
    set_origin(state.model, dataclasses.replace(origin, plan=joined, sizes=sizes))


def _joined(earlier: Plan, later: Plan) -> Plan:
    try:
        return earlier.then(later)
    except CompressError:
        return later  # groups split or froze in between; the later plan alone is of the network that was given
