"""The rank of feature maps (HRank): how much information a channel carries."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from compressor.criteria.variables import input_channels
from compressor.model.observe import observed
from compressor.objective.batches import size_of
from compressor.objective.objective import Objective
from compressor.types.scores import Scores
from compressor.types.structure import Group, Slice, Structure


def map_ranks(model: nn.Module, structure: Structure, objective: Objective) -> Scores:
    """Mean rank of what each node sends to its readers, over all samples and readers (HRank, eq. 4), as a share of the highest.

    The map of a channel `(height, width)` is taken as a matrix; of a sequence or a single number, as one row.
    """
    sums: dict[str, list[Tensor]] = defaultdict(list)
    samples = 0
    with observed(model) as twin, torch.no_grad():
        for group in structure.prunable:
            for s in _reads(twin, group):
                _watch(twin.get_submodule(s.layer), s, sums[group.name])
        for batch in objective.batches():
            objective.forward(twin, batch)
            samples += size_of(batch)
    values = {g.name: torch.stack(sums[g.name]).sum(0) / samples / len(_reads(model, g)) for g in structure.prunable}
    return Scores(values, None, samples)


def without_maps(model: nn.Module, structure: Structure) -> dict[str, str]:
    """Group -> why `map_ranks` cannot score it."""
    return {g.name: "no convolution or linear layer reads it" for g in structure.prunable if not _reads(model, g)}


def _reads(model: nn.Module, group: Group) -> list[Slice]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return [s for s in group.slices if s.role == "read" and isinstance(model.get_submodule(s.layer), kinds)]


def _watch(module: nn.Module, s: Slice, found: list[Tensor]) -> None:
    index, dim = input_channels(module, s), -1 if isinstance(module, nn.Linear) else 1

    def see(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = (args[0] if args else options["input"]).movedim(dim, 1)
        maps = x[:, index.to(x.device)]  # (batch, width, k, ...)
        matrices = maps if maps.dim() == 5 else maps.flatten(3).unsqueeze(3) if maps.dim() > 3 else maps[..., None, None]
        ranks = torch.linalg.matrix_rank(matrices.float()) / min(matrices.shape[-2:])
        found.append(ranks.mean(2).sum(0).double().cpu())

    module.register_forward_pre_hook(see, with_kwargs=True)
