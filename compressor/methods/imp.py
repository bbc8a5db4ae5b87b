"""IMP: train, prune the smallest weights, rewind, and again: the lottery ticket (Frankle et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.method import Method
from compressor.options import option
from compressor.selection.schedule import exponential
from compressor.settings import Stage

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Imp(Method):
    """Score a weight by |w| after some epochs of training, and start the rest again from the weights of an early epoch.

    `compress train NETWORK --method imp --interval E` trains E epochs before each of the events. The published SNIP-it code
    never stops to rewind, so that only three epochs follow the last one; here all epochs after the last event do.
    """

    paper: ClassVar[str] = "arXiv 1803.03635, 1903.01611"
    stage: ClassVar[Stage] = "during"
    unit: ClassVar[Literal["node", "weight"]] = "weight"
    uses_data: ClassVar[bool] = False
    rewind: int = option(1, "epoch whose weights come back after each event; 0: the untrained ones", least=0)
    steps: int = option(7, "pruning events on the way to --sparsity", least=1)

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """|w|."""
        from compressor.criteria.magnitude import weight_magnitude

        return weight_magnitude(model)

    def targets(self, sparsity: float) -> tuple[float, ...]:
        """The same share of what is left goes each time."""
        return exponential(sparsity, self.steps)
