"""Labels and their ties: which channel came from where, and which channels must go together."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from compressor.types import OUTPUT

FILLER = 0
"""Label of positions that belong to no node, such as padding. It ties nothing."""


class Labels:
    """Hands out labels (positive integers), remembers which are tied and which must stay."""

    def __init__(self) -> None:
        self._count = 1  # 0 is FILLER
        self._ties: list[Tensor] = []
        self._frozen: list[tuple[Tensor, str]] = []

    def fresh(self, *shape: int) -> Tensor:
        """New labels of the given shape."""
        size = int(np.prod(shape))
        self._count += size
        return torch.arange(self._count - size, self._count).reshape(shape)

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Labels that meet in one position of two tensors of equal shape go together."""
        pairs = torch.stack([one.flatten(), other.flatten()])
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs != FILLER).all(0)]
        if pairs.numel():
            self._ties.append(torch.unique(pairs, dim=1))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Everything that carries one of `labels` stays whole."""
        alive = torch.unique(labels)
        alive = alive[alive != FILLER]
        if alive.numel():
            self._frozen.append((alive, reason))

    def solve(self) -> tuple[np.ndarray, dict[int, str]]:
        """The component of every label, `(labels,)`, and the reason of each frozen component (the first one given)."""
        ties = torch.cat(self._ties, dim=1).numpy() if self._ties else np.zeros((2, 0), dtype=np.int64)
        graph = coo_array((np.ones(ties.shape[1], dtype=np.int8), (ties[0], ties[1])), shape=(self._count,) * 2)
        component = connected_components(graph, directed=False)[1]
        reasons: dict[int, str] = {}
        for labels, reason in sorted(self._frozen, key=lambda entry: entry[1] != OUTPUT):  # being the output comes first
            for node in np.unique(component[labels.numpy()]):
                reasons.setdefault(int(node), reason)
        return component, reasons


def compact(labels: Tensor) -> Tensor:
    """A view without the repetition that `expand` made: stride-0 dimensions shortened to size 1."""
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def constant_along(labels: Tensor, dim: int) -> bool:
    """Whether all slices along `dim` carry the same labels; filler counts as any."""
    labels = compact(labels)
    return labels.shape[dim] == 1 or bool(((labels == collapsed(labels, dim)) | (labels == FILLER)).all())


def collapsed(labels: Tensor, dim: int) -> Tensor:
    """The labels with `dim` shortened to size 1: of labels that are constant along it, that one."""
    return compact(labels).amax(dim, keepdim=True)  # filler is the smallest of all
