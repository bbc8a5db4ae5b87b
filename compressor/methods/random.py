"""Random nodes, the same share of every layer: the paper's strong baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from compressor.method import Method
from compressor.objective import Objective
from compressor.types import Scores, Structure


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Score the nodes of a group by a random permutation, spread evenly over (0, 1).

    A global cut at p then removes the share p of every group, which is the paper's per-layer StructuredRandom with an exact
    total.
    """

    uses_data: ClassVar[bool] = False

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """(position in a random permutation + 1/2) / width."""
        generator = torch.Generator().manual_seed(objective.seed)
        values = {}
        for group in structure.prunable:
            order = torch.randperm(group.width, generator=generator)
            values[group.name] = (order.double() + 0.5) / group.width
        return Scores(values)
