"""Repair as a step of a pruning: which samples it sees, and what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.coupling.label_flow import by_every_name
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.model.inputs import Inputs, each
from compressor.model.observe import observed
from compressor.model.origin import planned_masks
from compressor.model.weights import maskable
from compressor.objective.batches import Batch, suited_batch
from compressor.objective.objective import Objective
from compressor.options import spelled
from compressor.pruning.events import Events, PruningState
from compressor.repair import Repair, repaired
from compressor.settings import Repairing
from compressor.surgery.network import GroupedNetwork
from compressor.types.structure import Kept


def mended(
    events: Events, before: GroupedNetwork, kept: Kept, state: PruningState, forgiving: bool = False
) -> tuple[PruningState, Repair]:
    """The network of `state`, which is what `kept` leaves of `before`, repaired. Errors as in `repaired`.

    Args:
        forgiving: nobody asked for the repair: where it cannot be done, the network stays as it is, and the record says why.
    """
    settings, objective = events.aim.settings, events.objective
    assert settings.repair is not None
    stay = by_every_name(before.structure.kept_entries(kept), state.model)
    noise, most = _without_data(objective), settings.repair_samples
    is_masked = _is_masked(before.model)
    how: Repairing = "norms" if is_masked else settings.repair
    try:
        model, record = repaired(
            before.model, state.model, stay, _inputs(before, objective, most), how, most, noise=noise, seed=objective.seed,
            progress=events.progress,
        )  # fmt: skip
    except (BadInput, UnsupportedNetwork) as error:
        if not forgiving:
            raise
        why = str(error).partition(f"; {spelled('repair', 'none')}")[0]
        return state, Repair(settings.repair, "as pruned", 0, 0, noise, {}, (), why)
    if is_masked and settings.repair != "norms":
        record = replace(record, asked=settings.repair, why="its weights are masked, and a refit would fill the zeros")
    return state.with_weights(model), record


def _is_masked(model: nn.Module) -> bool:
    """Whether weights were set to zero before: by a plan, or more of them than training does."""
    weights = list(maskable(model).values())
    zeros = sum(int((w == 0).sum()) for w in weights)
    return bool(planned_masks(model)) or zeros > MASKED * sum(w.numel() for w in weights)


MASKED = 0.05
"""Share of weights that are zero in a network that was masked."""


def _without_data(objective: Objective) -> bool:
    return isinstance(objective.data, tuple) and not objective.data


def _inputs(dense: GroupedNetwork, objective: Objective, most: int) -> Iterator[Inputs]:
    """What goes into the network with each batch; noise like the example's values where there are no data."""
    if _without_data(objective):
        generator = torch.Generator().manual_seed(objective.seed)
        yield each(dense.inputs, lambda x: _noise(x, most, generator))
        return
    with observed(dense.model) as twin:
        for batch in objective.batches():
            yield _given(twin, suited_batch(twin, batch), objective)


class _Seen(Exception):
    """A network was called, and with what."""


def _given(model: nn.Module, batch: Batch, objective: Objective) -> Inputs:
    """What the objective's forward pass calls a network with.

    Raises:
        BadInput: something else than tensors.
    """

    def seen(_: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        raise _Seen(args, options)

    handle = model.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        objective.forward(model, batch)
    except _Seen as call:
        args, options = call.args
    else:
        raise BadInput(
            f"the forward pass does not call the network itself: nothing can be refitted; {spelled('repair', 'none')}"
        )
    finally:
        handle.remove()
    found: Inputs = dict(options) if options and not args else args
    values = list(found.values()) if isinstance(found, Mapping) else list(found)
    if (args and options) or not all(isinstance(x, Tensor) and x.dim() for x in values) or len({len(x) for x in values}) > 1:
        raise BadInput(f"a repair needs a network that takes tensors, all by place or all by name; {spelled('repair', 'none')}")
    return found


def _noise(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Values like those of an example: normal with its mean and deviation, or whole numbers that it has."""
    shape = (count, *x.shape[1:])
    if x.is_floating_point():
        return (torch.randn(shape, generator=generator) * float(x.std() if x.numel() > 1 else 1) + float(x.mean())).to(x)
    places = torch.randint(x.numel(), shape, generator=generator)
    return x.flatten()[places.to(x.device)]
