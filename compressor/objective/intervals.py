"""Half the width of 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

NORMAL = 1.96
"""Deviations to either side that hold 95 % of a normal distribution."""


def normal_interval(values: Sequence[float]) -> float | None:
    """1.96 sigma / sqrt(n), half the width of the interval that the papers print; None for a single value."""
    return NORMAL * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval by Student's t, which is right for few values; None for a single one."""
    from scipy import stats  # takes a second

    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
