"""Labels and their ties: which channel came from where, and which channels must go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compressor.types.reason import Cause, cause_of

FILLER = 0
"""Label of positions that belong to no node, such as padding. It ties nothing."""


class Unfit(Exception):
    """A form of an operator that its rule cannot follow; the message says which. What goes in stays whole then."""


class Labels:
    """Hands out labels (positive integers), remembers which are tied and which must stay."""

    def __init__(self) -> None:
        self._count = 1  # 0 is FILLER
        self._ties: list[Tensor] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self._multiplied: list[Tensor] = []

    def fresh(self, *shape: int) -> Tensor:
        """New labels of the given shape."""
        size = int(np.prod(shape))
        self._count += size
        return torch.arange(self._count - size, self._count).reshape(shape)

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Labels that meet in one position of two tensors of equal shape go together."""
        for dim in range(one.dim()):  # what both only repeat is looked at once
            if one.stride(dim) == other.stride(dim) == 0 and one.shape[dim] > 1:
                one, other = one.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
        one, other = one.flatten(), other.flatten()
        differ = (one != other) & (one != FILLER) & (other != FILLER)
        if bool(differ.any()):
            self._ties.append(torch.unique(one[differ] << 32 | other[differ]))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Everything that carries one of `labels` stays whole."""
        alive = torch.unique(labels)
        alive = alive[alive != FILLER]
        if alive.numel():
            self._frozen.append((alive, reason))

    def multiply(self, labels: Tensor) -> None:
        """Note channels that are multiplied with each other and summed, with no weight between."""
        self._multiplied.append(torch.unique(labels))

    def solve(self) -> Solution:
        """Put together what is tied."""
        from scipy.sparse import coo_array  # a quarter of a second, which a training without pruning does not wait for
        from scipy.sparse.csgraph import connected_components

        ties = torch.cat(self._ties).numpy() if self._ties else np.zeros(0, dtype=np.int64)
        ends = ties >> 32, ties & 0xFFFFFFFF
        graph = coo_array((np.ones(len(ties), dtype=np.int8), ends), shape=(self._count,) * 2)
        component = connected_components(graph, directed=False)[1]
        reasons: dict[int, str] = {}
        for labels, reason in sorted(
            self._frozen, key=lambda entry: cause_of(entry[1]) is not Cause.OUTPUT
        ):  # being the output comes first
            for node in np.unique(component[labels.numpy()]):
                reasons.setdefault(int(node), reason)
        multiplied = np.unique(component[torch.cat(self._multiplied).numpy()]) if self._multiplied else ()
        return Solution(component, reasons, frozenset(map(int, multiplied)))


@dataclass(frozen=True)
class Solution:
    """What the ties come to.

    Attributes:
        component: of every label `(labels,)`; labels of one component go together.
        reasons: component -> why it must stay (the first reason given).
        multiplied: components that are multiplied with each other, with no weight between.
    """

    component: np.ndarray
    reasons: dict[int, str]
    multiplied: frozenset[int]


def compact(labels: Tensor) -> Tensor:
    """A view without the repetition that `expand` made: stride-0 dimensions shortened to size 1."""
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def constant_along(labels: Tensor, dim: int) -> bool:
    """Whether all slices along `dim` carry the same labels; filler counts as any.

    Raises:
        Unfit: there are none.
    """
    labels = compact(labels)
    _check_slices(labels, dim)
    return labels.shape[dim] == 1 or bool(((labels == collapsed(labels, dim)) | (labels == FILLER)).all())


def collapsed(labels: Tensor, dim: int) -> Tensor:
    """The labels with `dim` shortened to size 1: of labels that are constant along it, that one.

    Raises:
        Unfit: there are none.
    """
    _check_slices(labels, dim)
    return compact(labels).amax(dim, keepdim=True)  # filler is the smallest of all


def _check_slices(labels: Tensor, dim: int) -> None:
    if not labels.dim() or not labels.shape[dim]:
        raise Unfit("a tensor without entries, or without dimensions")
