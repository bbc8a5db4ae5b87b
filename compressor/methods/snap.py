"""SNAP: node pruning at initialisation in one event (Verdenius et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.method import Method
from compressor.options import option
from compressor.settings import Aggregate, GatePlace, Scope, State

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Snap(Method):
    """Score a node by its elasticity |dL/dc| / L, once (eq. 4).

    The authors' code gates before the batch norm; so does `gate="pre-norm"`.
    """

    paper: ClassVar[str] = "SNIP-it, arXiv 2006.00896"
    suits: ClassVar[State | None] = "fresh"
    gate: GatePlace = option("read", "where a node's gate sits")
    aggregate: Aggregate = option("signed", "what is summed before the absolute value")
    scope: Scope = option("global", "whether layers are ranked together, or each loses the same share")

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """Node elasticity."""
        from compressor.criteria.elasticity import node_elasticity
        from compressor.selection.select import within

        scores = node_elasticity(model, structure, objective, gate=self.gate, aggregate=self.aggregate)
        return within(self.scope, scores)
