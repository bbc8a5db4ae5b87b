"""What a method says of the nodes or weights of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from compressor.errors import BadInput
from compressor.types.structure import Structure


@dataclass(frozen=True)
class Scores:
    """One number per node or weight, higher = keep.

    Attributes:
        values: group name -> `(width,)`, or weight tensor's name -> its shape; float64, finite.
        loss: the loss that the scores are the elasticity of, where the method has one.
        samples: number of samples that were seen.
        unit: what is scored.
    """

    values: Mapping[str, Tensor]
    loss: float | None = None
    samples: int = 0
    unit: Literal["node", "weight"] = "node"

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not bool(torch.isfinite(value).all()):
                raise BadInput(f"{name}: a score is not finite; look for NaN or huge values in the weights and the data")

    def curves(self, points: int = 400, most: int = 100_000) -> dict[str, Tensor]:
        """Each part's scores in falling order, at that many places; of large parts, of a sample of `most` entries."""
        found = {}
        for name, value in self.values.items():
            flat = value.flatten()
            ordered = flat[:: max(1, len(flat) // most)].sort(descending=True).values
            found[name] = ordered[torch.linspace(0, len(ordered) - 1, min(points, len(ordered))).long()].double()
        return found

    def negative(self) -> Scores:
        """The same with the order reversed."""
        return replace(self, values={name: -value for name, value in self.values.items()})

    def covers(self, structure: Structure) -> None:
        """Check that there is one score for every prunable node and none for anything else.

        Raises:
            ValueError: a group is missing, unknown, or of another width.
        """
        self.cover({g.name: (g.width,) for g in structure.prunable})

    def cover(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that there is one score for everything in groups or weights of these shapes.

        Raises:
            ValueError: one is missing, unknown, or of another shape.
        """
        found = {name: tuple(value.shape) for name, value in self.values.items()}
        if shapes != found:
            wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
            raise ValueError(f"scores do not fit the network: {', '.join(wrong)}")
