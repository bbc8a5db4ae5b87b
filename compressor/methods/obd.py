"""Optimal Brain Damage: weights of the smallest second-order effect on the loss go (Le Cun et al. 1990)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.method import Method
from compressor.options import option
from compressor.settings import Stage, State, Unit

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Obd(Method):
    """Score by theta^2 h / 2 with h the diagonal of the loss's Hessian (OBD, eq. 5); for trained networks, where dL/dtheta = 0.

    The diagonal is estimated with random signs (Hutchinson), each of which costs a Hessian product.
    """

    paper: ClassVar[str] = "Optimal Brain Damage, NIPS 1989"
    stage: ClassVar[Stage] = "after"
    suits: ClassVar[State | None] = "trained"
    unit: Unit = option("node", "what is removed")
    probes: int = option(4, "random sign vectors for the Hessian's diagonal", least=1)

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """theta^2 h / 2."""
        from compressor.criteria.hessian import damage

        return damage(model, structure, objective, self.unit, self.probes)
