"""Timing in turn: A B A B ..., so that a drifting machine slows all alike. A timer takes a callable and knows no network."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from compressor.errors import CompressError, first_line

Job = Callable[[], object]
Clock = Callable[[Job, int], float]
"""(job, calls) -> seconds of one call, as the mean of that many in a row."""

LEAST_SECONDS = 0.02
"""One value covers at least this long: shorter jobs are called several times for it."""
MOST_CALLS = 1000


def cpu_clock(timer: Callable[[], float] = time.perf_counter) -> Clock:
    """Wall-clock seconds by `torch.utils.benchmark`, with as many threads as torch uses now."""
    import torch  # here, as pages of what was measured are made without it
    from torch.utils import benchmark

    def clock(job: Job, calls: int) -> float:
        threads = torch.get_num_threads()  # the library's own default would be one
        timed = benchmark.Timer("job()", globals={"job": job}, timer=timer, num_threads=threads).timeit(calls)
        return float(timed.raw_times[0]) / calls

    return clock


def cuda_clock(device: str) -> Clock:
    """Seconds between two CUDA events around the calls, on the device's current stream."""
    import torch

    def clock(job: Job, calls: int) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                job()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000 / calls

    return clock


def clock_for(device: str) -> Clock:
    """The clock of a device."""
    return cuda_clock(device) if device.startswith("cuda") else cpu_clock()


def in_turn(jobs: Mapping[str, Job], rounds: int, clock: Clock) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of one call of each job, `rounds` values each, measured in turn after a warm-up.

    Returns:
        Seconds by job, and the reason for every job that failed: out of memory, or an error of the network's; its values so
        far are dropped, the others go on.
    """
    values: dict[str, list[float]] = {name: [] for name in jobs}
    calls: dict[str, int] = {}
    failed: dict[str, str] = {}
    for number in range(-1, rounds):
        for name, job in jobs.items():
            if name in failed:
                continue
            if number < 0:  # the first call compiles, allocates and fills caches
                _, reason = attempt(job)
                once, reason = (None, reason) if reason else attempt(partial(clock, job, 1))
                calls[name] = min(MOST_CALLS, max(1, math.ceil(LEAST_SECONDS / max(once or 0.0, 1e-9))))
            else:
                value, reason = attempt(partial(clock, job, calls[name]))
                if value is not None:
                    values[name].append(value)
            if reason:
                failed[name] = reason
                del values[name]
    return values, failed


Answer = TypeVar("Answer")


def attempt(job: Callable[[], Answer]) -> tuple[Answer | None, str | None]:
    """What a job returns, or in few words why it failed; errors of our own pass through."""
    try:
        return job(), None
    except CompressError:
        raise
    except Exception as error:  # noqa: BLE001 - the network's code, the allocator and the runtimes raise whatever they like
        return None, _why(error)


class OutOfMemory(str):
    """A reason that is told from others by its kind, whatever it says."""


OUT_OF_MEMORY = OutOfMemory("does not fit in memory")


def _why(error: Exception) -> str:
    """In few words; memory runs out under many names."""
    text = str(error).lower()
    named = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "failed to allocate", "bad allocation")
    if isinstance(error, MemoryError) or any(words in text for words in named):
        return OUT_OF_MEMORY
    return first_line(error)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third
