"""The Python API: a model, a method, data and a sparsity give a smaller, proven model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from compressor.coupling import structure as find_structure
from compressor.data import own_randomness
from compressor.errors import CompressError
from compressor.method import Method
from compressor.model.check import check_weights
from compressor.model.inputs import Inputs
from compressor.model.precision import working_copy
from compressor.objective.batches import Batch, call
from compressor.objective.losses import Loss, loss_named
from compressor.objective.objective import Objective, Quality, evaluate
from compressor.options import declares
from compressor.pruning.choice import chosen
from compressor.pruning.facts import Note
from compressor.pruning.proofs import proven, since
from compressor.pruning.repairs import mended
from compressor.pruning.result import Result
from compressor.pruning.setup import (
    _widened,
    chosen_method,
    device_of,
    example_for,
    example_without_data,
    prepare,
    settings_of,
)
from compressor.pruning.unlabelled import tells_inputs
from compressor.settings import AUTO, Budget, Pruning
from compressor.system.progress import Progress
from compressor.types.scores import Scores


@declares(Pruning)
def compress(
    model: nn.Module,
    method: str | Method = AUTO,
    data: Iterable[Batch] | None = None,
    sparsity: float | None = None,
    *,
    pruning: Pruning | None = None,
    budget: Budget | None = None,
    loss: str | Loss = "cross-entropy",
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    seed: int = 0,
    inplace: bool = False,
    progress: Progress = lambda *_: None,
    **asked: Any,
) -> Result:
    """Remove nodes physically until a target is reached, and prove that only they are gone.

    Args:
        model: any network that `torch.export` can trace, of any precision (scored in float32). Intact unless `inplace`.
        method: a name (`snapit`, `l1-filters`) or a `Method`; `auto` is the one that suits the network, with its repair.
        data: batches `(inputs, target)`, inputs a tensor, a tuple or a dict of them; a re-iterable is read afresh at each
            event, an iterator is cached. Batches of another form need `forward`, `loss` and `example_inputs`. Methods whose
            scores need no data ask for none.
        pruning: all that is asked in one hand; what is also given by name counts.
        budget: one of the targets as an object, `Budget("macs", 0.3)`.
        loss: a name, or a callable of (outputs, batch).
        forward: how a batch goes through the network.
        example_inputs: a tensor `(batch, ...)`, a tuple, or a dict of named inputs; the first batch's by default, or without
            data noise of the shape that the network remembers.
        seed: for a method's own random draws.
        inplace: make `model` itself the smaller network.
        progress: called as the work goes on.
        ...: OWNERS
        options: the method's options, such as `steps=5`.
    Without a target, half of the nodes (or weights) goes.
    Raises:
        CompressError: one of its kinds; the message is one line with what to do.
    """
    settings, options = settings_of(pruning, asked, sparsity, budget)
    told: list[Note] = []
    forgiving = method == AUTO and settings.repair is None
    if method == AUTO:
        method, settings, why = chosen(
            model, settings, data is not None, lambda: _quality(model, data, loss, forward, seed),
            lambda: tells_inputs(model, data, forward, device_of(model)),
        )  # fmt: skip
        told.append(why)
    setup = prepare(
        model, method, data, settings, options, loss=loss, forward=forward, example_inputs=example_inputs, seed=seed,
        progress=progress,
    )  # fmt: skip
    setup.notes[:0] = told
    events = setup.events
    state = events.clear(events.all_of_them(setup.plan))
    setup.clock.lap("scoring and removing")

    progress("proving the small network", 0, 0)
    proofs = proven(events.network, state)
    setup.clock.lap("proof")
    repair, pruned = None, None
    fresh = settings.ablation == "reinit"
    if settings.repairs and not fresh:
        pruned = state.model
        state, repair = mended(events, events.network, state.plan.kept, state, forgiving)
        proofs = since(proofs, "repaired")
        setup.clock.lap("repair")
    result = setup.conclude(state, proofs, inplace=inplace, fresh=fresh, repair=repair)
    return dataclasses.replace(result, pruned=pruned)


def _quality(
    model: nn.Module, data: Iterable[Batch] | None, loss: str | Loss, forward: Callable[[nn.Module, Batch], Any], seed: int
) -> Quality | None:
    """How well a network does on its data, where there are any with labels that can be read again."""
    if data is None or iter(data) is data:
        return None
    with own_randomness(data), suppress(CompressError):
        return evaluate(model, Objective(data, loss_named(loss), forward, device_of(model), seed))
    return None


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
    chosen = chosen_method(method, options)
    objective = Objective(data if data is not None else (), loss_named(loss), forward, device_of(model), seed)
    if data is None:
        example_inputs = example_without_data(model, example_inputs, chosen.uses_data, seed)
    objective.example = inputs = example_for(objective, example_inputs)
    working = working_copy(model, inputs)
    if working is not model:
        objective.forward = _widened(forward)
    return chosen.score(working, find_structure(working, inputs), objective)
