"""Convolutions, transposed ones and linear layers as what they are: a matrix, and the rows that it meets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The geometry of `y = W x + b`: a row for each sample and place, what the weight's columns meet there.

    Attributes:
        kernel: sizes of a convolution's kernel; none for a linear layer.
        before: zeros in front of the input; of a transposed convolution, whose input is spread by its stride first, those of
            the convolution by the flipped kernel that it is.
        after: zeros behind it.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    def positions(self, y: Tensor) -> tuple[int, ...]:
        """The sizes of what the rows are counted over: samples and places."""
        return (y.shape[0], *y.shape[2:]) if self.kernel else tuple(y.shape[:-1])

    def at(self, y: Tensor, places: Sequence[Tensor]) -> Tensor:
        """What comes out at some places, `(rows, outputs)`.

        Args:
            places: an index `(rows,)` along each of `positions`.
        """
        index: Any = (places[0], slice(None), *places[1:]) if self.kernel else tuple(places)
        return y[index]

    def columns(self, x: Tensor, places: Sequence[Tensor]) -> Tensor:
        """What the weight meets at some places, `(groups, rows, columns)`, in the order of `matrix`."""
        if not self.kernel:
            return x[tuple(places)][None]
        if self.transposed:
            spread = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)]
            wide, sparse = x.new_zeros(*x.shape[:2], *spread), _every(self.stride)
            wide[sparse] = x
            x = wide
        x = F.pad(x, [n for pair in reversed(list(zip(self.before, self.after, strict=True))) for n in pair])
        for dim, (kernel, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), 2):
            x = x.unfold(dim, (kernel - 1) * dilation + 1, 1 if self.transposed else stride)
        taps = x[_every(self.dilation)]
        index: Any = (places[0], slice(None), *places[1:])
        rows = taps[index]  # (rows, inputs, *kernel)
        return rows.reshape(len(rows), self.groups, -1).transpose(0, 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as `(groups, outputs / groups, columns)`."""
        if not self.kernel:
            return weight[None]
        if self.transposed:
            parts = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
            return parts.flip(list(range(3, parts.dim()))).flatten(2)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight_of(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The weight, of the shape of `like`, whose `matrix` this is."""
        if not self.transposed:
            return matrix.reshape(like.shape)
        parts = matrix.reshape(self.groups, matrix.shape[1], -1, *self.kernel)
        return parts.flip(list(range(3, parts.dim()))).transpose(1, 2).reshape(like.shape)


def geometry(kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: int, more: Any = None) -> dict[str, Any]:
    """The fields of a convolution.

    Args:
        padding: `same`, `valid` or numbers.
        more: the output padding of a transposed one; None: it is none.
    """
    dims = len(kernel)
    stride, dilation = each_dim(stride, dims), each_dim(dilation, dims)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    if more is not None:
        before = tuple(r - p for r, p in zip(reach, each_dim(padding, dims), strict=True))
        after = tuple(b + m for b, m in zip(before, each_dim(more, dims), strict=True))
    elif padding in ("same", "valid"):
        whole = [r if padding == "same" else 0 for r in reach]
        before, after = tuple(r // 2 for r in whole), tuple(r - r // 2 for r in whole)
    else:
        before = after = each_dim(padding, dims)
    return {
        "kernel": tuple(kernel), "stride": stride, "before": before, "after": after, "dilation": dilation, "groups": groups,
        "transposed": more is not None,
    }  # fmt: skip


def affine_of(module: nn.Module) -> Affine | None:
    """A module's geometry; None for other modules."""
    if isinstance(module, nn.Linear):
        return Affine()
    if not isinstance(module, _ConvNd):
        return None
    more = module.output_padding if module.transposed else None
    return Affine(**geometry(module.kernel_size, module.stride, module.padding, module.dilation, module.groups, more))


def each_dim(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers


def _every(steps: Sequence[int]) -> Any:
    """An index of every so many entries along the last dimensions."""
    return (..., *(slice(None, None, step) for step in steps))


def draw(positions: Sequence[int], count: int, generator: torch.Generator) -> list[Tensor]:
    """An index `(count,)` along each of `positions`; all of them, in order, where there are no more than `count`."""
    total = prod(positions)
    flat = torch.arange(total) if total <= count else torch.randint(total, (count,), generator=generator)
    return list(torch.unravel_index(flat, tuple(positions)))
