"""A network, the groups of its nodes, and inputs that it runs on, in one hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from compressor.model.cost import Cost, cost
from compressor.model.inputs import Inputs
from compressor.model.observe import outputs_of
from compressor.surgery.shrink import shrink
from compressor.types.structure import Kept, Structure


@dataclass(frozen=True)
class GroupedNetwork:
    """What surgery, proof and counting need to know of a network.

    Attributes:
        model: the network itself.
        structure: of `model`.
        inputs: more than one sample, so that a proof can see the output vary.
    """

    model: nn.Module
    structure: Structure
    inputs: Inputs

    def with_weights(self, model: nn.Module) -> GroupedNetwork:
        """Another network of the same groups, such as this one with other weights or in another precision."""
        return replace(self, model=model)

    def on(self, inputs: Inputs) -> GroupedNetwork:
        """The same network on other inputs."""
        return replace(self, inputs=inputs)

    def shrink(self, kept: Kept) -> GroupedNetwork:
        """The smaller network that keeps only the nodes in `kept`, its groups renumbered. Errors as in `surgery.shrink`."""
        return replace(self, model=shrink(self.model, self.structure, kept), structure=self.structure.shrink(kept))

    def outputs(self) -> list[Tensor]:
        """All output tensors in eval mode."""
        return outputs_of(self.model, self.inputs)

    def cost(self) -> Cost:
        """What it costs, without a clock."""
        return cost(self.model, self.inputs)
