"""SNIP: weights whose removal hardly changes the loss go, in one event at initialisation (Lee et al. 2019)."""

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
class Snip(Method):
    """Score a weight by |w dL/dw| / L, once (SNIP, eq. 6; SNIP-it, eq. 3).

    Exactly the asked number stays; the SNIP-it authors' code keeps one less.
    """

    paper: ClassVar[str] = "SNIP, arXiv 1810.02340"
    suits: ClassVar[State | None] = "fresh"
    unit: ClassVar[Literal["weight"]] = "weight"

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """Weight elasticity."""
        from compressor.criteria.elasticity import weight_elasticity

        return weight_elasticity(model, structure, objective)
