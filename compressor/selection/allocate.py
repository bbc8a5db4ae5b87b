"""How much goes from which layer, apart from which nodes: scores that are cut as an allocation wants it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from compressor.selection.budget import Meter
from compressor.selection.select import per_part
from compressor.types.curves import Curve
from compressor.types.scores import Scores
from compressor.types.structure import Group, Structure

BINS = 4096
"""Steps in which a budget is counted; nodes, and whatever else is fewer, are counted one by one."""

TURNS = 12
"""Times that the split is found anew: what a node costs depends on the widths of other layers."""

OVER = 1.02
"""Times the budget that a split may need: the cut makes it exact."""


def by_kind(scores: Scores, structure: Structure) -> Scores:
    """The scores as places among all nodes of groups of one kind, so that each kind loses the same share.

    A kind is what torch-pruning calls isomorphic: groups whose nodes are made, passed on and read by tensors of as many
    dimensions, in as many places.
    """
    kinds: dict[tuple[object, ...], list[Group]] = {}
    for group in structure.prunable:
        kind = tuple(sorted((s.role, len(structure.shapes.get(s.tensor, ())), s.dim) for s in group.slices))
        kinds.setdefault(kind, []).append(group)
    values: dict[str, Tensor] = {}
    for groups in kinds.values():
        joined = Scores({"all": torch.cat([scores.values[g.name] for g in groups])})
        parts = per_part(joined).values["all"].split([g.width for g in groups])
        values |= {g.name: part for g, part in zip(groups, parts, strict=True)}
    return replace(scores, values=values)


def by_curves(
    scores: Scores, structure: Structure, curves: Mapping[str, Curve], meter: Meter, share: float, floor: int
) -> Scores:
    """The scores as places before or behind the cut that loses least, so that a cut of all at one place is that split.

    Args:
        meter: of what the network needs now; it stays as it is.
        share: of its total that is to be gone.
    """
    widths = cheapest(curves, structure, meter, share, floor)
    values = {}
    for group in structure.prunable:
        places = per_part(Scores({"one": scores.values[group.name]})).values["one"]  # (rank + 1/2) / width
        values[group.name] = places - 1 + widths[group.name] / group.width
    return replace(scores, values=values)


def cheapest(curves: Mapping[str, Curve], structure: Structure, meter: Meter, share: float, floor: int) -> dict[str, int]:
    """Group -> the width at which all together lose least, as their curves add up, for a share that is gone.

    A dynamic programme over the groups. What a node costs is taken at the widths that the turn before has found, for a layer's
    multiply-adds depend on what is in front of it and on what it makes.
    """
    groups = structure.prunable
    wanted = meter.wanted(share)
    now = {g.name: g.width for g in groups}
    best: tuple[bool, float, dict[str, int]] | None = None
    for _ in range(TURNS):
        there = _at(now, structure, meter)
        prices = [max(0.0, there.price(g)) for g in groups]
        saved = [price * (g.width - now[g.name]) for price, g in zip(prices, groups, strict=True)]
        found = _split(groups, prices, curves, sum(saved) + there.amount - wanted, floor)
        lost = sum(curves[name].at([width])[0] for name, width in found.items())
        outcome = (_at(found, structure, meter).amount > OVER * wanted, lost, found)
        best = outcome if best is None or outcome[:2] < best[:2] else best
        if found == now:
            break
        now = {name: (width + found[name]) // 2 if abs(width - found[name]) > 1 else found[name] for name, width in now.items()}
    assert best is not None
    return best[2]


def _at(widths: Mapping[str, int], structure: Structure, meter: Meter) -> Meter:
    """The meter of a network of these widths."""
    there = copy.deepcopy(meter)
    for group in structure.prunable:
        there.remove(group, group.width - widths[group.name])
    return there


def _split(
    groups: Sequence[Group], prices: Sequence[float], curves: Mapping[str, Curve], needed: float, floor: int
) -> dict[str, int]:
    """The widths that lose least of all that save what is needed; the narrowest, where none does."""
    if needed <= 0:
        return {g.name: g.width for g in groups}
    whole = needed <= BINS and all(price == round(price) for price in prices)
    bins = math.ceil(needed) if whole else BINS
    per_bin = 1.0 if whole else needed / BINS
    least = np.full(bins + 1, np.inf)  # by what is saved, at least
    least[0] = 0.0
    chosen: list[tuple[list[int], np.ndarray, np.ndarray]] = []
    for group, price in zip(groups, prices, strict=True):
        options = list(range(group.width, min(floor, group.width) - 1, -1))
        new, option, came = np.full(bins + 1, np.inf), np.zeros(bins + 1, int), np.zeros(bins + 1, int)
        for number, (width, loss) in enumerate(zip(options, curves[group.name].at(options), strict=True)):
            step = min(bins, int(price * (group.width - width) / per_bin + 1e-9))
            _take(new[step:], option[step:], came[step:], least[: bins + 1 - step] + loss, number, np.arange(bins + 1 - step))
            most = bins - step + int(least[bins - step :].argmin())  # what saves more than is needed saves enough
            _take(new[-1:], option[-1:], came[-1:], least[most : most + 1] + loss, number, np.array([most]))
        least = new
        chosen.append((options, option, came))
    if not math.isfinite(least[bins]):
        return {g.name: min(floor, g.width) for g in groups}
    place, found = bins, {}
    for group, (options, option, came) in zip(reversed(groups), reversed(chosen), strict=True):
        found[group.name], place = options[option[place]], int(came[place])
    return found


def _take(new: np.ndarray, option: np.ndarray, came: np.ndarray, found: np.ndarray, number: int, places: np.ndarray) -> None:
    """Take, in place, what is better."""
    better = found < new
    new[better], option[better], came[better] = found[better], number, places[better]
