"""The rank of feature maps (HRank): how much information a channel carries."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from compressor.criteria.variables import input_channels
from compressor.objective import Objective, size_of
from compressor.state import observed
from compressor.types import Scores, Slice, Structure


def map_ranks(model: nn.Module, structure: Structure, objective: Objective) -> Scores:
    """Mean rank of what each node sends to its readers, over all samples and readers (HRank, eq. 4), as a share of the highest.

    The map of a channel `(height, width)` is taken as a matrix; of a sequence or a single number, as one row.
    """
    sums: dict[str, list[Tensor]] = defaultdict(list)
    samples = 0
    with observed(model) as twin, torch.no_grad():
        for group in structure.prunable:
            unread = not any(s.role == "read" for s in group.slices)
            for s in group.slices:
                if s.role == ("produce" if unread else "read"):
                    _watch(twin, group.name, s, sums)
        for batch in objective.batches():
            objective.forward(twin, batch)
            samples += size_of(batch)
    values = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in structure.prunable}
    for name, parts in sums.items():
        values[name] = torch.stack(parts).sum(0) / samples
    return Scores(values, None, samples)


def _watch(twin: nn.Module, group: str, s: Slice, sums: dict[str, list[Tensor]]) -> None:
    try:
        module = twin.get_submodule(s.layer)
    except AttributeError:
        return
    dim = -1 if isinstance(module, nn.Linear) else 1

    def see(x: Tensor, index: Tensor) -> None:
        maps = x.movedim(dim, 1)[:, index.to(x.device)].flatten(0, 0)  # (batch, width, k, ...)
        matrices = maps if maps.dim() == 5 else maps.flatten(3).unsqueeze(3) if maps.dim() > 3 else maps[..., None, None]
        highest = min(matrices.shape[-2:])
        ranks = torch.linalg.matrix_rank(matrices.float()) / highest
        sums[group].append(ranks.mean(2).sum(0).double().cpu())

    if s.role == "produce":
        module.register_forward_hook(lambda _, args, out: see(out, s.index))
    elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        index = input_channels(module, s)
        module.register_forward_pre_hook(
            lambda _, args, options: see(args[0] if args else options["input"], index), with_kwargs=True
        )
