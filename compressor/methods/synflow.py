"""SynFlow: weights that carry least of a flow go, in many small events, without data (Tanaka et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.method import Method
from compressor.options import option
from compressor.selection.schedule import exponential
from compressor.settings import State, Unit

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class SynFlow(Method):
    """Score by theta * dR/dtheta, R the output for an input of ones through positive weights (SynFlow, algorithm 1).

    Because scores are asked for afresh and what remains shrinks exponentially, no layer collapses
    before it must.
    """

    paper: ClassVar[str] = "SynFlow, arXiv 2006.05467"
    suits: ClassVar[State | None] = "fresh"
    unit: Unit = option("weight", "what is removed")
    steps: int = option(100, "pruning events on the way to --sparsity", least=1)
    uses_data: ClassVar[bool] = False

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """Synaptic flow."""
        from compressor.criteria.synaptic_flow import synaptic_flow

        return synaptic_flow(model, structure, objective.example_inputs(), self.unit)

    def targets(self, sparsity: float) -> tuple[float, ...]:
        """What remains shrinks by the same factor each time."""
        return exponential(sparsity, self.steps)
