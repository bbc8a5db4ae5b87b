"""From one target sparsity to the sparsities of the pruning events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from compressor.errors import WrongUsage
from compressor.options import spelled
from compressor.settings import Stage

FINE_TUNED = 1 / 8
"""Share of the epochs that come after pruning a trained network: 10 of 80 (SNIP-it, appendix)."""


def exponential(sparsity: float, steps: int) -> tuple[float, ...]:
    """What remains shrinks by the same factor in each event: 1 - (1 - sparsity)^(i / steps) (SynFlow, algorithm 1)."""
    return (*(1 - (1 - sparsity) ** (i / steps) for i in range(1, steps)), sparsity)


def halving(sparsity: float, steps: int) -> tuple[float, ...]:
    """Half of the network first, then half of what remains each time (SNIP-it, algorithm 1).

    kappa_i = kappa - (kappa - 0.5) * 0.5**i for i = 0..steps, then kappa itself: `steps=5` gives 7 events. At or below 0.5 the
    formula would start at or above its target; there the first event is kappa / 2, and the rest is halved the same way.

    Args:
        sparsity: fraction removed at the end, in [0, 1).
        steps: the paper's s, at least 0.
    """
    first = 0.5 if sparsity > 0.5 else sparsity / 2
    return (*(sparsity - (sparsity - first) * 0.5**i for i in range(steps + 1)), sparsity)


def spread(events: Sequence[int], epochs: int) -> dict[int, tuple[int, ...]]:
    """Epoch -> numbers of the events, from 0, that come before it: portions evenly spread, the first before all epochs.

    Args:
        events: how many each portion has.
    Raises:
        WrongUsage: there are fewer epochs than portions.
    """
    if len(events) > epochs:
        raise WrongUsage(
            f"{spelled('portions', len(events))}: each is followed by an epoch at least, and there are {epochs}; give fewer, "
            "or more epochs"
        )
    found, first = {}, 0
    for number, count in enumerate(events):
        found[number * epochs // len(events)] = tuple(range(first, first + count))
        first += count
    return found


INTERVAL = 4
"""Epochs between events, as the SNIP-it authors' code has it."""


def placed(
    events: int, stage: Stage, epochs: int, interval: int | None = None, prune_at: int | None = None
) -> dict[int, tuple[int, ...]]:
    """Epoch -> numbers of the events, from 0, that come before it.

    Args:
        interval: of `during`, epochs between events, and before the first (algorithm 1's tau); 4 by default.
        prune_at: of `after`, the epoch before which all events come; 7/8 of the epochs by default.
    Raises:
        WrongUsage: the events do not fit into the epochs.
    """
    if stage not in get_args(Stage) or (interval is not None and interval < 1):
        raise WrongUsage(f"stage {stage!r} with interval {interval}: choose {', '.join(get_args(Stage))}, and at least 1")
    if interval is not None and stage != "during":
        raise WrongUsage(f"{spelled('interval')} is for {spelled('stage', 'during')}, the stage is {stage}")
    interval = INTERVAL if interval is None else interval
    everything = tuple(range(events))
    if prune_at is not None and stage != "after":
        raise WrongUsage(f"{spelled('prune_at')} is for {spelled('stage', 'after')}, the stage is {stage}")
    if stage == "before":
        return {0: everything}
    if stage == "after":
        at = epochs - max(epochs > 1, round(epochs * FINE_TUNED)) if prune_at is None else prune_at
        if not 0 <= at <= epochs:
            raise WrongUsage(f"{spelled('prune_at', at)}: there are {epochs} epochs")
        return {at: everything}
    if interval * events >= epochs:
        fewer = f"a smaller {spelled('interval')}, " if interval > 1 else ""
        raise WrongUsage(
            f"{events} events, one every {interval} epochs, take {interval * events} epochs; give more {spelled('epochs')}, "
            f"{fewer}or fewer of the method's steps"
        )
    return {interval * (number + 1): (number,) for number in everything}
