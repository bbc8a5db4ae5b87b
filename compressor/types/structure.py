"""The nouns of the project: pure data, no I/O.

Read in this order: `Slice` and `Group` (which entries of which tensors live or die together), `Structure` (all groups of a
network), `Scores` (one number per node), `Plan` (what is kept).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from compressor.errors import BadInput
from compressor.settings import Attention
from compressor.types.reason import Cause, cause_of

Kept = Mapping[str, Tensor]
"""Group name -> sorted indices `(kept,)` of the nodes that stay."""

Role = Literal["produce", "pass", "carry", "read", "size"]


@dataclass(frozen=True)
class Slice:
    """Where the nodes of a group live along one dimension of one tensor.

    Attributes:
        tensor: name in the state dict, `features.0.weight`.
        dim: dimension that shrinks.
        index: `(width, k)` int64; row n lists the k places of node n (k > 1 where a linear layer reads a flattened map).
        role: `produce` (the outputs of a dense layer), `pass` (a depthwise convolution), `carry` (bias, norm, scale),
            `read` (the inputs of the layers that use the node) or `size`: no tensor, but a number that a module remembers and
            that counts the nodes, `blocks.0.attn.num_heads`.
    """

    tensor: str
    dim: int
    index: Tensor
    role: Role

    @property
    def layer(self) -> str:
        """Name of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    @property
    def maker(self) -> str:
        """What makes the nodes: the layer, or a bare parameter, of which a module may have several."""
        return maker_of(self.tensor)


def maker_of(tensor: str) -> str:
    """The layer that a weight is of; a parameter of another name stands for itself."""
    layer, _, name = tensor.rpartition(".")
    return layer if layer and name.startswith(("weight", "in_proj", "units")) else tensor


@dataclass(frozen=True)
class Group:
    """Nodes that play the same part in the same layers; node n is row n of every slice.

    Attributes:
        name: the first layer that produces it.
        slices: everything that lives or dies with a node.
        frozen: why the group must stay whole; None when it can be pruned.
        multiplied: its nodes are multiplied with each other with no weight between, like queries and keys: a node is silent
            when its producers give 0, not when its readers ignore it.
    """

    name: str
    slices: tuple[Slice, ...]
    frozen: str | None = None
    multiplied: bool = False

    def __post_init__(self) -> None:
        if not self.slices or self.width == 0:
            raise ValueError(f"group {self.name}: no nodes")

    @property
    def width(self) -> int:
        """Number of nodes."""
        return self.slices[0].index.shape[0]

    @property
    def multiplicity(self) -> int:
        """Layer outputs that go with one node: 1, or more for residual sums and depthwise convolutions."""
        return sum(s.index.shape[1] for s in self.slices if s.role in ("produce", "pass"))

    @property
    def cause(self) -> Cause | None:
        """What kind of a reason it is frozen for; None where it is not."""
        return cause_of(self.frozen)

    @property
    def makers(self) -> tuple[str, ...]:
        """Names of the layers, and of bare parameters, that make the nodes."""
        return tuple(dict.fromkeys(s.maker for s in self.slices if s.role in ("produce", "pass")))

    def layers(self, *roles: Role) -> tuple[str, ...]:
        """Names of the layers that hold a slice in one of the roles."""
        return tuple(dict.fromkeys(s.layer for s in self.slices if s.role in roles))


@dataclass(frozen=True)
class Tie:
    """Two weights, `(outputs, inputs, ...)`, that read the same number of channels because the network's code says so."""

    one: str
    other: str


