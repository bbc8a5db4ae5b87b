"""How far what a network gives is from what another one gives, without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def distance(found: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> float:
    """The squared distance of outputs to others, as a share of the variance of those over samples; mean over outputs.

    Args:
        found: for each batch, the outputs, `(samples, ...)`.
        wanted: for each batch, the outputs to compare with; those that are no real numbers are left out.
    Returns:
        Infinity where an output is not finite.
    """
    outputs: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for ys, ds in zip(found, wanted, strict=True):
        for place, (y, d) in enumerate(zip(ys, ds, strict=True)):
            if d.is_floating_point() and d.dim() and d.shape == y.shape:
                outputs.setdefault(place, []).append((y.double(), d.double()))
    shares = []
    for pairs in outputs.values():
        y, d = (torch.cat(part) for part in zip(*pairs, strict=True))
        spread = (d - d.mean(0, keepdim=True)).square().sum()
        share = float((y - d).square().sum() / spread.clamp_min(torch.finfo(torch.float32).tiny))
        shares.append(share if math.isfinite(share) else math.inf)
    return sum(shares) / len(shares) if shares else 0.0
