"""BatchNorm scale: channels whose norm has the smallest |gamma| go (Network Slimming, Liu et al. 2017)."""

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
class BnScale(Method):
    """Score a node by |gamma| of the batch norm behind it; groups without one stay whole.

    For networks that were trained with a penalty on gamma: on a fresh one all are equal.
    """

    paper: ClassVar[str] = "Network Slimming, arXiv 1708.06519"
    stage: ClassVar[Stage] = "after"
    suits: ClassVar[State | None] = "trained"
    uses_data: ClassVar[bool] = False

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """|gamma|."""
        from compressor.criteria.magnitude import norm_scales

        return norm_scales(model, structure)

    def cannot_score(self, model: nn.Module, structure: Structure) -> dict[str, str]:
        """Groups without a batch norm."""
        from compressor.criteria.magnitude import without_norm

        return without_norm(model, structure)
