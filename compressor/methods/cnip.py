"""CNIP: weights and nodes ranked together, in one event (Verdenius et al. 2020, supplement B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.method import Method
from compressor.settings import State

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Cnip(Method):
    """Score weights and nodes by their elasticity, on one scale; a node that goes takes its weights along.

    A weight goes when it or one of its nodes is below the cut, and the cut is where the asked share of the weights is gone; the
    authors' code reaches 0.74 where 0.90 is asked.
    """

    paper: ClassVar[str] = "SNIP-it, arXiv 2006.00896, supplement B"
    suits: ClassVar[State | None] = "fresh"
    unit: ClassVar[Literal["weight"]] = "weight"

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """The lowest of a weight's and its two nodes' elasticities."""
        from compressor.criteria.combined import combined_elasticity

        return combined_elasticity(model, structure, objective)
