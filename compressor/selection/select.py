"""Scores and a target give the nodes that stay: exact counts, stable ties, a floor per group."""

from __future__ import annotations

import copy
import heapq
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.errors import UnreachableSparsity
from compressor.selection.budget import Meter
from compressor.settings import Scope, check_sparsity
from compressor.types.scores import Scores
from compressor.types.structure import Group, Structure, total_by_layer


@dataclass(frozen=True)
class Selection:
    """What one event keeps.

    Attributes:
        kept: group -> sorted indices `(kept,)`.
        reached: share removed that results, of what was counted (nodes by default).
        tie: the cut goes through nodes of equal score.
    """

    kept: dict[str, Tensor]
    reached: float
    tie: bool


def highest_reachable(structure: Structure, floor: int = 1, *, round_to: int = 1, meter: Meter | None = None) -> float:
    """The share removed (node sparsity by default) at which every prunable group is at its narrowest."""
    meter = copy.deepcopy(meter) if meter else Meter(structure)
    for group in structure.prunable:
        meter.remove(group, group.width - rounded(min(floor, group.width), group.width, floor, round_to))
    return 1 - meter.amount / meter.total


def check_reachable(
    structure: Structure, target: float, floor: int = 1, *, round_to: int = 1, meter: Meter | None = None
) -> None:
    """Refuse a target that the floors and frozen layers forbid.

    Raises:
        UnreachableSparsity: the message gives the highest reachable.
    """
    best = highest_reachable(structure, floor, round_to=round_to, meter=meter)
    total = meter.total if meter else structure.total_nodes
    if round(target * total) <= round(best * total):
        return
    frozen = structure.nodes - sum(g.width * g.multiplicity for g in structure.prunable)
    because = f"each of {len(structure.prunable)} groups keeps {rounded(floor, sys.maxsize, floor, round_to)} of its nodes"
    because += f" and {frozen} nodes are frozen" if frozen else ""
    because += _most_of_it(structure)
    if meter is None or meter.unit == "nodes":
        what, bound = f"sparsity {target:g}", f"the highest is {math.floor(best * 1e6) / 1e6:g}"
    else:
        what = f"{(1 - target) * total:,.0f} {meter.unit} ({1 - target:.4g} of the dense network's)"
        bound = f"the lowest is {math.ceil((1 - best) * total):,} ({math.ceil((1 - best) * 1e6) / 1e6:g})"
    raise UnreachableSparsity(f"{what} cannot be reached: {because}; {bound}")


def _most_of_it(structure: Structure) -> str:
    """What holds most of the nodes that must stay: why a layer is frozen, or a group whose nodes are many layers' at once."""
    held: Counter[str] = Counter()
    counted = total_by_layer(structure)
    for group in structure.groups:
        layers = [name for name in group.makers if name in counted]
        if group.frozen is not None and layers:
            reason = group.frozen if group.frozen.startswith(layers[0]) else f"{layers[0]}: {group.frozen}"
            held[reason] += group.width * group.multiplicity
        elif group.frozen is None and len(layers) > 1:
            others = f"{len(layers) - 1} other layers, such as {layers[-1]}"
            held[f"a node of {layers[0]} goes with those of {others}"] += group.multiplicity
    return f" ({held.most_common(1)[0][0]})" if held else ""


def select(
    scores: Scores, structure: Structure, target: float, *, floor: int = 1, round_to: int = 1, meter: Meter | None = None
) -> Selection:
    """Keep the best-scored nodes so that a share `target` of what the meter counts is removed, or as near as one step allows.

    A node counts once for each layer output that goes with it, so the count can miss by less than the largest multiplicity;
    the nearest is taken. The order of removal does not depend on the target, so a higher sparsity keeps a subset. Equal scores
    (dead nodes, zero-initialised branches: all exactly 0) are removed where the largest share of the group is still kept, and
    within a group from the end: a threshold would take all of them or none.

    Args:
        scores: node scores `(width,)` per prunable group; higher = keep.
        structure: of the network as it is now; what earlier events removed counts.
        target: share removed of what the meter counts in the original network, in [0, 1); of the nodes by default.
        floor: nodes that every group keeps, so that no layer disappears.
        round_to: widths go to the nearest multiple of this, and the cut moves so that the target still holds; groups that are
            narrower are left alone.
        meter: what is counted; it is used up.
    Raises:
        UnreachableSparsity: the floors keep too much; the message gives the highest reachable.
    """
    scores.covers(structure)
    check_sparsity(target)
    check_reachable(structure, target, floor, round_to=round_to, meter=meter)
    meter = meter or Meter(structure)
    wanted = meter.wanted(target)
    order: list[tuple[float, str]] = []
    left = {g.name: g.width for g in structure.prunable}
    widths = dict(left)
    steps, off, best = 0, abs(meter.amount - wanted), dict(widths)
    reached = meter.amount
    for score, group, _ in (removal := list(_removal_order(scores, structure, floor))):
        order.append((score, group.name))
        left[group.name] -= 1
        width = rounded(left[group.name], group.width, floor, round_to)
        if width == widths[group.name]:
            continue
        meter.remove(group, widths[group.name] - width)
        widths[group.name] = width
        if abs(meter.amount - wanted) < off:
            steps, off, best, reached = len(order), abs(meter.amount - wanted), dict(widths), meter.amount
        elif meter.amount <= wanted:
            break
    queues: dict[str, list[tuple[float, int]]] = {g.name: [] for g in structure.prunable}
    for score, group, node in removal:
        queues[group.name].append((score, node))
    kept = {}
    for group in structure.prunable:
        stays = torch.ones(group.width, dtype=torch.bool)
        stays[[node for _, node in queues[group.name][: group.width - best[group.name]]]] = False
        kept[group.name] = stays.nonzero().flatten()
    tie = 0 < steps < len(removal) and removal[steps - 1][0] == removal[steps][0]
    if round_to > 1:
        tie = any(_cut_in_tie(queues[g.name], g.width - best[g.name]) for g in structure.prunable)
    return Selection(kept, 1 - reached / meter.total, tie)


