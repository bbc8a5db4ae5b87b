"""Network Slimming: L1 on the batch norms' scales in training, then the smallest channels go (Liu et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.methods.bn_scale import BnScale
from compressor.options import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Slimming(BnScale):
    """Train with the sum of |gamma| added to the loss, then score a node by |gamma|; groups without a batch norm stay whole."""

    strength: float = option(1e-4, "what the sum is multiplied with", least=0.0)

    def penalty(self, model: nn.Module, structure: Structure) -> Tensor:
        """Of the batch norms behind layers that may lose nodes (eq. 1)."""
        from compressor.criteria.penalties import norm_scales_l1

        return self.strength * norm_scales_l1(model, structure)
