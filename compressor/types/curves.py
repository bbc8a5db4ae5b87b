"""What a network loses as the nodes of each of its groups go."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import BadInput
from compressor.types.structure import Structure

SCHEMA = 1
LITTLE = 0.01
"""Squared distance to the dense outputs, as a share of their variance, that is hardly a loss."""


@dataclass(frozen=True)
class Curve:
    """What a network loses as the nodes of one group go.

    Attributes:
        widths: nodes left, rising, `(points,)`; all of them last.
        losses: squared distance to the dense outputs, as a share of their variance; 0 for all of them.
    """

    widths: tuple[int, ...]
    losses: tuple[float, ...]

    def packed(self) -> Tensor:
        """As a tensor `(2, points)`, for files."""
        return torch.tensor([self.widths, self.losses], dtype=torch.float64)

    @classmethod
    def of(cls, packed: Tensor) -> Curve:
        """From what `packed` gives."""
        return cls(tuple(map(int, packed[0])), tuple(map(float, packed[1])))

    @property
    def width(self) -> int:
        """Nodes of the group."""
        return self.widths[-1]

    def at(self, widths: Sequence[int]) -> list[float]:
        """The losses at other widths: their square roots, which are distances, lie on lines between those of the nearest."""
        return [float(root) ** 2 for root in np.interp(widths, self.widths, np.sqrt(self.losses))]

    def without(self, share: float) -> float:
        """The loss where a share of the nodes is gone, one at least stays."""
        return self.at([max(1, self.width - round(share * self.width))])[0]


@dataclass(frozen=True)
class Sensitivity:
    """The curves of a network's groups, and how they were measured.

    Attributes:
        method: that says which nodes of a group go first.
        refitted: the layers behind were refitted at each point, where that was possible.
        curves: of each group.
        layers: of each group, those that make its nodes.
    """

    method: str
    refitted: bool
    curves: Mapping[str, Curve]
    layers: Mapping[str, tuple[str, ...]]

    @property
    def sensitive(self) -> tuple[str, ...]:
        """The groups that lose more than little with an eighth of their nodes: candidates to freeze, the worst first."""
        lost = {name: curve.without(1 / 8) for name, curve in self.curves.items() if curve.width > 1}
        return tuple(sorted((name for name in lost if lost[name] > LITTLE), key=lambda name: -lost[name]))

    @property
    def spare(self) -> tuple[str, ...]:
        """The groups that lose only little with all but an eighth of their nodes."""
        return tuple(name for name, curve in self.curves.items() if curve.width > 1 and curve.without(7 / 8) <= LITTLE)

    def as_dict(self) -> dict[str, Any]:
        """For files: `of` reads it."""
        groups = {
            name: {"layers": list(self.layers[name]), "widths": list(c.widths), "losses": list(c.losses)}
            for name, c in self.curves.items()
        }
        return {"schema": SCHEMA, "kind": KIND, "method": self.method, "refitted": self.refitted, "groups": groups}

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """From what `as_dict` gives, as JSON.

        Raises:
            BadInput: it is something else.
        """
        try:
            held = json.loads(text)
            if held["kind"] != KIND or held["schema"] != SCHEMA:
                raise BadInput(f"its kind is {held['kind']!r} of schema {held['schema']!r}, not {KIND!r} of {SCHEMA}")
            curves = {name: _curve(of) for name, of in held["groups"].items()}
            layers = {name: tuple(map(str, of["layers"])) for name, of in held["groups"].items()}
            return cls(str(held["method"]), bool(held["refitted"]), curves, layers)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInput("no file of `compress sensitivity`") from error

    def fitting(self, found: Structure) -> Mapping[str, Curve]:
        """The curves of a network's groups.

        Raises:
            BadInput: they are of another network.
        """
        for group in found.prunable:
            curve = self.curves.get(group.name)
            if curve is None or curve.width != group.width:
                its = "none" if curve is None else f"{curve.width:,}"
                raise BadInput(f"its curves are of another network: {group.name} has {group.width:,} nodes here, {its} there")
        return {group.name: self.curves[group.name] for group in found.prunable}


KIND = "sensitivity"


def _curve(held: Mapping[str, Any]) -> Curve:
    widths, losses = tuple(map(int, held["widths"])), tuple(map(float, held["losses"]))
    rising = all(a < b for a, b in zip((0, *widths), widths, strict=False))
    if not rising or not widths or len(widths) != len(losses) or not all(x >= 0 and not math.isnan(x) for x in losses):
        raise ValueError("no curve")
    return Curve(widths, losses)
