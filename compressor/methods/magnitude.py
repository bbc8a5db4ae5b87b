"""Magnitude: the smallest weights go (Blalock et al. 2020; Han et al. 2015)."""

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
class Magnitude(Method):
    """Score by |w|, or a node by the sum of |w| over the weights that make it; for trained networks."""

    paper: ClassVar[str] = "Blalock et al., arXiv 2003.03033"
    stage: ClassVar[Stage] = "after"
    suits: ClassVar[State | None] = "trained"
    unit: Unit = option("node", "what is removed")
    scope: Scope = option("global", "whether layers are ranked together, or each loses the same share")
    uses_data: ClassVar[bool] = False

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """|w|."""
        from compressor.criteria.magnitude import magnitude
        from compressor.selection.select import within

        return within(self.scope, magnitude(model, structure, self.unit))
