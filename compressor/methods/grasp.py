"""GraSP: what the gradient's flow does not need goes, in one event at initialisation (Wang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.method import Method
from compressor.options import option
from compressor.settings import State, Unit

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Grasp(Method):
    """Score by theta * H g, which is high where removal would reduce the gradient's norm (GraSP, eq. 8).

    The SNIP-it authors' code has the sign inverted and keeps what harms the flow; so does
    `sign="published-snipit"`. On nodes theta is the gate of a node.
    """

    paper: ClassVar[str] = "GraSP, arXiv 2002.07376"
    suits: ClassVar[State | None] = "fresh"
    unit: Unit = option("weight", "what is removed")
    sign: Literal["original", "published-snipit"] = option("original", "the paper's, or that of the SNIP-it authors' code")

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """theta * H g, or its negative."""
        from compressor.criteria.hessian import gradient_flow

        scores = gradient_flow(model, structure, objective, self.unit)
        return scores if self.sign == "original" else scores.negative()
