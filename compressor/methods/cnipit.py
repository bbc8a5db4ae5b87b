"""CNIP-it: weights and nodes ranked together, iterated (Verdenius et al. 2020, supplement B)."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.methods.cnip import Cnip
from compressor.options import option
from compressor.selection.schedule import halving


@dataclass(frozen=True, kw_only=True)
class CnipIt(Cnip):
    """CNIP's scores, asked for afresh before each of `steps + 2` events (SNIP-it, algorithm 1)."""

    steps: int = option(5, "the paper's s: s + 2 pruning events on the way to --sparsity", least=0)

    def targets(self, sparsity: float) -> tuple[float, ...]:
        """Half first, then half of what remains each time."""
        return halving(sparsity, self.steps)
