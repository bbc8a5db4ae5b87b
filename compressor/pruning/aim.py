"""What the events of one pruning have in common: the resource that is counted, and how scores become a cut of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from compressor.model.speed import multiple_of
from compressor.selection.allocate import by_curves, by_kind
from compressor.selection.budget import Meter, prices
from compressor.selection.select import per_part
from compressor.settings import Ablation, Pruning, Resource
from compressor.surgery.network import GroupedNetwork
from compressor.types.curves import Curve
from compressor.types.scores import Scores


@dataclass(frozen=True)
class Aim:
    """What the events of one pruning have in common.

    Attributes:
        settings: what is asked.
        came: the network as it came.
        total: of the unit, in the dense network.
        exact: widths are not rounded yet: that comes at the end.
    """

    settings: Pruning
    came: nn.Module
    total: float = 0.0
    exact: bool = False

    @property
    def unit(self) -> Resource:
        """What is counted."""
        budget = self.settings.budget
        return "nodes" if budget is None else budget.unit

    @property
    def round_to(self) -> int:
        """What widths are multiples of."""
        return 1 if self.exact else multiple_of(self.settings)

    @property
    def floor(self) -> int:
        """Nodes that every group keeps."""
        return self.settings.floor

    @property
    def per(self) -> Resource | None:
        """What scores are divided by, if anything."""
        return self.settings.per

    @property
    def ablation(self) -> Ablation | None:
        """The control that is run in place of the method itself."""
        return self.settings.ablation

    @property
    def by_sensitivity(self) -> bool:
        """Whether curves say how much goes from which layer."""
        return self.settings.by_sensitivity

    def meter(self, network: GroupedNetwork) -> Meter:
        """A meter of what a network needs now."""
        return self._metered(network, self.unit, self.total)

    def ranked(self, scores: Scores, network: GroupedNetwork) -> Scores:
        """The scores, per unit of what goes with each node where that was asked for."""
        if self.per is None:
            return scores
        meter = self._metered(network, self.per)
        values = {g.name: scores.values[g.name] / meter.price(g) for g in network.structure.prunable}
        return dataclasses.replace(scores, values=values)

    def allocated(
        self, scores: Scores, network: GroupedNetwork, meter: Meter, share: float, curves: Mapping[str, Curve]
    ) -> Scores:
        """The scores as the allocation wants them cut.

        Args:
            meter: of the network.
            share: that is to be gone.
            curves: what allocates by sensitivity.
        """
        structure = network.structure
        if self.settings.allocate == "layer":
            return per_part(scores)
        if self.settings.allocate == "isomorphic":
            return by_kind(scores, structure)
        if self.by_sensitivity:
            return by_curves(scores, structure, curves, meter, share, self.floor)
        return scores

    def _metered(self, network: GroupedNetwork, unit: Resource, total: float = 0.0) -> Meter:
        return Meter(network.structure, unit, prices(unit, network.model, network.inputs, self.came), total)
