"""Repair as a step of a pruning: which samples it sees, and what it is given."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from compressor.coupling.label_flow import by_every_name
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.model.origin import planned_masks
from compressor.model.weights import maskable
from compressor.options import spelled
from compressor.pruning.events import Events, PruningState
from compressor.pruning.unlabelled import unlabelled, without_data
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
    noise, most = without_data(objective), settings.repair_samples
    is_masked = _is_masked(before.model)
    how: Repairing = "norms" if is_masked else settings.repair
    try:
        model, record = repaired(
            before.model, state.model, stay, unlabelled(before, objective, most), how, most, noise=noise, seed=objective.seed,
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
