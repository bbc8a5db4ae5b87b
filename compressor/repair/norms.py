"""Batch norms of a small network, corrected by what changed in front of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.model.inputs import Inputs, run
from compressor.model.observe import observed

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Batch norm -> mean and variance `(channels,)` of what goes in, float64."""

MOST = 1e3
"""By which a variance is multiplied or divided at most."""


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that keep statistics."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def statistics(model: nn.Module, chunks: Sequence[Inputs]) -> Statistics:
    """What goes into the batch norms while each normalises by its batch, so that those in front of it are corrected already."""
    sums: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    with observed(model) as twin, torch.no_grad():
        handles = []
        for name, norm in norms_of(twin).items():
            norm.train()
            norm.momentum = 0.0

            def seen(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                x = given[0]
                dims = [d for d in range(x.dim()) if d != 1]
                variance, mean = torch.var_mean(x, dims, correction=0)
                sums.setdefault(name, []).append((x[:, 0].numel(), mean.double(), variance.double()))

            handles.append(norm.register_forward_pre_hook(seen))
        for inputs in chunks:
            run(twin, inputs)
        for handle in handles:
            handle.remove()
    return {name: _joined(parts) for name, parts in sums.items()}


def _joined(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all rows, from those of parts."""
    rows = sum(n for n, _, _ in parts)
    mean = sum((n / rows * m for n, m, _ in parts), torch.zeros_like(parts[0][1]))
    variance = sum((n / rows * (v + (m - mean) ** 2) for n, m, v in parts), torch.zeros_like(mean))
    return mean, variance


def correct(
    small: nn.Module, dense: nn.Module, stay: Mapping[tuple[str, int], Tensor], was: Statistics, now: Statistics
) -> int:
    """Give, in place, the small network's batch norms the dense ones' statistics, changed as what goes in changed.

    Args:
        stay: (tensor, dimension) -> sorted indices of the dense entries that stayed, of what shrank.
        was: of the dense network; `now` of the small one.
    """
    dense_norms, done = norms_of(dense), 0
    for name, norm in norms_of(small).items():
        if name not in was or name not in now:
            continue
        kept = next((stay[key] for part in ("running_mean", "weight", "bias") if (key := (f"{name}.{part}", 0)) in stay), None)
        mean, variance = dense_norms[name].running_mean, dense_norms[name].running_var
        assert mean is not None
        assert variance is not None
        there = [t.double() if kept is None else t.double()[kept] for t in (mean, variance, *was[name])]
        tiny = torch.finfo(torch.float32).tiny
        ratio = ((now[name][1] + tiny) / (there[3] + tiny)).clamp(1 / MOST, MOST)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(there[0] + now[name][0] - there[2])
        norm.running_var.copy_(there[1] * ratio)
        done += 1
    return done
