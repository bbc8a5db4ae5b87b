"""Batch norms that never saw data do not normalise in eval mode; a few batches give them statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from compressor.objective import Objective


def is_fresh(model: nn.Module) -> bool:
    """Whether the network has batch norms and none of them has seen data."""
    seen = [m.num_batches_tracked for m in model.modules() if isinstance(m, _NormBase) and m.num_batches_tracked is not None]
    return bool(seen) and not any(bool(n) for n in seen)


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
    with torch.no_grad():
        for batch in objective.batches():
            objective.forward(model, batch)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, training in flags.items():
        module.training = training
    return model
