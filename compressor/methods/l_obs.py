"""L-OBS over nodes: those go whose readers, refitted, miss them least (Dong et al. 2017; Hassibi et al. 1993)."""

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
class LObs(Method):
    """Score a node by the error that its readers are left with once it and all weaker ones are gone, after the best refit.

    For trained networks; made for `--repair least-squares`, which is that refit. Needs samples, no labels.
    """

    paper: ClassVar[str] = "L-OBS, arXiv 1705.07565"
    stage: ClassVar[Stage] = "after"
    suits: ClassVar[State | None] = "trained"
    best_for: ClassVar[State | None] = "trained"

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """The error of the readers, each as a share of what it gives."""
        from compressor.criteria.reconstruction import reconstruction

        return reconstruction(model, structure, objective)
