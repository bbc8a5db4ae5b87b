"""The Python API: a model, a method, data and a sparsity give a smaller, proven model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compressor.ablation import Ablation, afresh
from compressor.budget import Budget, Unit
from compressor.calibrate import calibrated, is_fresh
from compressor.connectivity import paths
from compressor.coupling import structure as find_structure
from compressor.coupling import trace
from compressor.dead import removable, without_dead
from compressor.equivalence import Equivalence
from compressor.errors import BadInput, CompressError, NotEquivalent, UnsupportedNetwork, WrongUsage
from compressor.events import Aim, Events, NodeEvents, Progress, State, WeightEvents
from compressor.fast import FAST_MULTIPLE
from compressor.feasible import feasible
from compressor.inputs import Inputs, as_inputs, each, far_apart, precision_of, several, unlike
from compressor.masked import over_channels
from compressor.method import Method, make
from compressor.objective import (
    Batch,
    Loss,
    Objective,
    call,
    check_finite,
    inputs_of,
    loss_named,
    not_finite,
    suited_batch,
    to_device,
)  # fmt: skip
from compressor.precision import wide, working_copy
from compressor.proof import prove, prove_masked, prove_randomised
from compressor.select import check_reachable, check_sparsity
from compressor.state import origin_of, set_origin
from compressor.summary import Clock, Result, Spent, reasons_of, summarise
from compressor.surgery import shrink, sizes_of
from compressor.types import (
    ASKED,
    LABEL_FLOW,
    NOT_IN_EVAL,
    Attention,
    Origin,
    Plan,
    Scores,
    Structure,
    fingerprint,
)
from compressor.weights import maskable, masked

FRESH_NORMS = "The batch norms never saw data before the scoring and did not normalise; --calibrate-bn gives statistics first."
UNUSED_DATA = "The scores of this method need no data: what was given only says what the network takes."


def compress(
    model: nn.Module,
    method: str | Method = "snapit",
    data: Iterable[Batch] | None = None,
    sparsity: float = 0.5,
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
    inplace: bool = False,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> Result:
    """Remove nodes physically until `sparsity` is reached, and prove that only they are gone.

    Args:
        model: any network that `torch.export` can trace, of any precision (scored in float32). Intact unless `inplace`.
        method: a name (`snapit`, `snap`, `random`) or a `Method`.
        data: batches `(inputs, target)`, inputs a tensor, a tuple or a dict of them; a re-iterable is read afresh at each
            event, an iterator is cached. Batches of another form need `forward`, `loss` and `example_inputs`.
        sparsity: fraction of the nodes, or of the weights where the method removes those, in [0, 1).
        budget: what is to be left of the nodes, multiply-adds, parameters or bytes; in place of `sparsity`.
        per: rank nodes by their score per multiply-add (`macs`), parameter or byte that goes with them.
        round_to: every group's width goes to the nearest multiple of this (of its half where few stay), at the same budget;
            `auto` takes what the device's kernels like; groups that are narrower are left alone.
        loss: a name, or a callable of (outputs, batch).
        forward: how a batch goes through the network.
        example_inputs: a tensor `(batch, ...)`, a tuple, or a dict of named inputs; the first batch's by default.
        freeze: names of layers that keep all their nodes, or patterns such as `features.*`; what is coupled with them does too.
        only: in place of that, the layers that may lose nodes.
        attention: what the nodes of an attention are: whole `heads`, or the `dims` inside all of its heads.
        floor: nodes that every group keeps.
        seed: for a method's own random draws.
        calibrate_bn: first give batch norms the statistics of one pass over the data.
        allow_disconnect: hand over a network whose output no longer depends on its input, which is refused else.
        ablation: run a control in place of the method: `shuffle`, `reinit` or `invert`.
        inplace: make `model` itself the smaller network.
        progress: called as the work goes on.
        options: the method's options, such as `steps=5`.
    Raises:
        CompressError: one of its kinds; the message is one line with what to do.
    """
    setup = prepare(
        model, method, data, sparsity, loss=loss, forward=forward, example_inputs=example_inputs, budget=budget, per=per,
        round_to=round_to, freeze=freeze, only=only, attention=attention, floor=floor, seed=seed, calibrate_bn=calibrate_bn,
        allow_disconnect=allow_disconnect, ablation=ablation, progress=progress, **options,
    )  # fmt: skip
    events = setup.events
    state = events.clear(events.all_of_them(setup.plan))
    setup.clock.lap("scoring and removing")

    progress("proving the small network", 0, 0)
    proofs = proven(events.dense, state, events.found, events.aim.inputs)
    setup.clock.lap("proof")
    return setup.conclude(state, proofs, inplace=inplace, fresh=ablation == "reinit")


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
        left = aim.meter(state.model, state.structure)  # before the network gets the precision back that it came in
        summary = summarise(
            self.name, dataclasses.asdict(e.method), e.share, model, e.dense, e.found, state, aim.inputs, proofs, self.clock,
            notes,
        )  # fmt: skip
        spent = Spent(left.unit, left.wanted(e.share), left.amount, left.total) if nodes else None
        summary = dataclasses.replace(summary, budget=spent, round_to=aim.round_to, ablation=aim.ablation)
        if fresh:
            state = dataclasses.replace(state, model=refreshed(state, e.objective.seed))
        return Result(_handed_over(state, model, inplace), state.plan, summary, state.curves)


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
    chosen = _chosen(method, options)
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


def score(
    model: nn.Module,
    data: Iterable[Batch] | None = None,
    method: str | Method = "snapit",
    *,
    loss: str | Loss = "cross-entropy",
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    seed: int = 0,
    **options: Any,
) -> Scores:
    """The scores of the dense network, `(width,)` per prunable group, without pruning. Arguments as in `compress`."""
    check_weights(model)
    objective = Objective(data if data is not None else (), loss_named(loss), forward, device_of(model), seed)
    objective.example = inputs = example_for(objective, example_inputs)
    working = working_copy(model, inputs)
    if working is not model:
        objective.forward = _widened(forward)
    return _chosen(method, options).score(working, find_structure(working, inputs), objective)


def apply_plan(plan: Plan, model: nn.Module, example_inputs: Tensor | Inputs) -> nn.Module:
    """Replay a plan on any weights of its architecture; the result is proven, `model` stays intact.

    Raises:
        BadInput: `model` is of another architecture, or the plan is damaged.
    """
    return replay(plan, model, example_inputs).model


def replay(plan: Plan, model: nn.Module, example_inputs: Tensor | Inputs, progress: Progress = lambda *_: None) -> Result:
    """What `apply_plan` does, with the numbers of `compress`. Errors as there."""
    check_weights(model)
    if architecture_of(model) != plan.architecture:
        raise BadInput("the plan belongs to another architecture: the names or shapes of the tensors differ")
    inputs = _on_device_of(model, example_inputs)
    dense, clock = working_copy(model, inputs), Clock()
    progress("finding the groups", 0, 0)
    found = trace(dense, inputs, plan.attention).structure(plan.bound).freeze(plan.frozen)
    if {g.name: g.width for g in found.prunable} != dict(plan.widths):
        raise BadInput("the plan's groups or their widths are not this network's: it is damaged, or of another architecture")
    clock.lap("structure")
    state = State(dense, found.shrink(plan.kept), plan, kept={name: mask.tensor() for name, mask in plan.masks.items()})
    if plan.masks:
        _check_masks(plan, dense)
        whole, ways = masked(dense, state.kept), paths(dense, found, state.kept, over_channels(dense, inputs))
        can = removable(whole, found, ways, inputs)  # with other weights, a constant may not be 0: its node stays
        kept = {name: torch.cat([stay, can[name]]).unique() for name, stay in plan.kept.items()}
        small = without_dead(whole, found, ways, kept, inputs)
        state = State(small, found.shrink(kept), plan.rounded(kept), kept=state.kept, ways=ways)
    else:
        state = dataclasses.replace(state, model=shrink(dense, found, plan.kept))
    clock.lap("scoring and removing")
    progress("proving the small network", 0, 0)
    proofs = proven(dense, state, found, inputs)
    clock.lap("proof")
    asked = plan.events[-1].sparsity if plan.events else 0.0
    summary = summarise("apply", {}, asked, model, dense, found, state, inputs, proofs, clock, [])
    return Result(_handed_over(state, model, inplace=False), state.plan, summary)


def _check_masks(plan: Plan, model: nn.Module) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in maskable(model).items()}
    if any(shapes.get(name) != mask.shape for name, mask in plan.masks.items()):
        raise BadInput("the plan's masks are not of this network's weights: it is damaged, or of another architecture")


def architecture_of(model: nn.Module) -> str:
    """A fingerprint of the names and shapes of a network's tensors."""
    return fingerprint((name, tuple(tensor.shape)) for name, tensor in model.state_dict().items())


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are not finite, and those that a hook computes from others.

    Raises:
        BadInput: naming the first such tensor.
    """
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise BadInput(
                    f"{prefix}.{attribute} is computed by a hook before each pass; make it permanent first: "
                    "torch.nn.utils.prune.remove or torch.nn.utils.remove_weight_norm"
                )
    for name, tensor in model.state_dict().items():
        if is_lazy(tensor):
            raise BadInput(f"{name} has no values yet; run the network once on data")
    if (broken := not_finite(model)) is not None:
        raise BadInput(f"{broken} has NaN or infinite values; repair or retrain the network first")


def _chosen(method: str | Method, options: dict[str, Any]) -> Method:
    if isinstance(method, str):
        return make(method, options)
    return dataclasses.replace(method, **options) if options else method


def example_for(objective: Objective, given: Tensor | Inputs | None) -> Inputs:
    """Inputs for tracing and proofs: more than one sample, so that a proof can see the output vary."""
    if given is None:
        return several(wide(inputs_of(next(objective.batches()))))
    check_finite(given)
    return several(wide(as_inputs(to_device(given, objective.device))))


def _on_device_of(model: nn.Module, given: Tensor | Inputs) -> Inputs:
    return example_for(Objective((), device=device_of(model)), given)


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


def _proof_of_masks(dense: nn.Module, state: State, inputs: Inputs) -> Equivalence:
    """That the small network is the masked dense one, on inputs that its output depends on."""
    for given in unlike(inputs):
        proof = prove_masked(dense, state.model, state.kept, given)
        if not proof or proof.conclusive or (state.ways and not state.ways.connected):
            return proof
    raise NotEquivalent("the proof says nothing: the output hardly depends on the input; keep more weights, or --calibrate-bn")


def _scorable(found: Structure, model: nn.Module, method: Method) -> Structure:
    """The structure in which only what the method can score may lose nodes."""
    reasons = method.cannot_score(model, found)
    scorable = found.freeze(reasons)
    if not scorable.prunable:
        raise UnsupportedNetwork(f"no layer can be scored by this method: {'; '.join(sorted(set(reasons.values())))}")
    return scorable


def proven(dense: nn.Module, state: State, found: Structure, inputs: Inputs) -> tuple[Equivalence, ...]:
    """The proofs that a small network is the dense one without what the plan removed.

    Raises:
        NotEquivalent: it is not, or that cannot be seen.
    """
    plan, small = state.plan, state.model
    real = _proof_of_masks(dense, state, inputs) if state.kept else prove(dense, small, found, plan.kept, inputs)
    for seed in range(3):
        random = prove_randomised(dense, found, plan.kept, each(inputs, far_apart) if seed else inputs, seed)
        if random.conclusive:
            break
    else:
        raise NotEquivalent("the proof says nothing: with random weights the output hardly depends on the input")
    for proof in (real, random):
        if not proof:
            raise NotEquivalent(
                f"{proof.what}: they differ by {proof.needed_tolerance:.1e} of the output's range, "
                f"{proof.tolerance:.0e} is allowed"
            )
    return real, random


def _handed_over(state: State, model: nn.Module, inplace: bool) -> nn.Module:
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
