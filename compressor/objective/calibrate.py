"""Batch norms that never saw data do not normalise in eval mode; a few batches give them statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from compressor.data import own_randomness, seed_all
from compressor.objective.batches import size_of
from compressor.objective.objective import Objective


def is_fresh(model: nn.Module) -> bool:
    """Whether the network has batch norms and all of them are as they were made; old files lack the counters."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    return bool(norms) and all(_untouched(m) for m in norms)


def _untouched(norm: _NormBase) -> bool:
    mean, variance, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None
    assert variance is not None
    return not (seen is not None and bool(seen)) and not bool(mean.any()) and bool((variance == 1).all())


def calibrated(model: nn.Module, objective: Objective) -> nn.Module:
    """A copy whose batch norms carry the statistics of one pass over the objective's batches; nothing else changes."""
    model = copy.deepcopy(model)
    flags = {m: m.training for m in model.modules()}
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    momenta = {m: m.momentum for m in norms}
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    largest = 0
    with torch.no_grad(), own_randomness(objective.data):
        seed_all(objective.data, objective.seed)  # for loaders that shuffle
        for batch in objective.batches():
            if size_of(batch) == 1 < largest:
                continue  # there is nothing to normalise in a single sample that is left over
            largest = max(largest, size_of(batch))
            objective.forward(model, batch)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, training in flags.items():
        module.training = training
    return model
