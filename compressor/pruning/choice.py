"""Which method, and which repair, suits a network: what it is decides, fresh or trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compressor.method import best_for, method_named
from compressor.model.check import check_weights
from compressor.model.origin import origin_of
from compressor.objective.calibrate import is_fresh
from compressor.objective.objective import Quality
from compressor.options import spelled
from compressor.pruning.facts import Fact, Note, note
from compressor.settings import Pruning, Repairing, State

REPAIRS: dict[State, Repairing] = {"fresh": "none", "trained": "least-squares"}
"""State -> the repair that the project's own study found best; a fresh network has nothing that could be lost."""

BEYOND = 6.0
"""Deviations from independent draws: a weight whose rows' norms vary by more was trained."""

ROWS = 16
"""A weight of fewer rows or columns tells nothing."""


@dataclass(frozen=True)
class Seen:
    """What a network is, and why it is taken for that: half a sentence."""

    state: State
    why: str


def state_of(model: nn.Module, said: State | None, quality: Callable[[], Quality | None] = lambda: None) -> Seen:
    """Whether a network was trained.

    Args:
        said: what the user says.
        quality: how well it does, asked for where nothing else decides.
    """
    origin = origin_of(model)
    if said is not None:
        return Seen(said, f"as {spelled('state', said)} says")
    if origin is not None and origin.trained:
        return Seen("trained", "as its checkpoint says")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if any(m.num_batches_tracked is not None and int(m.num_batches_tracked) > 0 for m in norms):
        return Seen("trained", "for its batch norms have seen data")
    if any(_varies(scale) for scale in _scales(model)):
        return Seen("trained", "for the scales of its norms differ")
    if is_fresh(model):
        return Seen("fresh", "for its batch norms never saw data")
    seen = quality()
    if seen is not None and seen.accuracy is not None and not seen.near_chance:
        return Seen("trained", f"for its accuracy is {seen.accuracy:.1%}")
    if any(_beyond_chance(w) > BEYOND for w in _weights(model)):
        return Seen("trained", "for its weights are not those of an initialisation")
    if origin is not None and origin.trained is False:
        return Seen("fresh", "as its checkpoint says")
    return Seen("fresh", "for its weights look like an initialisation's")


def chosen(
    model: nn.Module, settings: Pruning, data: bool, quality: Callable[[], Quality | None] = lambda: None,
    measurable: Callable[[], bool] = lambda: False,
) -> tuple[str, Pruning, Note]:  # fmt: skip
    """The method for a network, the settings with its repair, and the sentence that says so. Arguments as in `state_of`.

    From each layer of a trained network goes what it can spare as measured; where that cannot be measured, nodes are ranked by
    what they give for what they cost of the budget.

    Args:
        data: there are some.
        measurable: what goes into the network can be told from them.
    """
    check_weights(model)
    seen = state_of(model, settings.state, quality)
    method, repair = best_for(seen.state, data), REPAIRS[seen.state]
    found: dict[str, Any] = {} if settings.repair is not None else {"repair": repair}
    unit = settings.budget.unit if settings.budget is not None else "nodes"
    is_open = settings.per is None and settings.allocate is None and settings.sensitivity is None
    is_free = settings.per is None and settings.sensitivity is None and settings.allocate in (None, "global")
    if seen.state == "trained" and is_open and measurable():
        found["allocate"] = "sensitivity"
    elif seen.state == "trained" and is_free and unit != "nodes" and method_named(method).across_layers:
        found["per"] = unit
    settings = dataclasses.replace(settings, state=seen.state, **found)
    values = {"method": method, "per": found.get("per"), "allocate": settings.by_sensitivity, "repair": settings.repair}
    return method, settings, note(Fact.CHOSEN, state=seen.state, why=seen.why, **values)


def _scales(model: nn.Module) -> Iterator[Tensor]:
    """The scales of all norms."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and isinstance(weight, Tensor) and weight.dim() == 1 and len(weight) > 1:
            yield weight.detach()


def _varies(scale: Tensor) -> bool:
    return bool((scale != scale[0]).any())


def _weights(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and min(module.weight.shape[0], module.weight[0].numel()) >= ROWS:
            yield module.weight.detach().flatten(1)


def _beyond_chance(weight: Tensor) -> float:
    """By how many deviations the norms of rows, or of columns, vary more than those of independent draws of such entries."""
    squares = weight.double().square()
    tiny = torch.finfo(torch.float32).tiny
    alone = squares.std() / squares.mean().clamp_min(tiny)
    found = []
    for dim, sums in ((1, squares.sum(1)), (0, squares.sum(0))):
        drawn = float(alone) / math.sqrt(squares.shape[dim])
        varied = float(sums.std() / sums.mean().clamp_min(tiny))
        found.append((varied / max(drawn, tiny) - 1) * math.sqrt(2 * len(sums)))
    return max(found)
