"""Group-HS: HoyerSquare on rows and columns in training, then the smallest nodes go (Yang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.method import Method
from compressor.options import option
from compressor.settings import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class GroupHs(Method):
    """Train with (sum ||w_g||)^2 / sum ||w_g||^2 over rows and over columns added to the loss, then score a node by its |w|.

    The paper keeps a node if one of its weights is above a threshold; here exactly --sparsity goes (DeepHoyer, eq. 7).
    """

    paper: ClassVar[str] = "DeepHoyer, arXiv 1908.09979"
    stage: ClassVar[Stage] = "after"
    uses_data: ClassVar[bool] = False
    strength: float = option(1e-3, "what the penalty is multiplied with", least=0.0)

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """Sum of |w| over the weights that make a node."""
        from compressor.criteria.magnitude import node_magnitude

        return node_magnitude(model, structure)

    def penalty(self, model: nn.Module, structure: Structure) -> Tensor:
        """Of all weights of convolutions, linear layers and recurrent cells."""
        from compressor.criteria.penalties import group_hoyer_square, penalised

        return self.strength * group_hoyer_square(penalised(model))
