"""How much worse one network does than another on the same samples, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.errors import BadInput
from compressor.model.observe import observed
from compressor.objective.batches import suited_batch
from compressor.objective.intervals import NORMAL, t_interval
from compressor.objective.objective import Objective
from compressor.options import spelled

SHARES = ("accuracy", "top5")
"""Metrics that are shares: their drop is in points of a hundred."""


FEWEST = 8
"""Batches whose values have an interval: three that happen to agree would show anything."""


@dataclass(frozen=True)
class Outcomes:
    """What a network does on some data, piece by piece: 1 or 0 for each sample, or a metric's value for each batch.

    Attributes:
        values: `(pieces,)`, float64.
        weights: what each counts for.
        name: of what is counted.
        higher_is_better: its direction.
        single: a piece is a sample.
    """

    values: Tensor
    weights: Tensor
    name: str
    higher_is_better: bool
    single: bool

    @property
    def scale(self) -> float:
        """Points in one."""
        return 100.0 if self.name in SHARES else 1.0

    @property
    def mean(self) -> float:
        """Over all, in points."""
        return self.scale * float((self.values * self.weights).sum() / self.weights.sum())


@dataclass(frozen=True)
class Drop:
    """How much worse a network does than another one, in points.

    Attributes:
        points: positive where it is worse.
        margin: half the width of the paired 95 % interval.
    """

    points: float
    margin: float

    @property
    def most(self) -> float:
        """The upper end of the interval."""
        return self.points + self.margin


def outcomes(model: nn.Module, objective: Objective) -> Outcomes:
    """What a network does on each sample, or by a metric of the user's on each batch.

    Raises:
        BadInput: the data have no labels, and no metric is named.
    """
    values: list[Tensor] = []
    weights: list[Tensor] = []
    metric = objective.metric
    each = objective.right if metric is None else metric.each
    with observed(model) as twin, torch.no_grad():
        for batch in objective.batches():
            batch = suited_batch(twin, batch)
            found = objective.forward(twin, batch)
            if metric is not None and each is None:
                total, weight = metric.on(found, batch)
                values.append(torch.tensor([metric.finish(total / weight)], dtype=torch.float64))
                weights.append(torch.tensor([weight], dtype=torch.float64))
                continue
            right = None if each is None else each(found, batch)
            if right is None:
                raise BadInput(
                    f"nothing says how well the network does on these data: they have no label for each sample; name "
                    f"{spelled('metric', 'file.py:function')}"
                )
            values.append(right.double().cpu())
            weights.append(torch.ones(len(right), dtype=torch.float64))
    name, higher = ("accuracy", True) if metric is None else (metric.name, metric.higher_is_better)
    return Outcomes(torch.cat(values), torch.cat(weights), name, higher, each is not None)


def drop(dense: Outcomes, small: Outcomes) -> Drop:
    """How much worse the second does, piece by piece.

    Raises:
        BadInput: there are too few pieces for an interval.
    """
    lost = (dense.values - small.values) * dense.scale * (1 if dense.higher_is_better else -1)
    if dense.single:
        return Drop(float(lost.mean()), dense.scale * _margin(int((lost > 0).sum()), int((lost < 0).sum()), len(lost)))
    shares = dense.weights / dense.weights.mean()
    points = float((lost * shares).mean())
    margin = t_interval([float(value) for value in (lost - points) * shares])
    if margin is None or len(lost) < FEWEST:
        raise BadInput(f"{len(lost)} batches are too few for an interval: give {FEWEST} or more, smaller ones or more samples")
    return Drop(points, margin)


def _margin(worse: int, better: int, pairs: int) -> float:
    """Half the width of the 95 % interval of a difference of paired shares (Bonett & Price 2012): two more pairs, that differ.

    Unlike the plain one, it is wide enough where few pairs differ, or none.
    """
    a, b = (worse + 1) / (pairs + 2), (better + 1) / (pairs + 2)
    return NORMAL * math.sqrt((a + b - (a - b) ** 2) / (pairs + 2))


def samples_for(drop: Drop, seen: int, allowed: float) -> int:
    """About how many samples it would take for the interval to lie within what is allowed; for messages."""
    room = max(allowed - drop.points, 1e-9)
    return math.ceil(seen * (drop.margin / room) ** 2)
