"""Weights and nodes on one scale (CNIP of SNIP-it, supplement B)."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from compressor.criteria.elasticity import node_elasticity, weight_elasticity
from compressor.objective.objective import Objective
from compressor.types.scores import Scores
from compressor.types.structure import Structure


def combined_elasticity(model: nn.Module, structure: Structure, objective: Objective) -> Scores:
    """For every weight, the lowest of its own elasticity and those of the nodes that it makes and reads.

    A cut at t then removes exactly the weights with elasticity below t and all weights of nodes with elasticity below t.
    """
    weights, nodes = weight_elasticity(model, structure, objective), node_elasticity(model, structure, objective)
    values = dict(weights.values)
    for group in structure.prunable:
        score = nodes.values[group.name]
        for s in group.slices:
            if s.tensor in values and s.role in ("produce", "pass", "read", "carry"):
                value = values[s.tensor]
                bounds = torch.full((value.shape[s.dim],), torch.inf, dtype=value.dtype)
                bounds[s.index] = score[:, None].expand_as(s.index).to(value.dtype)
                values[s.tensor] = value.minimum(bounds.reshape([-1 if d == s.dim else 1 for d in range(value.dim())]))
    return dataclasses.replace(weights, values=values)
