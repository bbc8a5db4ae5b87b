"""Random: nodes or weights at random, by default the same share of every layer; the paper's strong baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.method import Method
from compressor.options import option
from compressor.settings import Scope, Unit

if TYPE_CHECKING:
    from torch import nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Score by a random permutation, spread evenly over (0, 1) within each layer.

    A global cut at p then removes the share p of every group, which is the paper's per-layer StructuredRandom with an exact
    total. With `scope="global"` the scores are uniform random numbers.
    """

    paper: ClassVar[str] = "SNIP-it's baseline, arXiv 2006.00896"
    unit: Unit = option("node", "what is removed")
    scope: Scope = option("layer", "whether layers are drawn from together, or each loses the same share")
    uses_data: ClassVar[bool] = False

    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """(position in a random permutation + 1/2) / size."""
        import torch

        from compressor.model.weights import maskable
        from compressor.types.scores import Scores

        generator = torch.Generator().manual_seed(objective.seed)
        sizes: dict[str, tuple[int, ...]] = {g.name: (g.width,) for g in structure.prunable}
        if self.unit == "weight":
            sizes = {name: tuple(weight.shape) for name, weight in maskable(model).items()}
        values = {}
        for name, shape in sizes.items():
            count = torch.Size(shape).numel()
            if self.scope == "global":
                values[name] = torch.rand(shape, generator=generator, dtype=torch.float64)
            else:
                values[name] = ((torch.randperm(count, generator=generator).double() + 0.5) / count).reshape(shape)
        return Scores(values, unit=self.unit)
