"""From labels to groups: nodes that play the same part in the same layers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compressor.structure.labels import FILLER, Solution
from compressor.types import Group, Role, Slice


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
    owner = np.concatenate([component[a.labels.numpy()] for a in axes]) if axes else np.zeros(0, dtype=np.int64)
    axis = np.concatenate([np.full(len(a.labels), n) for n, a in enumerate(axes)]) if axes else owner
    index = np.concatenate([np.arange(len(a.labels)) for a in axes]) if axes else owner
    order = np.lexsort((index, axis, owner))
    owner, axis, index = owner[order], axis[order], index[order]
    bounds = np.flatnonzero(np.diff(owner, prepend=-1, append=-2))

    filler = component[FILLER]
    alike: dict[tuple, list[tuple]] = defaultdict(list)
    for start, stop in itertools.pairwise(bounds):
        its_axes, firsts, counts = np.unique(axis[start:stop], return_index=True, return_counts=True)
        made_by = [n for n in its_axes if axes[n].role in ("produce", "pass")]
        if owner[start] == filler or not made_by:
            continue
        reason = reasons.get(int(owner[start]))
        key = (tuple(zip(its_axes.tolist(), counts.tolist(), strict=True)), reason, int(owner[start]) in solution.multiplied)
        places = [index[start + f : start + f + c] for f, c in zip(firsts, counts, strict=True)]
        first = min((places[list(its_axes).index(n)][0], n) for n in made_by)
        alike[key].append((made_by[0], int(first[0]), places))
    ready = sorted(((min(n[:2] for n in nodes), key, nodes) for key, nodes in alike.items()), key=lambda r: r[0])
    names: dict[str, int] = defaultdict(int)
    return tuple(_group(axes, key, nodes, names) for _, key, nodes in ready)


def _group(axes: list[Axis], key: tuple, nodes: list[tuple], names: dict[str, int]) -> Group:
    (places, reason, multiplied), nodes = key, sorted(nodes, key=lambda node: node[:2])
    slices = []
    for position, (number, _) in enumerate(places):
        axis = axes[number]
        index = torch.from_numpy(np.stack([node[2][position] for node in nodes]))
        slices.append(Slice(axis.tensor, axis.dim, index, axis.role))
    producer = next(s.layer for s in slices if s.role in ("produce", "pass"))
    names[producer] += 1
    name = producer if names[producer] == 1 else f"{producer}#{names[producer]}"
    return Group(name, tuple(slices), reason, multiplied)


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
