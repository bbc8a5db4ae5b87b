"""From labels to groups: nodes that play the same part in the same layers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.coupling.labels import FILLER, Solution
from compressor.types.structure import Group, Role, Slice


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter, and the labels `(size,)` of its indices."""

    tensor: str
    dim: int
    role: Role
    labels: Tensor


def groups_of(axes: Iterable[Axis], entries: Mapping[str, Tensor], solution: Solution) -> tuple[Group, ...]:
    """Collect every node's places, then put nodes with the same places into one group.

    Args:
        axes: the labelled dimensions, layers first come first.
        entries: labels of every entry of the parameters that met activations element by element.
        solution: which labels go together; those with a producing layer are a node.
    """
    axes, component, reasons = list(axes), solution.component, dict(solution.reasons)
    for name, labels in entries.items():
        axes += _axes_of_entries(name, labels, component, reasons)
    if not sum(len(a.labels) for a in axes):
        return ()
    owner = np.concatenate([component[a.labels.numpy()] for a in axes])
    axis = np.concatenate([np.full(len(a.labels), n) for n, a in enumerate(axes)])
    index = np.concatenate([np.arange(len(a.labels)) for a in axes])
    order = np.lexsort((index, axis, owner))
    owner, axis, index = owner[order], axis[order], index[order]
    nodes = np.diff(owner, prepend=-1) != 0
    runs = np.flatnonzero(nodes | (np.diff(axis, prepend=-1) != 0))  # where a node's places along one axis begin
    nodes = np.flatnonzero(nodes)
    first_run = np.searchsorted(runs, nodes)
    run_axis, run_length = axis[runs], np.diff(runs, append=len(owner)).astype(axis.dtype)
    makes = np.array([a.role in ("produce", "pass") for a in axes])[run_axis]
    maker = np.minimum.reduceat(np.where(makes, run_axis, len(axes)), first_run)
    made_at = np.minimum.reduceat(np.where(makes, index[runs], len(owner)), first_run)

    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for node, (start, stop) in enumerate(itertools.pairwise((*first_run.tolist(), len(runs)))):
        its = int(owner[nodes[node]])
        if its != component[FILLER] and maker[node] < len(axes):
            where = run_axis[start:stop].tobytes(), run_length[start:stop].tobytes()
            alike[*where, reasons.get(its), its in solution.multiplied].append(node)
    groups, names = [], defaultdict[str, int](int)
    for key, members in sorted(alike.items(), key=lambda item: min((maker[n], made_at[n]) for n in item[1])):
        members.sort(key=lambda n: (maker[n], made_at[n]))
        numbers, lengths = (np.frombuffer(part, dtype=run_axis.dtype) for part in key[:2])
        slices, begin = [], nodes[members][:, None]
        for its_axis, length in zip((axes[n] for n in numbers), lengths, strict=True):
            places = torch.from_numpy(index[begin + np.arange(length)])
            slices.append(Slice(its_axis.tensor, its_axis.dim, places, its_axis.role))
            begin = begin + length
        producer = next(s.layer for s in slices if s.role in ("produce", "pass"))
        names[producer] += 1
        name = producer if names[producer] == 1 else f"{producer}#{names[producer]}"
        groups.append(Group(name, tuple(slices), *key[2:]))
    return tuple(groups)


def _axes_of_entries(name: str, labels: Tensor, component: np.ndarray, reasons: dict[int, str]) -> list[Axis]:
    """The dimension of a parameter along which its entries belong to different nodes; else its nodes are frozen."""
    nodes = torch.from_numpy(component)[labels]
    for dim in range(nodes.dim()):
        rows = nodes.movedim(dim, 0).flatten(1) if nodes.dim() > 1 else nodes[:, None]
        if bool((rows == rows[:, :1]).all()):
            first = labels.movedim(dim, 0).flatten(1)[:, 0] if labels.dim() > 1 else labels
            return [Axis(name, dim, "carry", first)] if rows.shape[0] > 1 or nodes.numel() == 1 else []
    for node in np.unique(nodes.numpy()):
        reasons.setdefault(int(node), f"{name}: its entries mix channels along several dimensions")
    return []
