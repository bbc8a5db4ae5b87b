"""As small as possible at a drop one can spare: budgets are tried, repaired or trained, and judged on data of their own.

What is lost is no monotone function of what is left: the search goes down a ladder until two budgets in a row lose too much,
and then halves the way between the smallest that does not and the next one below it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import BadInput, UnreachableSparsity, WrongUsage
from compressor.objective.objective import Objective
from compressor.objective.paired import Drop, drop, outcomes, samples_for
from compressor.options import spelled
from compressor.pruning.result import Result
from compressor.settings import Resource
from compressor.system.files import parsed, staged
from compressor.system.progress import Progress

SCHEMA = 1
RUNG = 0.7
"""Of the budget before it, each on the way down."""

NEAR = 0.95
"""The search ends where what loses too much has this share of the smallest budget that does not."""

HIGH = (0.85, 0.95)
"""Budgets tried where the first rungs lose too much."""

FEWEST = 1e-3
"""Budgets below are not tried."""


@dataclass(frozen=True)
class Step:
    """A budget that was tried.

    Attributes:
        keep: share of the resource that was asked to be left.
        left: share that is left; None where it cannot be reached.
        value: what the network does on the data that judge, in points.
        drop: from what the dense one does there, in points, with the paired interval's half width as `margin`.
        kept: the upper end of the interval is within what is allowed.
        seconds: that it took.
    """

    keep: float
    left: float | None
    value: float | None
    drop: float | None
    margin: float | None
    kept: bool
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class Search:
    """The path of a search.

    Attributes:
        max_drop: points that may be lost.
        unit: what is made small.
        metric: that judges; `dense` is its value for the dense network, in points.
        samples: of the data that judge, or batches, by a metric of the user's.
        higher_is_better: the metric's direction.
        steps: in the order in which they were tried.
        stopped: for time, before its end.
    """

    max_drop: float
    unit: Resource
    metric: str
    dense: float
    samples: int
    higher_is_better: bool = True
    steps: tuple[Step, ...] = ()
    stopped: bool = False

    @property
    def best(self) -> Step | None:
        """The smallest that loses no more than it may."""
        return min((step for step in self.steps if step.kept), key=lambda step: step.keep, default=None)

    @property
    def nearest(self) -> Step | None:
        """The one that loses least."""
        tried = [step for step in self.steps if step.drop is not None]
        return min(tried, key=lambda step: step.drop or 0.0, default=None)

    def following(self) -> float | None:
        """The budget to be tried next; None at the end."""
        rung, best = self._rung(), self.best
        if rung is not None:
            return rung
        tried = {step.keep for step in self.steps}
        if best is None:
            return next((keep for keep in HIGH if keep not in tried), None)
        below = max((keep for keep in tried if keep < best.keep), default=None)
        if below is None or below / best.keep >= NEAR:
            return None
        return round(math.sqrt(below * best.keep), 6)

    def _rung(self) -> float | None:
        """The next rung of the ladder; None where two in a row lost too much, or one cannot be reached."""
        tried = {step.keep: step for step in self.steps}
        keep, failed = RUNG, 0
        while keep >= FEWEST:
            step = tried.get(round(keep, 6))
            if step is None:
                return round(keep, 6)
            failed = 0 if step.kept else failed + 1
            if failed == 2 or step.left is None:
                return None
            keep *= RUNG
        return None


def smallest(
    dense: nn.Module,
    attempt: Callable[[float], Result],
    judge: Objective,
    max_drop: float,
    unit: Resource = "macs",
    *,
    folder: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Result, Search]:
    """The smallest network that does as well as the dense one but for a drop that one can spare.

    Args:
        attempt: from the share of the resource that is to be left to a result; UnreachableSparsity where it cannot be.
        judge: data that neither trained the network nor report how well it does; and what is right, or a metric.
        max_drop: points that may be lost: of a hundred for accuracy, else in the metric's own unit.
        folder: where each step is kept.
        resume: go on with the steps in the folder.
        identity: of what is searched: steps of another search are refused.
        minutes: no further step begins after them.
    Raises:
        BadInput: no budget that was tried loses so little; it names the nearest.
        WrongUsage: the folder holds another search.
    """
    before = outcomes(dense, judge)
    search = Search(max_drop, unit, before.name, before.mean, len(before.values), before.higher_is_better)
    search = _resumed(search, folder, resume, identity or {})
    held: dict[float, Result] = {}
    began = time.monotonic()
    while (keep := search.following()) is not None:
        if minutes is not None and search.steps and time.monotonic() - began > 60 * minutes:
            search = replace(search, stopped=True)
            break
        progress(f"trying {keep:.1%} of the {unit}", len(search.steps), 0)
        start = time.perf_counter()
        try:
            result = attempt(keep)
        except UnreachableSparsity as error:
            step = Step(keep, None, None, None, None, False, time.perf_counter() - start, str(error))
        else:
            after = outcomes(result.model, judge)
            lost: Drop = drop(before, after)
            spent = result.summary.budget
            left = keep if spent is None else spent.reached / spent.dense
            kept = lost.most <= max_drop
            step = Step(keep, left, after.mean, lost.points, lost.margin, kept, time.perf_counter() - start)
            if kept and keep < min(held, default=2.0):
                held = {keep: result}  # that of the smallest so far; a network may be large
        search = replace(search, steps=(*search.steps, step))
        _keep(search, folder, identity or {})
    best = search.best
    if best is None:
        raise BadInput(_too_much(search))
    return held[best.keep] if best.keep in held else attempt(best.keep), search


def _too_much(search: Search) -> str:
    near = search.nearest
    if near is None or near.drop is None or near.margin is None:
        return f"no budget of {search.unit} could be tried: {search.steps[-1].why if search.steps else 'there was no time'}"
    lost = f"{near.drop:.2f} ± {near.margin:.2f} points at {near.keep:.0%} of the {search.unit}"
    more = samples_for(Drop(near.drop, near.margin), search.samples, search.max_drop)
    if near.drop < search.max_drop:
        way = f"{search.samples:,} samples leave the interval too wide; give {spelled('val_data')} of {more:,} or more, or "
    else:
        way = "more of its accuracy comes back with training; or "
    return (
        f"no network that was tried loses at most {search.max_drop:g} points of {search.metric}: the nearest lost {lost}; {way}"
        f"a larger {spelled('max_drop')}"
    )


STEPS = "search.json"


def _resumed(search: Search, folder: Path | None, resume: bool, identity: Mapping[str, Any]) -> Search:
    """The search with the steps that its folder has."""
    if folder is None:
        return search
    path = folder / STEPS
    if not path.exists():
        return search
    if not resume:
        raise WrongUsage(
            f"{folder}: holds a search; {spelled('resume', True)} goes on with it, or name another {spelled('folder')}"
        )
    now = {**identity, "unit": search.unit, "metric": search.metric, "samples": search.samples}
    held = parsed(path, json.loads)
    try:
        steps = tuple(Step(**step) for step in held["search"]["steps"])
        its = {**held["identity"], **{name: held["search"][name] for name in ("unit", "metric", "samples")}}
        allowed = float(held["search"]["max_drop"])
        if held["schema"] != SCHEMA:
            raise ValueError("another schema")
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: no search that can be gone on with") from error
    if other := [name for name in {**its, **now} if its.get(name) != now.get(name)]:
        raise WrongUsage(f"{folder}: holds a search that differs in {', '.join(other)}; name another {spelled('folder')}")
    if allowed != search.max_drop:  # its steps are as good for another limit
        steps = tuple(replace(s, kept=s.drop is not None and s.drop + (s.margin or 0) <= search.max_drop) for s in steps)
    return replace(search, steps=steps)


def _keep(search: Search, folder: Path | None, identity: Mapping[str, Any]) -> None:
    if folder is None:
        return
    folder.mkdir(exist_ok=True)
    with staged(folder / STEPS) as [file]:
        text = json.dumps({"schema": SCHEMA, "identity": dict(identity), "search": asdict(search)}, indent=1)
        file.write_text(text, encoding="utf-8")
