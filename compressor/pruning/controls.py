"""Controls for a method: its choice shuffled, started afresh, or turned upside down ("Missing the Mark", Frankle et al. 2021).

If a network is no worse with one of them, it was not the choice of single nodes or weights that made it good.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.model.origin import origin_of
from compressor.networks import initialised
from compressor.types.structure import Kept, Structure


def shuffled_nodes(structure: Structure, kept: Kept, seed: int) -> dict[str, Tensor]:
    """As many nodes of each group `(kept,)`, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.width, generator=generator)[: len(kept[g.name])].sort().values for g in structure.prunable}


def shuffled_weights(kept: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """As many entries of each weight, drawn at random: booleans of its shape."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in kept.items()
    }


def afresh(model: nn.Module, zero: Mapping[str, Tensor], seed: int) -> nn.Module:
    """A copy with fresh weights, from the scheme of its builder, or else from each module's own `reset_parameters`.

    Args:
        zero: weight -> booleans of its shape; what stays zero.
    """
    fresh, origin = copy.deepcopy(model), origin_of(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        if not initialised(fresh, origin.network if origin else None):
            for module in fresh.modules():
                reset: Any = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        for name, mask in zero.items():
            fresh.get_parameter(name).masked_fill_(mask.to(fresh.get_parameter(name).device), 0.0)
    return fresh
