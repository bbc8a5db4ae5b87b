"""Drawing samples: which ones, in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def length_of(data: Iterable[Any]) -> int | None:
    """The number of batches; None where that is not known, as of a loader over a stream."""
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


class Drawn:
    """How a data set is drawn from: a seeded shuffle of its own at each iteration, in batches."""

    count: int
    batch_size: int
    seed: int | None
    _iterations: int

    @property
    def available(self) -> int:
        """Samples there are."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Samples of one iteration."""
        return min(self.count, self.available)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def skip_to(self, iteration: int) -> None:
        """Let the next iteration draw as the one of this number, counted from 0, does."""
        self._iterations = iteration

    def draw(self) -> tuple[Tensor, ...]:
        """The indices of each batch of the next iteration."""
        if self.seed is None:
            order = torch.arange(self.size)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._iterations)
            order = torch.randperm(self.available, generator=generator)[: self.size]
            self._iterations += 1
        return order.split(self.batch_size)
