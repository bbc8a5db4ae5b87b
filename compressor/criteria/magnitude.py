"""Sizes of weights: no data, no derivative."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compressor.errors import UnsupportedNetwork
from compressor.model.weights import maskable
from compressor.settings import Unit
from compressor.surgery.shrink import tensors_of
from compressor.types.scores import Scores
from compressor.types.structure import Group, Structure


def weight_magnitude(model: nn.Module) -> Scores:
    """|w| of every weight (Blalock et al., "global magnitude")."""
    return Scores({name: w.detach().abs().float().cpu() for name, w in maskable(model).items()}, unit="weight")


def node_magnitude(model: nn.Module, structure: Structure) -> Scores:
    """Sum of |w| over the weights that make a node (Li et al., eq. of the filters' L1 norm); parallel layers add up."""
    tensors, cells = tensors_of(model), maskable(model).keys()
    values = {}
    for group in structure.prunable:
        total = torch.zeros(group.width, dtype=torch.float64)
        for s in group.slices:
            makes = s.role == "produce" or (s.role == "carry" and s.tensor in cells)  # a recurrent cell carries its gates
            if makes and s.tensor in tensors and tensors[s.tensor].dim() > 1:
                rows = tensors[s.tensor].detach().abs().movedim(s.dim, 0).flatten(1).sum(1, dtype=torch.float64).cpu()
                total += rows[s.index].sum(1)
        values[group.name] = total
    return Scores(values)


def magnitude(model: nn.Module, structure: Structure, unit: Unit) -> Scores:
    """|w| of single weights, or their sum over what makes a node."""
    return weight_magnitude(model) if unit == "weight" else node_magnitude(model, structure)


def norm_scales(model: nn.Module, structure: Structure) -> Scores:
    """|gamma| of the batch norm that directly follows the layer that makes a node (Network Slimming); parallel layers add up.

    Raises:
        UnsupportedNetwork: a prunable group has none; `without_norm` names them beforehand.
    """
    tensors, values = tensors_of(model), {}
    for group in structure.prunable:
        gammas = _gammas(group, structure, tensors)
        if not gammas:
            raise UnsupportedNetwork(f"{group.name}: no batch norm with a scale follows it; use another method")
        values[group.name] = torch.stack([gamma.detach().abs().double().cpu()[index].sum(1) for gamma, index in gammas]).sum(0)
    return Scores(values)


def without_norm(model: nn.Module, structure: Structure) -> dict[str, str]:
    """Group -> why `norm_scales` cannot score it."""
    tensors = tensors_of(model)
    none = [g.name for g in structure.prunable if not _gammas(g, structure, tensors)]
    return dict.fromkeys(none, "no batch norm with a scale follows it")


def _gammas(group: Group, structure: Structure, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The scales `(channels,)` of the norms behind a group's layers, and which channels are its nodes' `(width, k)`."""
    names = [(f"{structure.norms.get(s.layer)}.weight", s.index) for s in group.slices if s.role == "produce"]
    return [(tensors[name], index) for name, index in names if name in tensors]
