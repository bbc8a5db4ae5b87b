"""Timing in pairs: A B A B ..., so that a drifting machine slows both alike. A timer takes a callable."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(job: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def paired(a: Callable[[], object], b: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of `rounds` calls of each, in turn, in the order they ran."""
    pairs = [(seconds(a), seconds(b)) for _ in range(rounds)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third
