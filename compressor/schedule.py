"""From one target sparsity to the sparsities of the pruning events."""

from __future__ import annotations


def exponential(sparsity: float, steps: int) -> tuple[float, ...]:
    """What remains shrinks by the same factor in each event: 1 - (1 - sparsity)^(i / steps) (SynFlow, algorithm 1)."""
    return (*(1 - (1 - sparsity) ** (i / steps) for i in range(1, steps)), sparsity)


def halving(sparsity: float, steps: int) -> tuple[float, ...]:
    """Half of the network first, then half of what remains each time (SNIP-it, algorithm 1).

    kappa_i = kappa - (kappa - 0.5) * 0.5**i for i = 0..steps, then kappa itself: `steps=5` gives 7 events. At or below 0.5 the
    formula would start at or above its target; there the first event is kappa / 2, and the rest is halved the same way.

    Args:
        sparsity: fraction removed at the end, in [0, 1).
        steps: the paper's s, at least 0.
    """
    first = 0.5 if sparsity > 0.5 else sparsity / 2
    return (*(sparsity - (sparsity - first) * 0.5**i for i in range(steps + 1)), sparsity)
