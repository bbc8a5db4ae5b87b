"""Everything that a data set of the user's own may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(data: Any, seed: int) -> None:
    """Let what comes next follow from `seed` alone: torch, numpy, Python, and the generators that a loader holds."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    for loader in _chain(data):
        if getattr(loader, "persistent_workers", False):
            loader._iterator = None  # workers that live on would never be seeded again
    for generator in _generators(data):
        generator.manual_seed(seed)


@contextmanager
def own_randomness(data: Any) -> Iterator[None]:
    """Within, whatever is drawn or seeded; afterwards, all generators are where they were."""
    held = [(generator, generator.get_state()) for generator in _generators(data)]
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        for generator, state in held:
            generator.set_state(state)


def _generators(data: Any) -> list[torch.Generator]:
    """Those of a loader, and of the samplers in it."""
    found = []
    for loader in _chain(data):
        batches = getattr(loader, "batch_sampler", None)
        holders = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
        found += [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _chain(data: Any) -> list[Any]:
    """Batches, and those that they come from: what is ours stands before the user's own."""
    chain = [data]
    while (inner := getattr(chain[-1], "source", None)) is not None and len(chain) < DEEPEST:
        chain.append(inner)
    return chain


DEEPEST = 8
"""Wrappers that are looked into."""
