"""SNAP-it: iterative node pruning at initialisation (Verdenius et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.methods.snap import Snap
from compressor.options import option
from compressor.selection.schedule import halving
from compressor.settings import State


@dataclass(frozen=True, kw_only=True)
class SnapIt(Snap):
    """Score a node by its elasticity |dL/dc| / L, on a network that shrinks between events (eq. 4, algorithm 1).

    SNAP's score, asked for afresh before each of `steps + 2` events, because a node's worth changes as others go.
    """

    best_for: ClassVar[State | None] = "fresh"

    steps: int = option(5, "the paper's s: s + 2 pruning events on the way to --sparsity", least=0)

    def targets(self, sparsity: float) -> tuple[float, ...]:
        """Half first, then half of what remains each time."""
        return halving(sparsity, self.steps)
