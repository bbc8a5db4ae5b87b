"""Gradient magnitude: weights of the smallest |w dL/dw| go (Blalock et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.method import Method
from compressor.options import option
from compressor.settings import Scope, Stage, State, Unit

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class GradientMagnitude(Method):
    """Score by |theta dL/dtheta|: SNIP's score without the loss, also within each layer; on nodes theta is a gate."""

    paper: ClassVar[str] = "Blalock et al., arXiv 2003.03033"
    stage: ClassVar[Stage] = "after"
    suits: ClassVar[State | None] = "trained"
    unit: Unit = option("node", "what is removed")
    scope: Scope = option("global", "whether layers are ranked together, or each loses the same share")

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """|theta dL/dtheta|."""
        from compressor.criteria.elasticity import sensitivity
        from compressor.selection.select import within

        return within(self.scope, sensitivity(model, structure, objective, self.unit))
