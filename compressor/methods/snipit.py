"""SNIP-it: iterative weight pruning at initialisation (Verdenius et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.methods.snip import Snip
from compressor.options import option
from compressor.selection.schedule import halving


@dataclass(frozen=True, kw_only=True)
class SnipIt(Snip):
    """Score a weight by its elasticity |w dL/dw| / L, on a network that loses weights between events (eq. 3, algorithm 1)."""

    paper: ClassVar[str] = "SNIP-it, arXiv 2006.00896"
    steps: int = option(5, "the paper's s: s + 2 pruning events on the way to --sparsity", least=0)

    def targets(self, sparsity: float) -> tuple[float, ...]:
        """Half first, then half of what remains each time."""
        return halving(sparsity, self.steps)
