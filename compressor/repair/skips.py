"""Residual sums: the layer that runs last before one may make up for what the other summand lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compressor.coupling.flow import operator_of
from compressor.repair.layers import Layer, arguments, norm_behind

SUMS = {"add", "add_"}
UNCHANGED = {"dropout", "dropout_", "feature_dropout", "alias", "clone", "contiguous", "detach", "to", "_to_copy"}


@dataclass(frozen=True)
class Skip:
    """The other summand of the sum that a layer closes, and what lies between.

    Attributes:
        other: the other summand, known before the layer runs.
        norm: the batch norm in eval mode between the layer and the sum.
        scales: names of parameters that multiply each channel in between.
    """

    other: fx.Node
    norm: fx.Node | None
    scales: tuple[str, ...]

    def gain(self, tensors: Mapping[str, Tensor], stored: Mapping[fx.Node, str]) -> Tensor | None:
        """What one of the layer's outputs is multiplied with on the way to the sum, `(outputs,)`; None: with 1.

        Args:
            tensors: the network's parameters and buffers.
        """
        parts = [tensors[name].double().flatten() for name in self.scales]
        if self.norm is not None:
            given = arguments(self.norm)
            variance = tensors[stored[given["running_var"]]].double()
            weight = given["weight"]
            parts.append(torch.rsqrt(variance + given["eps"]) * (1 if weight is None else tensors[stored[weight]].double()))
        return None if not parts else torch.stack(torch.broadcast_tensors(*parts)).prod(0)


def skips_of(
    nodes: Sequence[fx.Node], layers: Sequence[Layer], stored: Mapping[fx.Node, str]
) -> dict[fx.Node, Skip]:  # fmt: skip
    """The layers of a program that close a residual sum, by their operators."""
    number = {node: n for n, node in enumerate(nodes)}
    its = {layer.node: layer for layer in layers}
    found: dict[fx.Node, Skip] = {}
    for node in nodes:
        if node.op != "call_function" or operator_of(node) not in SUMS:
            continue
        given = arguments(node)
        a, b = given.get("self"), given.get("other")
        if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or {a, b} & stored.keys() or given.get("alpha", 1) != 1:
            continue
        for one, other in ((a, b), (b, a)):
            if _shape(one) != _shape(other) or _shape(one) is None:
                continue
            way = _way(one, node, its, stored)
            if way is not None and number[other] < number[way[0]]:
                found[way[0]] = Skip(other, *way[1:])
    return found


def _way(
    summand: fx.Node, total: fx.Node, layers: Mapping[fx.Node, Layer], stored: Mapping[fx.Node, str]
) -> tuple[fx.Node, fx.Node | None, tuple[str, ...]] | None:
    """Back from a summand to a layer through what is affine in each channel: the layer's operator, the norm, and the scales."""
    norm: fx.Node | None = None
    scales: list[str] = []
    node = summand
    while len(node.users) == 1 and node.op == "call_function":
        if node in layers:
            return node, norm, tuple(scales)
        name, given = operator_of(node), arguments(node)
        if name in UNCHANGED and not given.get("train"):
            source = node.args[0]
        elif name == "batch_norm" and norm is None and norm_behind(given["input"], stored) is node:
            norm, source = node, given["input"]
        elif name == "mul" and (scale := _scale(given, layers, stored)) is not None:
            source, by = scale
            scales.append(by)
        else:
            return None
        if not isinstance(source, fx.Node):
            return None
        node = source
    return None


def _scale(
    given: Mapping[str, object], layers: Mapping[fx.Node, Layer], stored: Mapping[fx.Node, str]
) -> tuple[fx.Node, str] | None:
    """The activations and the parameter of a product of each channel with a number of its own."""
    pair = given.get("self"), given.get("other")
    for x, by in (pair, pair[::-1]):
        if isinstance(by, fx.Node) and by in stored and isinstance(x, fx.Node) and x not in stored:
            shape = by.meta["val"].shape
            if sum(n > 1 for n in shape) <= 1 and by.meta["val"].numel() in x.meta["val"].shape:
                return x, stored[by]
    return None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None
