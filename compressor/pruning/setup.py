"""All that is decided before the first event."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from compressor.coupling.validate import feasible
from compressor.errors import BadInput, CompressError, UnsupportedNetwork, WrongUsage
from compressor.method import Method, make
from compressor.model.check import architecture_of, check_weights
from compressor.model.inputs import Inputs, as_inputs, precision_of, several
from compressor.model.origin import origin_of, set_origin
from compressor.model.precision import as_it_came, wide, working_copy
from compressor.model.speed import FAST_MULTIPLE
from compressor.model.weights import maskable
from compressor.objective.batches import Batch, call, check_finite, inputs_of, suited_batch, to_device
from compressor.objective.calibrate import calibrated, is_fresh
from compressor.objective.losses import Loss, loss_named
from compressor.objective.objective import Objective
from compressor.proof.equivalence import Equivalence
from compressor.pruning.controls import Ablation, afresh
from compressor.pruning.events import Aim, Events, NodeEvents, Progress, State, WeightEvents
from compressor.pruning.result import Clock, Result, Spent, reasons_of, summarise
from compressor.selection.budget import Budget, Unit
from compressor.selection.select import check_reachable, check_sparsity
from compressor.surgery.shrink import sizes_of
from compressor.types.origin import Origin
from compressor.types.plan import Plan
from compressor.types.structure import ASKED, LABEL_FLOW, NOT_IN_EVAL, Attention, Structure

FRESH_NORMS = "The batch norms never saw data before the scoring and did not normalise; --calibrate-bn gives statistics first."
UNUSED_DATA = "The scores of this method need no data: what was given only says what the network takes."


@dataclass(frozen=True)
class Setup:
    """All that is decided before the first event.

    Attributes:
        name: of the method.
        model: as it was given.
        events: what is to happen.
        plan: without events yet.
        notes: for the reader.
    """

    name: str
    model: nn.Module
    events: Events
    plan: Plan
    notes: list[str]
    clock: Clock

    def conclude(self, state: State, proofs: tuple[Equivalence, ...], *, inplace: bool = False, fresh: bool = False) -> Result:
        """The result of where the events have come to.

        Args:
            proofs: that nothing but what went is gone.
            fresh: hand it over with fresh weights.
        """
        e, aim, model = self.events, self.events.aim, self.model
        nodes = e.method.unit == "node"
        notes = [
            *self.notes,
            *(
                f"The cut at {v.sparsity:.3f} went through {e.method.unit}s of equal score: which of them went is arbitrary."
                for v in state.plan.events
                if v.tie
            ),
        ]
        if aim.round_to == 1 and nodes:
            notes.append("Widths that are multiples of 8 or 16 run faster for their multiply-adds: --round-to auto.")
        left = aim.meter(state.model, state.structure)
        summary = summarise(
            self.name, dataclasses.asdict(e.method), e.share, model, e.dense, e.found, state, aim.inputs, proofs, self.clock,
            notes,
        )  # fmt: skip
        spent = Spent(left.unit, left.wanted(e.share), left.amount, left.total) if nodes else None
        summary = dataclasses.replace(summary, budget=spent, round_to=aim.round_to, ablation=aim.ablation)
        as_it_came(state.model, model)  # in place: it is handed over in the precision that it came in
        if fresh:
            state = dataclasses.replace(state, model=refreshed(state, e.objective.seed))
        return Result(handed_over(state, model, inplace), state.plan, summary, state.curves)


def refreshed(state: State, seed: int) -> nn.Module:
    """The small network with fresh weights; what is zero because it was masked stays zero."""
    return afresh(state.model, _zeros(state.model) if state.kept else _zeros_beside(state.model), seed)


def prepare(
    model: nn.Module,
    method: str | Method,
    data: Iterable[Batch] | None,
    sparsity: float,
    *,
    loss: str | Loss = "cross-entropy",
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    budget: Budget | None = None,
    per: Unit | None = None,
    round_to: int | Literal["auto"] = 1,
    freeze: Sequence[str] = (),
    only: Sequence[str] = (),
    attention: Attention = "heads",
    floor: int = 1,
    seed: int = 0,
    calibrate_bn: bool = False,
    allow_disconnect: bool = False,
    ablation: Ablation | None = None,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> Setup:
    """Check what was asked for, and find the groups. Arguments and errors as in `compress`."""
    if budget is None:
        check_sparsity(sparsity)
    for name, value, known in (("ablation", ablation, Ablation), ("per", per, Unit), ("attention", attention, Attention)):
        if value is not None and value not in get_args(known):
            raise WrongUsage(f"{name} {value!r}: choose {', '.join(get_args(known))}")
    check_weights(model)
    chosen = chosen_method(method, options)
    objective = Objective(data if data is not None else (), loss_named(loss), forward, device_of(model), seed)
    if data is None and (chosen.uses_data or calibrate_bn or example_inputs is None):
        raise BadInput("no data: give batches of (inputs, target)")
    notes = []
    if chosen.uses_data and is_fresh(model) and not calibrate_bn:
        notes.append(FRESH_NORMS)
    objective.example = inputs = example_for(objective, example_inputs)
    if data is not None and not chosen.uses_data and not calibrate_bn:
        notes.append(UNUSED_DATA)
    dense = working_copy(model, inputs)
    if dense is not model:
        notes.append(
            f"Scored and proven in {str(precision_of(dense)).removeprefix('torch.')}, saved in the precision it came in."
        )
        objective.forward = _widened(forward)
    dense = calibrated(dense, objective) if calibrate_bn else dense
    if chosen.unit == "weight" and (zeros := sum(int((w == 0).sum()) for w in _sparse_already(dense).values())):
        notes.append(f"{zeros:,} weights were zero before; they count as removed.")

    clock = Clock()
    progress("finding the groups", 0, 0)
    found = _restricted(_runnable_structure(dense, inputs, attention), freeze, only)
    if chosen.unit == "node":
        found = _scorable(found, dense, chosen)
    multiple = FAST_MULTIPLE if round_to == "auto" else round_to
    aim = Aim(budget.unit if budget else "nodes", per, multiple, floor, model, inputs, ablation=ablation)
    full = aim.meter(dense, found)
    share = sparsity if budget is None else budget.removed_share(full.total)
    aim = dataclasses.replace(aim, total=full.total)
    if chosen.unit == "node":
        check_reachable(found, share, floor, round_to=multiple, meter=full)
    elif budget is not None or per is not None or multiple > 1:
        raise WrongUsage("single weights are removed to a --sparsity, with no other budget, ranking or widths")
    if found.found_by != LABEL_FLOW:
        notes.append(f"The groups come from {found.found_by}.")
    clock.lap("structure")
    plan = Plan(
        {g.name: g.width for g in found.prunable}, architecture_of(model), (), reasons_of(found), found.attention, found.bound
    )
    kind = WeightEvents if chosen.unit == "weight" else NodeEvents
    held = _held(dense, found, freeze, only)
    events = kind(chosen, dense, found, objective, share, aim, progress, held, allow_disconnect=allow_disconnect)
    return Setup(method if isinstance(method, str) else type(chosen).__name__, model, events, plan, notes, clock)


def _sparse_already(model: nn.Module) -> dict[str, Tensor]:
    """The weights that have zeros beside other values."""
    return {name: w.detach() for name, w in maskable(model).items() if 0 < int(torch.count_nonzero(w)) < w.numel()}


def _zeros_beside(model: nn.Module) -> dict[str, Tensor]:
    """Weight -> booleans, where it is zero, of weights that were masked before."""
    return {name: weight == 0 for name, weight in _sparse_already(model).items()}


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    """Weight -> booleans, where it is zero."""
    return {name: weight.detach() == 0 for name, weight in maskable(model).items()}


def chosen_method(method: str | Method, options: dict[str, Any]) -> Method:
    if isinstance(method, str):
        return make(method, options)
    return dataclasses.replace(method, **options) if options else method


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


def _runnable_structure(model: nn.Module, inputs: Inputs, attention: Attention) -> Structure:
    found = feasible(model, inputs, attention)
    if not found.prunable:
        raise UnsupportedNetwork(f"nothing can be pruned: {'; '.join(sorted(set(reasons_of(found).values())))}")
    return found


def _held(model: nn.Module, found: Structure, freeze: Sequence[str], only: Sequence[str]) -> frozenset[str]:
    """The weights that must not lose entries: of layers that the user named, and of those that never run."""
    held = {s.tensor for g in found.frozen if g.frozen == NOT_IN_EVAL for s in g.slices if s.role in ("produce", "pass")}
    for name in maskable(model):
        layer = name.rpartition(".")[0]
        if any(fnmatchcase(layer, p) for p in freeze) or (only and not any(fnmatchcase(layer, p) for p in only)):
            held.add(name)
    return frozenset(held)


def _restricted(found: Structure, freeze: Sequence[str], only: Sequence[str]) -> Structure:
    """The structure in which only what the user allows may lose nodes."""
    layers = {g.name: g.layers("produce", "pass") for g in found.groups}
    for pattern in (*freeze, *only):
        if not any(fnmatchcase(layer, pattern) for names in layers.values() for layer in names):
            some = ", ".join(list(layers)[:5])
            raise WrongUsage(f"no layer is called {pattern}; there are {some} ...; `compress show` lists them")
    reasons = {}
    for group in found.prunable:
        names = layers[group.name]
        if asked := [p for p in freeze if any(fnmatchcase(layer, p) for layer in names)]:
            reasons[group.name] = f"{ASKED}: freeze {asked[0]}"
        elif only and not any(fnmatchcase(layer, p) for layer in names for p in only):
            reasons[group.name] = f"{ASKED}: only {', '.join(only)}"
    restricted = found.freeze(reasons)
    if not restricted.prunable:
        raise WrongUsage("nothing is left to prune: every layer is frozen")
    return restricted


def _scorable(found: Structure, model: nn.Module, method: Method) -> Structure:
    """The structure in which only what the method can score may lose nodes."""
    reasons = method.cannot_score(model, found)
    scorable = found.freeze(reasons)
    if not scorable.prunable:
        raise UnsupportedNetwork(f"no layer can be scored by this method: {'; '.join(sorted(set(reasons.values())))}")
    return scorable


def handed_over(state: State, model: nn.Module, inplace: bool) -> nn.Module:
    """The small network with its origin; `model` itself, made small, where that was asked."""
    _remember(state, model)
    if not inplace:
        return state.model
    model.__dict__.update(state.model.__dict__)
    return model


def _remember(state: State, model: nn.Module) -> None:
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
