"""HRank: of each layer, the channels whose feature maps have the lowest rank go (Lin et al. 2020)."""

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
class Hrank(Method):
    """Score a node by its place within its layer, ordered by the mean rank of its maps: every layer loses the same share.

    For trained networks. Where maps have one position, as behind a linear layer, the rank is the share
    of samples that the node is not 0 on.
    """

    paper: ClassVar[str] = "HRank, arXiv 2002.10179"
    stage: ClassVar[Stage] = "after"
    suits: ClassVar[State | None] = "trained"
    across_layers: ClassVar[bool] = False

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """Place by mean rank."""
        from compressor.criteria.rank import map_ranks
        from compressor.selection.select import per_part

        return per_part(map_ranks(model, structure, objective))

    def cannot_score(self, model: nn.Module, structure: Structure) -> dict[str, str]:
        """Groups whose maps no layer reads."""
        from compressor.criteria.rank import without_maps

        return without_maps(model, structure)
