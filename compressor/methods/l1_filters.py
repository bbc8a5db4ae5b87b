"""EfficientConvNets: of each layer, the filters of the smallest L1 norm go (Li et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.method import Method
from compressor.settings import Stage, State

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class L1Filters(Method):
    """Score a node by its place within its layer, ordered by the sum of |w|: every layer loses the same share.

    For trained networks.
    """

    paper: ClassVar[str] = "EfficientConvNets, arXiv 1608.08710"
    stage: ClassVar[Stage] = "after"
    suits: ClassVar[State | None] = "trained"
    best_for: ClassVar[State | None] = "trained"
    across_layers: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """Place by L1 norm."""
        from compressor.criteria.magnitude import node_magnitude
        from compressor.selection.select import per_part

        return per_part(node_magnitude(model, structure))
