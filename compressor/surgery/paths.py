"""Which nodes and weights lie on a path from the network's input to its output, once single weights are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.types.reason import Cause
from compressor.types.structure import Structure

NOBODY = -1
"""The owner of a row or column that belongs to no node: of the network's inputs."""


@dataclass(frozen=True)
class Paths:
    """What is left of a network.

    Attributes:
        reachable: group -> booleans `(width,)`: something of the input arrives there.
        observable: group -> booleans `(width,)`: something of it arrives at the output.
        effective: weights that are left and lie on a path from input to output.
        silent: outputs of the network that nothing of the input arrives at, of `outputs`.
    """

    reachable: Mapping[str, Tensor]
    observable: Mapping[str, Tensor]
    effective: int
    silent: int
    outputs: int

    def dead(self, group: str) -> Tensor:
        """Booleans `(width,)`: nodes on no path."""
        return ~(self.reachable[group] & self.observable[group])

    @property
    def connected(self) -> bool:
        """Whether the output depends on the input at all."""
        return self.silent < self.outputs or not self.outputs


@dataclass(frozen=True)
class _Weight:
    """A weight between nodes: booleans `(rows, columns)`, and who owns each row and each column."""

    name: str
    links: Tensor
    rows: Tensor
    columns: Tensor


def paths(model: nn.Module, structure: Structure, kept: Mapping[str, Tensor], mixed: Collection[str]) -> Paths:
    """Follow the weights that are left from the input, and back from the output.

    Everything is taken to get through where not all that comes in or goes out is known (a product of queries and keys, a frozen
    group, a weight that several modules share), and where a norm takes its mean over a group's channels: each of them then
    sees all the others.

    Args:
        model: only the names of its parameters are looked at.
        mixed: names of the weights of norms over channels, see `compressor.proof.reference.over_channels`.
        kept: weight -> booleans of its shape; other weights are whole.
    """
    first, total = {}, 0
    for group in structure.groups:
        first[group.name] = range(total, total + group.width)
        total += group.width
    weights, depthwise = _weights(structure, kept, first)
    made, read = torch.zeros(total + 1, dtype=torch.bool), torch.zeros(total + 1, dtype=torch.bool)
    for weight in weights:
        made[weight.rows] = True
        read[weight.columns] = True
    through = {*mixed, *_shared(model)}
    for group in structure.groups:
        known = group.cause in (None, Cause.OUTPUT, Cause.ASKED)
        if not known or group.multiplied or any(s.tensor in through for s in group.slices):
            made[first[group.name]] = read[first[group.name]] = False
        if group.cause is Cause.OUTPUT:
            read[first[group.name]] = False
    made[NOBODY] = read[NOBODY] = False
    reachable, observable = ~made, ~read
    while sum(_step(reachable, w.columns, w.rows, w.links) for w in weights):
        pass
    while sum(_step(observable, w.rows, w.columns, w.links.T) for w in reversed(weights)):
        pass
    alive = reachable & observable
    effective = sum(_count(kept[w.name], alive[w.rows], alive[w.columns], w) for w in weights if w.name in kept)
    effective += sum(int(kept[name][alive[owners]].sum()) for name, owners in depthwise.items())
    followed = {w.name for w in weights} | depthwise.keys()
    effective += sum(int(mask.sum()) for name, mask in kept.items() if name not in followed)
    ends = [g for g in structure.groups if g.cause is Cause.OUTPUT]
    silent = sum(int((~reachable[first[g.name]]).sum()) for g in ends)
    named = {g.name: list(first[g.name]) for g in structure.groups}
    return Paths(
        {name: reachable[places] for name, places in named.items()},
        {name: observable[places] for name, places in named.items()},
        effective, silent, sum(g.width for g in ends),
    )  # fmt: skip


def _shared(model: nn.Module) -> set[str]:
    """All names of the parameters that have more than one."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {name for its in names.values() if len(its) > 1 for name in its}


def _step(reached: Tensor, sources: Tensor, targets: Tensor, links: Tensor) -> bool:
    """Let what is reached go through one weight, `links` `(targets, sources)`; whether that reached anything new."""
    new = targets[(links & reached[sources]).any(1)]
    new = new[~reached[new]]
    reached[new] = True
    return len(new) > 0


def _count(kept: Tensor, rows: Tensor, columns: Tensor, weight: _Weight) -> int:
    matrix = kept if weight.links.shape == kept.shape[:2] else kept.transpose(0, 1)
    return int(matrix[rows][:, columns].sum())


def _weights(
    structure: Structure, kept: Mapping[str, Tensor], first: Mapping[str, range]
) -> tuple[list[_Weight], dict[str, Tensor]]:
    """The weights between nodes, in the order of the layers; and of depthwise ones, name -> who owns each channel."""
    owners: dict[tuple[str, int], Tensor] = {}
    rows: dict[str, int] = {}
    passing: dict[str, Tensor] = {}
    for group in structure.groups:
        nodes = torch.tensor(list(first[group.name]))[:, None]
        for s in group.slices:
            size = structure.shapes.get(s.tensor, ())
            if s.role == "pass" and s.tensor in kept:
                its = passing.setdefault(s.tensor, torch.full((size[s.dim],), NOBODY))
            elif len(size) > 1 and (s.role in ("produce", "read") or (s.role == "carry" and s.tensor in kept)):
                its = owners.setdefault((s.tensor, s.dim), torch.full((size[s.dim],), NOBODY))
                if s.role != "read":  # the gates of a recurrent cell are carried
                    rows[s.tensor] = s.dim
            else:
                continue
            its[s.index] = nodes.expand_as(s.index)
    found = []
    for name, dim in rows.items():
        size = structure.shapes[name]
        whole = torch.ones(size[:2], dtype=torch.bool)
        links = kept[name].flatten(2).any(2) if name in kept and len(size) > 2 else kept.get(name, whole)
        nobody = [torch.full((n,), NOBODY) for n in size[:2]]
        found.append(_Weight(name, links.T if dim else links, owners[name, dim], owners.get((name, 1 - dim), nobody[1 - dim])))
    return found, passing
