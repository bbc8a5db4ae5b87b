"""Drawing samples: which ones, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


def length_of(data: Iterable[Any]) -> int | None:
    """The number of batches; None where that is not known, as of a loader over a stream."""
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def epoch_of(data: Iterable[Any], number: int) -> Iterable[Any]:
    """The batches of one epoch, counted from 0; of data that cannot be asked for one, whatever they give now."""
    return data.epoch(number) if isinstance(data, ByEpoch) else data


def epoch_seed(seed: int, number: int) -> int:
    """The seed of an epoch's own random numbers."""
    return (seed * 1_000_003 + number) % 2**63


@runtime_checkable
class ByEpoch(Protocol):
    """Data that give every epoch by its number, so that looking at one changes nothing."""

    def epoch(self, number: int) -> Iterable[Any]:
        """The batches of one epoch, counted from 0."""


class Drawn:
    """How a data set is drawn from: a seeded shuffle of its own in each epoch, in batches. Iterated, it gives epoch 0."""

    count: int
    batch_size: int
    seed: int | None

    @property
    def available(self) -> int:
        """Samples there are."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Samples of one epoch."""
        return min(self.count, self.available)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of one epoch, counted from 0."""
        return map(self.batch, self.draw(number))

    def batch(self, chosen: Tensor) -> Any:
        """The samples of these indices `(batch,)`."""
        raise NotImplementedError

    def draw(self, number: int) -> tuple[Tensor, ...]:
        """The indices of each batch of an epoch."""
        if self.seed is None:
            order = torch.arange(self.size)
        else:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, number))
            order = torch.randperm(self.available, generator=generator)[: self.size]
        return tuple(order.split(self.batch_size))
