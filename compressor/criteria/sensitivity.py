"""What a network loses as the nodes of one group go, the weakest first, each reader refitted to what is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.criteria.readers import Read, reads_of
from compressor.model.affine import affine_of
from compressor.model.cost import count
from compressor.model.observe import observed, tensors_in
from compressor.objective.batches import Batch, size_of
from compressor.objective.distance import distance
from compressor.objective.objective import Objective
from compressor.selection.allocate import Curve
from compressor.surgery.network import GroupedNetwork
from compressor.system.progress import Progress
from compressor.types.scores import Scores
from compressor.types.structure import Group

POINTS = 9
"""Widths at which each group is measured: eighths, a sixteenth, and one node."""

MOST, LEAST = 256, 32
"""Samples that a network runs on for each point; fewer where that would take more than `WORK` multiply-adds in all."""

WORK = 2e13


def sensitivity(
    network: GroupedNetwork, scores: Scores, objective: Objective, progress: Progress = lambda *_: None
) -> dict[str, Curve]:
    """Group -> its curve, all other groups whole.

    Args:
        scores: higher = stays longer.
        objective: labels are not needed.
    """
    groups = network.structure.prunable
    reads, _ = reads_of(network.model, network.structure, objective)
    batches = _some(network, objective, len(groups))
    wanted = _outputs(network.model, batches, objective)
    curves = {}
    for number, group in enumerate(groups):
        progress("measuring each layer's sensitivity", number, len(groups))
        order = scores.values[group.name].argsort(stable=True)
        points = {group.width: 0.0}
        shares = (*(n / 8 for n in range(1, 8)), 15 / 16)
        for gone in {*(round(group.width * share) for share in shares), group.width - 1} - {0, group.width}:
            small = _without(network, group, order[:gone], reads[group.name])
            points[group.width - gone] = distance(_outputs(small, batches, objective), wanted)
        widths = tuple(sorted(points))
        curves[group.name] = Curve(widths, tuple(points[width] for width in widths))
    return curves


def _without(network: GroupedNetwork, group: Group, gone: Tensor, reads: Sequence[Read]) -> nn.Module:
    """The network without some nodes of a group, their readers refitted."""
    stay = torch.ones(group.width, dtype=torch.bool)
    stay[gone] = False
    kept = network.structure.keep_all() | {group.name: stay.nonzero().flatten()}
    small, entries = network.shrink(kept).model, network.structure.kept_entries(kept)
    by_layer: dict[str, list[Read]] = {}
    for read in reads:
        if read.met.moments.rows > 1:
            by_layer.setdefault(read.met.layer, []).append(read)
    for layer, parts in by_layer.items():
        module = small.get_submodule(layer)
        affine = affine_of(module)
        if affine is None or len(parts) != affine.groups or len({read.met.part for read in parts}) != affine.groups:
            continue  # read twice, or in some of its groups only
        matrices, shifts = [], []
        for read in sorted(parts, key=lambda read: read.met.part):
            matrix, shift = read.refitted(stay.to(read.weight.device))
            left = torch.ones(matrix.shape[1], dtype=torch.bool, device=matrix.device)
            left[read.columns[~stay].flatten()] = False
            matrices.append(matrix[:, left])
            shifts.append(shift)
        weight, matrix, shift = module.get_parameter("weight"), torch.stack(matrices), torch.cat(shifts)
        if (made := entries.get((f"{layer}.weight", 0))) is not None and affine.groups == 1 and not affine.transposed:
            matrix, shift = matrix[:, made.to(matrix.device)], shift[made.to(shift.device)]  # it makes nodes of them, too
        if matrix.numel() != weight.numel() or not bool(torch.isfinite(matrix).all()):
            continue
        with torch.no_grad():
            weight.copy_(affine.weight_of(matrix, weight))
            shifted = shift.to(weight)
            bias = module._parameters.get("bias")
            module.register_parameter("bias", nn.Parameter(shifted if bias is None else bias + shifted))
    return small


def _some(network: GroupedNetwork, objective: Objective, groups: int) -> list[Batch]:
    """Batches to measure on."""
    work = max(1, count(network.model, network.inputs).macs) * max(1, groups) * POINTS
    most = max(LEAST, min(MOST, int(WORK / work)))
    taken: list[Batch] = []
    for batch in objective.batches():
        taken.append(batch)
        if sum(map(size_of, taken)) >= most:
            break
    return taken


def _outputs(model: nn.Module, batches: Sequence[Batch], objective: Objective) -> list[list[Tensor]]:
    with observed(model) as twin, torch.no_grad():
        return [[y.clone() for y in tensors_in(objective.forward(twin, batch))] for batch in batches]
