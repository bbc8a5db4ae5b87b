"""The Python API: a model, a method, data and a sparsity give a smaller, proven model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from compressor.coupling import structure as find_structure
from compressor.method import Method
from compressor.model.check import check_weights
from compressor.model.inputs import Inputs
from compressor.model.precision import working_copy
from compressor.objective.batches import Batch, call
from compressor.objective.losses import Loss, loss_named
from compressor.objective.objective import Objective
from compressor.pruning.controls import Ablation
from compressor.pruning.events import Progress
from compressor.pruning.proofs import proven
from compressor.pruning.result import Result
from compressor.pruning.setup import _widened, chosen_method, device_of, example_for, example_without_data, prepare
from compressor.selection.budget import Budget, Unit
from compressor.types.scores import Scores
from compressor.types.structure import Attention


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
            event, an iterator is cached. Batches of another form need `forward`, `loss` and `example_inputs`. Methods whose
            scores need no data ask for none.
        sparsity: fraction of the nodes, or of the weights where the method removes those, in [0, 1).
        budget: what is to be left of the nodes, multiply-adds, parameters or bytes; in place of `sparsity`.
        per: rank nodes by their score per multiply-add (`macs`), parameter or byte that goes with them.
        round_to: every group's width goes to the nearest multiple of this (of its half where few stay), at the same budget;
            `auto` takes what the device's kernels like; groups that are narrower are left alone.
        loss: a name, or a callable of (outputs, batch).
        forward: how a batch goes through the network.
        example_inputs: a tensor `(batch, ...)`, a tuple, or a dict of named inputs; the first batch's by default, or without
            data noise of the shape that the network remembers.
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
