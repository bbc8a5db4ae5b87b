"""The samples that a repair looks at, and how many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.model.inputs import Inputs, each, run, samples, tensors
from compressor.model.observe import observed, tensors_in

MEMORY = 2**29
"""Bytes of activations that wait at a time."""

ALIVE = 6
"""Largest activations that a sample needs at a time, both networks together, as a guess."""

CHUNK = 32
"""Samples that run together while layers are refitted."""


def taken(batches: Iterable[Inputs], most: int) -> Inputs:
    """The first samples of the batches as one batch; those of another shape than the first one's are left out."""
    taken: list[Inputs] = []
    count = 0
    for inputs in batches:
        if taken and [x.shape[1:] for x in tensors(inputs)] != [x.shape[1:] for x in tensors(taken[0])]:
            continue  # such as a longer text: one program runs on samples of one shape
        taken.append(inputs)
        count += samples(inputs)
        if count >= most:
            break
    joined = [torch.cat(part)[:most] for part in zip(*map(tensors, taken), strict=True)]
    first = taken[0]
    return dict(zip(first, joined, strict=True)) if isinstance(first, Mapping) else tuple(joined)


def cut(inputs: Inputs, size: int, whole: bool = False) -> list[Inputs]:
    """Chunks of `size` samples; what is left over comes last, or where all are to be `whole`, not at all."""
    count = samples(inputs)
    starts = [*range(0, count - count % size if whole else count, size)]
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()  # a batch norm has nothing to normalise in a single sample
    ends = [*starts[1:], count if not whole else starts[-1] + size] if starts else []
    return [each(inputs, partial(_part, start=start, stop=stop)) for start, stop in zip(starts, ends, strict=True)]


def _part(x: Tensor, start: int, stop: int) -> Tensor:
    return x[start:stop]


def fitting(model: nn.Module, inputs: Inputs) -> int:
    """How many samples fit in `MEMORY` on their way through a network and a copy of it, 1 at least."""
    largest = 1

    def seen(_: nn.Module, __: Any, outputs: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors_in(outputs)))

    with observed(model) as twin, torch.no_grad():
        for module in twin.modules():
            module.register_forward_hook(seen)
        run(twin, each(inputs, lambda x: x[:1]))
    return max(1, MEMORY // (ALIVE * largest))
