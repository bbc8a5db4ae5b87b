"""What networks are judged by, beside the loss: those that have a name, and those of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compressor.errors import BadInput, CompressError, WrongUsage, first_line
from compressor.model.observe import tensors_in
from compressor.objective.batches import Batch, size_of
from compressor.objective.losses import IGNORED, cross_entropy
from compressor.options import spelled
from compressor.system.user_code import object_named


@dataclass(frozen=True)
class Metric:
    """A number for a batch, averaged over the samples.

    Attributes:
        name: for tables.
        of: (outputs of the network, batch) -> the batch's mean.
        higher_is_better: its direction.
        weight: (outputs, batch) -> what the batch counts for; its samples by default.
        finish: what becomes of the average.
        each: (outputs, batch) -> which labels are right, as booleans `(labels,)`, of a metric that is their share.
    """

    name: str
    of: Callable[[Any, Batch], Any]
    higher_is_better: bool = True
    weight: Callable[[Any, Batch], float] = lambda _, batch: size_of(batch)
    finish: Callable[[float], float] = float
    each: Callable[[Any, Batch], Tensor] | None = None

    def on(self, outputs: Any, batch: Batch) -> tuple[float, float]:
        """A batch's mean times what it counts for, and that.

        Raises:
            BadInput: it is no finite number.
        """
        try:
            value, weight = self.of(outputs, batch), self.weight(outputs, batch)
        except CompressError:
            raise
        except (Exception, SystemExit) as error:  # code of the user's own may raise anything, or even exit
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise BadInput(f"the metric {self.name} does not fit the network's outputs and the data ({reason})") from error
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:40]
            raise BadInput(f"the metric {self.name} must be one finite number for each batch, not {got}")
        return weight * value, weight


@dataclass(frozen=True)
class Judged:
    """What a metric came to on some data."""

    name: str
    value: float
    higher_is_better: bool


def _labels(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits `(batch, classes, ...)` and labels `(batch, ...)`."""
    found = list(tensors_in(outputs))
    target = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not found or not isinstance(target, Tensor) or target.is_floating_point() or found[0].dim() != target.dim() + 1:
        raise BadInput(f"the metric needs logits and labels; give one of your own: {spelled('metric', 'file.py:function')}")
    return found[0], target


def _counted(outputs: Any, batch: Batch) -> float:
    return max(1, int((_labels(outputs, batch)[1] != IGNORED).sum()))


def _right(outputs: Any, batch: Batch, places: int) -> Tensor:
    """Which labels are among the highest logits of their place."""
    logits, target = _labels(outputs, batch)
    best = logits.topk(min(places, logits.shape[1]), 1).indices
    return (best == target.unsqueeze(1)).any(1)[target != IGNORED]


def _share(name: str, places: int) -> Metric:
    """The share of labels that are among so many highest logits."""

    def each(outputs: Any, batch: Batch) -> Tensor:
        return _right(outputs, batch, places)

    return Metric(name, lambda o, batch: float(each(o, batch).sum()) / _counted(o, batch), weight=_counted, each=each)


METRICS = {
    "accuracy": _share("accuracy", 1),
    "top5": _share("top5", 5),
    "perplexity": Metric("perplexity", lambda o, batch: cross_entropy(_labels(o, batch)[0], batch), False, _counted, math.exp),
}


def metric_named(metric: str | Metric | Callable[[Any, Batch], Any] | None) -> Metric | None:
    """A metric by its name on the command line, `module:function` or `file.py:function`, or a callable of (outputs, batch).

    Of a function, higher is better, unless its attribute `higher_is_better` is false.

    Raises:
        WrongUsage: no metric has that name.
    """
    if metric is None or isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric in METRICS:
            return METRICS[metric]
        if ":" not in metric:
            raise WrongUsage(f"no metric {metric!r}: choose {', '.join(METRICS)}, or name a function as file.py:function")
        named, metric = metric, object_named(metric, "metric")
        if isinstance(metric, Metric):
            return metric
        if not callable(metric):
            raise WrongUsage(f"{spelled('metric', named)}: not a function of (outputs, batch)")
    name = getattr(metric, "__name__", type(metric).__name__)
    return Metric(name, metric, bool(getattr(metric, "higher_is_better", True)))


def measured(metric: Metric, total: float, weight: float) -> Judged:
    """What the sums over all batches come to.

    Raises:
        BadInput: that is no finite number.
    """
    try:
        value = metric.finish(total / weight)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise BadInput(f"the metric {metric.name} is {value}")
    return Judged(metric.name, value, metric.higher_is_better)