def select_weights(scores: Scores, kept: Mapping[str, Tensor], total: int, target: float) -> tuple[dict[str, Tensor], bool]:
    """Keep the best-scored weights so that exactly `round(target * total)` of all are gone.

    Of equal scores those at the end go first, in the order of the tensors and within them.

    Args:
        scores: of unit `weight`, of the weights that may lose entries; those that are gone already are not looked at.
        kept: weight -> booleans, what is there now; also of weights that stay whole.
        total: entries of all weights in the dense network.
        target: weight sparsity, in [0, 1).
    Returns:
        weight -> booleans, and whether the cut went through equal scores.
    Raises:
        UnreachableSparsity: the weights that may lose entries have too few.
    """
    check_sparsity(target)
    scored = {name: kept[name] for name in scores.values}
    there = {name: int(mask.sum()) for name, mask in kept.items()}
    free = sum(there[name] for name in scored)
    removed = round(target * total) - (total - sum(there.values()))
    if removed > free:
        best = (total - sum(there.values()) + free) / total
        raise UnreachableSparsity(
            f"sparsity {target:g} of the weights cannot be reached: {sum(there.values()) - free} stay; the highest is {best:g}"
        )
    if removed <= 0:
        return dict(kept), False
    flat = torch.cat([scores.values[name][mask] for name, mask in scored.items()])
    cut = flat.kthvalue(removed).values
    stays = flat > cut
    equal = (flat == cut).nonzero().flatten()
    stay_of_equal = len(flat) - removed - int(stays.sum())
    stays[equal[:stay_of_equal]] = True
    new = dict(kept)
    for (name, mask), part in zip(scored.items(), stays.split([there[name] for name in scored]), strict=True):
        new[name] = mask.clone()
        new[name][mask] = part
    return new, stay_of_equal > 0


def per_part(scores: Scores) -> Scores:
    """The scores as places `(rank + 1/2) / size` within their own group or weight, so that a cut takes the same share of each.

    Equal scores take their places from the end.
    """
    return replace(scores, values={name: _places(value) for name, value in scores.values.items()})


def within(scope: Scope, scores: Scores) -> Scores:
    """The scores as they are, or as places within each layer, so that each loses the same share."""
    return scores if scope == "global" else per_part(scores)


def _places(values: Tensor) -> Tensor:
    flat = values.flatten()
    order = flat.flip(0).argsort(stable=True)  # of equal ones, the last comes first
    places = torch.empty(len(flat), dtype=torch.float64)
    places[len(flat) - 1 - order] = (torch.arange(len(flat), dtype=torch.float64) + 0.5) / len(flat)
    return places.reshape(values.shape)


def _cut_in_tie(queue: list[tuple[float, int]], cut: int) -> bool:
    return 0 < cut < len(queue) and queue[cut - 1][0] == queue[cut][0]


def rounded(left: int, width: int, floor: int, multiple: int) -> int:
    """The multiple nearest to `left`, the lower of two, or all of `width` where that is nearer; never below the floor, or zero.

    Few nodes go to a multiple of the half, down to 4: eight in place of three would make a narrow layer several times as large.
    """
    if multiple == 1 or width < multiple:
        return left
    if multiple >= 2 * NARROWEST and multiple % 2 == 0 and left <= 0.75 * multiple:
        return rounded(left, width, floor, multiple // 2)
    least = max(multiple, -(-floor // multiple) * multiple)
    nearest = min(max(least, (left + (multiple - 1) // 2) // multiple * multiple), width // multiple * multiple)
    return width if width < least or abs(width - left) < abs(nearest - left) else nearest


NARROWEST = 4
"""Nodes below which no rounding goes: ONNX Runtime's fast layout wants multiples of 4."""


def _removal_order(scores: Scores, structure: Structure, floor: int) -> Iterator[tuple[float, Group, int]]:
    """Nodes that may go, the first to go first: by score, then by the share of the group still kept, then from the end."""
    groups = structure.prunable
    values = [scores.values[g.name].tolist() for g in groups]
    queues = [[-n for _, n in sorted((score, -n) for n, score in enumerate(v))] for v in values]
    gone = [0] * len(groups)

    def lowest(n: int) -> tuple[float, float, int]:
        return values[n][queues[n][gone[n]]], gone[n] / groups[n].width, n

    heap = [lowest(n) for n, group in enumerate(groups) if group.width > floor]
    heapq.heapify(heap)
    while heap:
        score, _, n = heapq.heappop(heap)
        yield score, groups[n], queues[n][gone[n]]
        gone[n] += 1
        if groups[n].width - gone[n] > floor:
            heapq.heappush(heap, lowest(n))
