"""The timer, with a clock that does what it is told, and with the real one."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from compressor.benchmarks.measure.latency import OUT_OF_MEMORY, attempt, cpu_clock, cuda_clock, in_turn, quartiles
from compressor.errors import BadInput


class FakeTime:
    """Seconds that pass only when a job runs."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def job(self, name: str, seconds: float):
        def run() -> None:
            self.order.append(name)
            self.now += seconds

        return run

    def __call__(self) -> float:
        return self.now


def test_values_are_seconds_of_one_call_in_turn() -> None:
    fake = FakeTime()
    values, failed = in_turn({"a": fake.job("a", 0.5), "b": fake.job("b", 0.003)}, 3, cpu_clock(fake))
    assert not failed
    assert values["a"] == pytest.approx([0.5] * 3)
    assert values["b"] == pytest.approx([0.003] * 3)
    turns = [len(list(calls)) for _, calls in itertools.groupby(fake.order)]
    assert len(turns) == 2 + 2 * 3  # a warm-up each, then a and b three times
    assert turns[2:] == [3, 9] * 3  # 0.5 s is long enough alone, 3 ms are called seven times; torch's timer warms up with two


def test_what_fails_drops_out_and_the_rest_goes_on() -> None:
    fake, calls = FakeTime(), []

    def dies_later() -> None:
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("no more\nlines")

    def too_large() -> None:
        torch.empty(1 << 60)

    jobs = {"a": fake.job("a", 0.1), "large": too_large, "later": dies_later}
    values, failed = in_turn(jobs, 4, cpu_clock(fake))
    assert values == {"a": pytest.approx([0.1] * 4)}
    assert failed == {"large": OUT_OF_MEMORY, "later": "no more"}


def test_errors_of_our_own_pass() -> None:
    def refuses() -> None:
        raise BadInput("no")

    with pytest.raises(BadInput):
        attempt(refuses)
    assert attempt(lambda: 3) == (3, None)


def test_the_real_clock() -> None:
    start = time.perf_counter()
    [value] = in_turn({"sleep": lambda: time.sleep(0.03)}, 1, cpu_clock())[0]["sleep"]
    assert 0.03 <= value < time.perf_counter() - start


def test_quartiles() -> None:
    assert quartiles([5.0]) == (5, 5, 5)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2, 3, 4)


@pytest.mark.gpu
def test_cuda_events() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = torch.randn(4096, 4096, device="cuda")
    values, failed = in_turn({"small": lambda: x[:64] @ x, "large": lambda: x @ x}, 5, cuda_clock("cuda"))
    assert not failed
    assert quartiles(values["large"])[1] > quartiles(values["small"])[1] > 0