@dataclass(frozen=True)
class Structure:
    """All groups of a network, and what else scoring and surgery need to know of it.

    Attributes:
        groups: prunable and frozen groups, in the order of the layers.
        shapes: shape of every tensor that a group touches.
        norms: producing layer -> the batch norm that directly follows it.
        outputs: names of the layers (or bare parameters) whose outputs are not counted as nodes: those behind which no other
            layer comes, and those that run only in training.
        total_nodes: outputs of all layers but the output layers, in the network as it was first given.
        untraceable: why label flow could not find the groups, where torch-pruning's graph did.
        functional: weights that are applied by a function, not by the module that owns them.
        attention: what the nodes of an attention are.
        bound: what goes together beside what the operators say.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    norms: Mapping[str, str]
    outputs: frozenset[str]
    total_nodes: int
    untraceable: str | None = None
    functional: frozenset[str] = frozenset()
    attention: Attention = "heads"
    bound: tuple[Tie, ...] = ()

    @property
    def found_by(self) -> str:
        """Which graph found the groups, and why if it was not the first choice."""
        why = f"torch-pruning's graph, for torch.export cannot trace the network ({self.untraceable})"
        return "label flow" if self.untraceable is None else why

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups that may lose nodes."""
        return tuple(g for g in self.groups if g.frozen is None)

    @property
    def frozen(self) -> tuple[Group, ...]:
        """The groups that stay whole; each names its reason."""
        return tuple(g for g in self.groups if g.frozen is not None)

    @property
    def nodes(self) -> int:
        """Nodes now, counted like `total_nodes`; node sparsity is `1 - nodes / total_nodes`."""
        return sum(total_by_layer(self).values())

    def reads(self, tensor: str) -> bool:
        """Whether a weight's columns belong to nodes."""
        return any(s.tensor == tensor and s.role == "read" for g in self.groups for s in g.slices)

    @property
    def open_share(self) -> float:
        """The share of the nodes that may be pruned: those of unfrozen groups of more than one node."""
        return sum(g.width * g.multiplicity for g in self.prunable if g.width > 1) / max(1, self.total_nodes)

    def keep_all(self) -> dict[str, Tensor]:
        """The selection that removes nothing."""
        return {g.name: torch.arange(g.width) for g in self.prunable}

    def freeze(self, reasons: Mapping[str, str]) -> Structure:
        """The same structure with the named groups frozen, each for its reason."""
        return replace(self, groups=tuple(replace(g, frozen=reasons.get(g.name, g.frozen)) for g in self.groups))

    def kept_entries(self, kept: Kept) -> dict[tuple[str, int], Tensor]:
        """For every (tensor, dimension) that shrinks, the sorted indices that stay.

        Raises:
            BadInput: an unknown group, an index out of range, doubled or unsorted, or a group left empty.
        """
        self._check(kept)
        gone: dict[tuple[str, int], list[Tensor]] = {}
        for group in self.prunable:
            stays = torch.zeros(group.width, dtype=torch.bool)
            stays[kept[group.name]] = True
            removed = (~stays).nonzero().flatten()
            for s in group.slices if len(removed) else ():
                gone.setdefault((s.tensor, s.dim), []).append(s.index.index_select(0, removed).flatten())
        stay = {}
        for (tensor, dim), places in gone.items():
            mask = torch.ones(self.shapes[tensor][dim], dtype=torch.bool)
            mask[torch.cat(places)] = False
            stay[tensor, dim] = mask.nonzero().flatten()
        return stay

    def shrink(self, kept: Kept) -> Structure:
        """The structure of the network that is left when only `kept` stays, indices renumbered."""
        entries = self.kept_entries(kept)
        renumber = {}
        for (tensor, dim), stay in entries.items():
            places = torch.full((self.shapes[tensor][dim],), -1)
            places[stay] = torch.arange(len(stay))
            renumber[tensor, dim] = places
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        for (tensor, dim), stay in entries.items():
            shapes[tensor][dim] = len(stay)

        def moved(group: Group, s: Slice) -> Slice:
            rows = s.index if group.frozen is not None else s.index[kept[group.name]]
            places = renumber.get((s.tensor, s.dim))
            return replace(s, index=rows if places is None else places[rows])

        groups = tuple(replace(g, slices=tuple(moved(g, s) for s in g.slices)) for g in self.groups)
        return replace(self, groups=groups, shapes={name: tuple(shape) for name, shape in shapes.items()})

    def _check(self, kept: Kept) -> None:
        widths = {g.name: g.width for g in self.prunable}
        for name in kept.keys() ^ widths.keys():
            where = "which this network does not have" if name in kept else "about which the plan says nothing"
            raise BadInput(f"group {name}, {where}: the plan belongs to another architecture")
        for name, indices in kept.items():
            if len(indices) == 0:
                raise BadInput(f"group {name}: no node would be left; keep at least one")
            if int(indices.min()) < 0 or int(indices.max()) >= widths[name]:
                raise BadInput(f"group {name}: index out of range for its {widths[name]} nodes")
            if len(indices) > 1 and not bool((indices[1:] > indices[:-1]).all()):
                raise BadInput(f"group {name}: indices must rise, each once")


def total_by_layer(structure: Structure) -> dict[str, int]:
    """Layer (or bare parameter) -> number of its outputs, for all whose outputs are counted as nodes."""
    widths: dict[str, int] = defaultdict(int)
    for group in structure.groups:
        for s in group.slices:
            if s.role in ("produce", "pass") and s.maker not in structure.outputs:
                widths[s.maker] += s.index.numel()
    return dict(widths)
