"""Scores and a target give the nodes that stay: exact counts, stable ties, a floor per group."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import UnreachableSparsity, WrongUsage
from compressor.types import Group, Scores, Structure


@dataclass(frozen=True)
class Selection:
    """What one event keeps.

    Attributes:
        kept: group -> sorted indices `(kept,)`.
        reached: node sparsity that results.
        tie: the cut goes through nodes of equal score.
    """

    kept: dict[str, Tensor]
    reached: float
    tie: bool


def check_sparsity(sparsity: float) -> None:
    """Refuse what is no fraction in [0, 1).

    Raises:
        WrongUsage: with the likely intention.
    """
    if 1 < sparsity < 100:
        raise WrongUsage(f"sparsity {sparsity:g} is a fraction removed, in [0, 1): did you mean {sparsity / 100:g}?")
    if not 0 <= sparsity < 1:
        raise WrongUsage(f"sparsity {sparsity:g} is not in [0, 1): it is the fraction removed, such as 0.93")


def highest_reachable(structure: Structure, floor: int = 1) -> float:
    """The node sparsity at which every prunable group is at its floor."""
    removable = sum(max(0, g.width - floor) * g.multiplicity for g in structure.prunable)
    return 1 - (structure.nodes - removable) / structure.total_nodes


def check_reachable(structure: Structure, sparsity: float, floor: int = 1) -> None:
    """Refuse a target that the floors and frozen layers forbid.

    Raises:
        UnreachableSparsity: the message gives the highest reachable.
    """
    best = highest_reachable(structure, floor)
    if round(sparsity * structure.total_nodes) > round(best * structure.total_nodes):
        frozen = structure.nodes - sum(g.width * g.multiplicity for g in structure.prunable)
        because = f"each of {len(structure.prunable)} groups keeps {floor} of its nodes"
        because += f" and {frozen} nodes are frozen" if frozen else ""
        raise UnreachableSparsity(
            f"sparsity {sparsity:g} cannot be reached: {because}; the highest is {math.floor(best * 1e6) / 1e6:g}"
        )


def select(scores: Scores, structure: Structure, sparsity: float, *, floor: int = 1) -> Selection:
    """Keep the best-scored nodes so that `round(sparsity * total_nodes)` are removed.

    A node counts once for each layer output that goes with it, so the count can miss by less than the largest multiplicity;
    the nearest is taken. The order of removal does not depend on the target, so a higher sparsity keeps a subset. Equal scores
    (dead nodes, zero-initialised branches: all exactly 0) are removed where the largest share of the group is still kept, and
    within a group from the end: a threshold would take all of them or none.

    Args:
        scores: node scores `(width,)` per prunable group; higher = keep.
        structure: of the network as it is now; nodes removed by earlier events count.
        sparsity: fraction of the original nodes removed, in [0, 1).
        floor: nodes that every group keeps, so that no layer disappears.
    Raises:
        UnreachableSparsity: the floors keep too much; the message gives the highest reachable.
    """
    scores.covers(structure)
    check_sparsity(sparsity)
    check_reachable(structure, sparsity, floor)
    wanted = round(sparsity * structure.total_nodes) - (structure.total_nodes - structure.nodes)
    removed, last, first_left = 0, None, None
    gone: dict[str, list[int]] = {g.name: [] for g in structure.prunable}
    for score, group, node in _removal_order(scores, structure, floor):
        after = removed + group.multiplicity
        if abs(after - wanted) >= abs(removed - wanted):
            first_left = score
            break
        gone[group.name].append(node)
        removed, last = after, score
    kept = {}
    for group in structure.prunable:
        stays = torch.ones(group.width, dtype=torch.bool)
        stays[gone[group.name]] = False
        kept[group.name] = stays.nonzero().flatten()
    reached = 1 - (structure.nodes - removed) / structure.total_nodes
    return Selection(kept, reached, tie=last is not None and last == first_left)


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
