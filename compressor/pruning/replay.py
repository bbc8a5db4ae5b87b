"""Replaying a plan on other weights of its architecture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.coupling import trace
from compressor.errors import BadInput
from compressor.model.check import architecture_of, check_weights
from compressor.model.inputs import Inputs
from compressor.model.precision import as_it_came, working_copy
from compressor.model.weights import maskable, masked
from compressor.objective.objective import Objective
from compressor.proof.reference import over_channels
from compressor.pruning.events import PruningState
from compressor.pruning.facts import Fact, note
from compressor.pruning.proofs import proven, same_operators
from compressor.pruning.result import Clock, Result, summarise
from compressor.pruning.setup import device_of, example_for, handed_over
from compressor.surgery.dead_nodes import removable, without_dead
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.paths import paths
from compressor.system.progress import Progress
from compressor.types.plan import Plan


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
    traced = trace(dense, inputs, plan.attention)
    found = traced.structure(plan.bound).freeze(plan.frozen)
    whole = GroupedNetwork(dense, found, inputs)
    if {g.name: g.width for g in found.prunable} != dict(plan.widths):
        raise BadInput("the plan's groups or their widths are not this network's: it is damaged, or of another architecture")
    clock.lap("structure")
    state = applied(plan, whole)
    clock.lap("scoring and removing")
    progress("proving the small network", 0, 0)
    proofs = proven(whole, state)
    clock.lap("proof")
    with clock.timed("proof by labels"):
        shown, notes = same_operators(traced, found, state.model, state.plan.kept, inputs)
    proofs = (*shown, *proofs)
    notes = [*([note(Fact.ONLY_CUT)] if plan.repaired else []), *notes]
    asked = plan.events[-1].sparsity if plan.events else 0.0
    summary = summarise("apply", {}, asked, model, whole, state, proofs, clock, notes)
    as_it_came(state.model, model)  # in place: it is handed over in the precision that it came in
    return Result(handed_over(state, model, inplace=False), state.plan, summary)


def applied(plan: Plan, dense: GroupedNetwork) -> PruningState:
    """What a plan leaves of a network, not proven yet.

    Raises:
        BadInput: its masks are not of this network's weights, or leave nodes alive that it removes.
    """
    if not plan.masks:
        return PruningState(dense.shrink(plan.kept), plan)
    _check_masks(plan, dense.model)
    there = {name: mask.tensor() for name, mask in plan.masks.items()}
    whole = dense.with_weights(masked(dense.model, there))
    ways = paths(dense.model, dense.structure, there, over_channels(dense.model, dense.inputs))
    for name, stay in plan.kept.items():
        if not bool(torch.isin((~ways.dead(name)).nonzero().flatten(), stay).all()):
            raise BadInput(f"group {name}: the plan removes nodes that its masks leave alive (a norm over channels sees them)")
    can = removable(whole, ways, floor=0)  # with other weights, a constant may not be 0: its node stays
    kept = {name: torch.cat([stay, can[name]]).unique() for name, stay in plan.kept.items()}
    small = GroupedNetwork(without_dead(whole, ways, kept), dense.structure.shrink(kept), dense.inputs)
    return PruningState(small, plan.rounded(kept), kept=there, ways=ways)


def _check_masks(plan: Plan, model: nn.Module) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in maskable(model).items()}
    if any(shapes.get(name) != mask.shape for name, mask in plan.masks.items()):
        raise BadInput("the plan's masks are not of this network's weights: it is damaged, or of another architecture")


def _on_device_of(model: nn.Module, given: Tensor | Inputs) -> Inputs:
    return example_for(Objective((), device=device_of(model)), given)
