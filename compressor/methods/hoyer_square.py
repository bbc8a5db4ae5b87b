"""HoyerSquare: a scale-free sparsity penalty in training, then the smallest weights go (Yang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.method import Method
from compressor.options import option
from compressor.settings import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class HoyerSquare(Method):
    """Train with (sum |w|)^2 / sum w^2 of every layer added to the loss, then score a weight by |w| (DeepHoyer, eq. 3).

    The paper removes what is below a threshold; here exactly --sparsity goes.
    """

    paper: ClassVar[str] = "DeepHoyer, arXiv 1908.09979"
    stage: ClassVar[Stage] = "after"
    unit: ClassVar[Literal["node", "weight"]] = "weight"
    uses_data: ClassVar[bool] = False
    strength: float = option(1e-4, "what the penalty is multiplied with", least=0.0)

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """|w|."""
        from compressor.criteria.magnitude import weight_magnitude

        return weight_magnitude(model)

    def penalty(self, model: nn.Module, structure: Structure) -> Tensor:
        """Of all weights of convolutions, linear layers and recurrent cells."""
        from compressor.criteria.penalties import hoyer_square, penalised

        return self.strength * hoyer_square(penalised(model))
