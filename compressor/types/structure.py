"""The nouns of the project: pure data, no I/O.

Read in this order: `Slice` and `Group` (which entries of which tensors live or die together), `Structure` (all groups of a
network), `Scores` (one number per node), `Plan` (what is kept).
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from compressor.errors import BadInput, WrongUsage, first_line

Kept = Mapping[str, Tensor]
"""Group name -> sorted indices `(kept,)` of the nodes that stay."""

Role = Literal["produce", "pass", "carry", "read", "size"]

Attention = Literal["heads", "dims"]
"""What the nodes of an attention are: whole heads, or the dimensions inside all of its heads."""


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

    def layers(self, *roles: Role) -> tuple[str, ...]:
        """Names of the layers that hold a slice in one of the roles."""
        return tuple(dict.fromkeys(s.layer for s in self.slices if s.role in roles))


LABEL_FLOW = "label flow"


@dataclass(frozen=True)
class Bound:
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
        outputs: names of the layers whose outputs are not counted as nodes: those behind which no other layer comes, and those
            that run only in training.
        total_nodes: outputs of all layers but the output layers, in the network as it was first given.
        found_by: which graph found the groups, and why if it was not the first choice.
        functional: weights that are applied by a function, not by the module that owns them.
        attention: what the nodes of an attention are.
        bound: what goes together beside what the operators say.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    norms: Mapping[str, str]
    outputs: frozenset[str]
    total_nodes: int
    found_by: str = LABEL_FLOW
    functional: frozenset[str] = frozenset()
    attention: Attention = "heads"
    bound: tuple[Bound, ...] = ()

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


OUTPUT = "it is the network's output"
"""Why a group that the network returns is frozen."""

ASKED = "asked for"
"""What the reason of a group that the user froze begins with."""

NOT_IN_EVAL = "it runs only in training, if at all, and no score sees it"
"""Why a layer that eval mode does not reach keeps its outputs, such as those of an auxiliary head."""


@dataclass(frozen=True)
class Scores:
    """One number per node or weight, higher = keep.

    Attributes:
        values: group name -> `(width,)`, or weight tensor's name -> its shape; float64, finite.
        loss: the loss that the scores are the elasticity of, where the method has one.
        samples: number of samples that were seen.
        unit: what is scored.
    """

    values: Mapping[str, Tensor]
    loss: float | None = None
    samples: int = 0
    unit: Literal["node", "weight"] = "node"

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not bool(torch.isfinite(value).all()):
                raise BadInput(f"{name}: a score is not finite; look for NaN or huge values in the weights and the data")

    def curves(self, points: int = 400, most: int = 100_000) -> dict[str, Tensor]:
        """Each part's scores in falling order, at that many places; of large parts, of a sample of `most` entries."""
        found = {}
        for name, value in self.values.items():
            flat = value.flatten()
            ordered = flat[:: max(1, len(flat) // most)].sort(descending=True).values
            found[name] = ordered[torch.linspace(0, len(ordered) - 1, min(points, len(ordered))).long()].double()
        return found

    def negative(self) -> Scores:
        """The same with the order reversed."""
        return replace(self, values={name: -value for name, value in self.values.items()})

    def covers(self, structure: Structure) -> None:
        """Check that there is one score for every prunable node and none for anything else.

        Raises:
            ValueError: a group is missing, unknown, or of another width.
        """
        self.cover({g.name: (g.width,) for g in structure.prunable})

    def cover(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that there is one score for everything in groups or weights of these shapes.

        Raises:
            ValueError: one is missing, unknown, or of another shape.
        """
        found = {name: tuple(value.shape) for name, value in self.values.items()}
        if shapes != found:
            wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
            raise ValueError(f"scores do not fit the network: {', '.join(wrong)}")


@dataclass(frozen=True)
class Mask:
    """Which entries of a weight stay.

    Attributes:
        shape: of the weight in the original network.
        bits: one for each entry, 1 = stays, the last index fastest, eight to a byte.
    """

    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def of(cls, kept: Tensor) -> Mask:
        """From booleans of the weight's shape."""
        return cls(tuple(kept.shape), np.packbits(kept.cpu().numpy().reshape(-1)).tobytes())

    def tensor(self) -> Tensor:
        """Booleans of the weight's shape, True = stays."""
        flat = np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=math.prod(self.shape))
        return torch.from_numpy(flat.reshape(self.shape)).bool()

    def as_json(self) -> dict[str, Any]:
        """For a plan's text: the bits compressed."""
        return {"shape": list(self.shape), "bits": base64.b64encode(zlib.compress(self.bits)).decode()}

    @classmethod
    def from_json(cls, raw: Any) -> Mask:
        """Read a mask.

        Raises:
            ValueError: damaged.
        """
        shape = tuple(raw["shape"])
        if not all(_is_index(n) and n > 0 for n in shape) or math.prod(shape) > MOST_WEIGHTS:
            raise ValueError("a mask's shape")
        size = (math.prod(shape) + 7) // 8
        try:
            reader = zlib.decompressobj()
            bits = reader.decompress(base64.b64decode(raw["bits"], validate=True), size)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(bits) != size:
            raise ValueError("a mask's length")
        return cls(shape, bits)


@dataclass(frozen=True)
class Event:
    """One pruning step.

    Attributes:
        sparsity: node sparsity that the event aimed at.
        kept: group name -> kept nodes, as indices into the original network.
        tie: the cut went through nodes of equal score.
        loss: the loss when the event was scored.
    """

    sparsity: float
    kept: Mapping[str, tuple[int, ...]]
    tie: bool = False
    loss: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is kept of a network, event by event. Pure data: it can be saved, read, compared and replayed.

    Attributes:
        widths: prunable group -> its number of nodes in the original network.
        events: in the order they happened; the last one is the outcome.
        architecture: fingerprint of the original network's tensor names and shapes.
        frozen: group that stayed whole -> the reason.
        attention: what the nodes of an attention are.
        bound: what goes together beside what the operators say.
        masks: weight -> which of its entries stay, where single weights were removed; all others are zero.
    """

    widths: Mapping[str, int]
    architecture: str
    events: tuple[Event, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    attention: Attention = "heads"
    bound: tuple[Bound, ...] = ()
    masks: Mapping[str, Mask] = field(default_factory=dict)

    SCHEMA = 1

    @property
    def kept(self) -> dict[str, Tensor]:
        """Group name -> kept indices `(kept,)` into the original network, after the last event."""
        if not self.events:
            return {name: torch.arange(width) for name, width in self.widths.items()}
        return {name: torch.tensor(indices) for name, indices in self.events[-1].kept.items()}

    def event(self, kept: Kept, sparsity: float, *, tie: bool = False, loss: float | None = None) -> Plan:
        """This plan and one more event; `kept` indexes the network as this plan leaves it."""
        before = self.kept
        original = {name: tuple(before[name][indices].tolist()) for name, indices in kept.items()}
        return replace(self, events=(*self.events, Event(sparsity, original, tie, loss)))

    def rounded(self, kept: Kept, *, tie: bool | None = None) -> Plan:
        """This plan ending with other widths: `kept` indexes the original network, and what comes back never went."""
        final = {name: tuple(indices.tolist()) for name, indices in kept.items()}
        if not self.events:
            return self

        def kept_longer(event: Event) -> Event:
            joined = {name: tuple(sorted({*indices, *final[name]})) for name, indices in event.kept.items()}
            return replace(event, kept=joined)

        last = replace(self.events[-1], kept=final, tie=self.events[-1].tie if tie is None else tie)
        return replace(self, events=(*map(kept_longer, self.events[:-1]), last))

    def with_masks(self, kept: Mapping[str, Tensor]) -> Plan:
        """This plan, which also sets to zero what `kept`, weight -> booleans, does not keep."""
        return replace(self, masks={name: Mask.of(mask) for name, mask in kept.items()})

    def then(self, later: Plan, structure: Structure | None = None) -> Plan:
        """This plan followed by `later`, a plan of the network that this one leaves, as one plan of the original.

        Args:
            structure: of the original network; it is needed where one of the two masks weights and one of them removes nodes.
        Raises:
            BadInput: `later` speaks of other groups or widths; or the structure is missing, or another network's.
        """
        left = {name: len(indices) for name, indices in self.kept.items()}
        if dict(later.widths) != left:
            raise BadInput("the later plan does not start from the network that the earlier one leaves")
        plan, before = self, self.kept
        for event in later.events:
            kept = {name: tuple(before[name][list(indices)].tolist()) for name, indices in event.kept.items()}
            plan = replace(plan, events=(*plan.events, replace(event, kept=kept)))
        return replace(plan, masks=self._masks_then(later, plan, structure)) if self.masks or later.masks else plan

    def _masks_then(self, later: Plan, joined: Plan, structure: Structure | None) -> dict[str, Mask]:
        """The masks of both plans, in the original weights' shapes.

        A node that a plan without masks removes loses its weights. One that a plan with masks removes was dead by those masks:
        its readers keep theirs, for what it always says moves into their biases.
        """
        if structure is None and any(len(kept) < self.widths[name] for name, kept in joined.kept.items()):
            raise BadInput("plans that mask weights and remove nodes need the original network's structure to be joined")
        shapes = {} if structure is None else structure.shapes
        between, end = ({} if structure is None else structure.kept_entries(plan.kept) for plan in (self, joined))
        masks = {}
        for name in self.masks.keys() | later.masks.keys():
            shape = self.masks[name].shape if name in self.masks else shapes.get(name, later.masks[name].shape)
            left = [between.get((name, dim), torch.arange(size)) for dim, size in enumerate(shape)]
            stays = self.masks[name].tensor() if name in self.masks else torch.full(shape, bool(self.masks))
            if later.masks:
                if name not in later.masks or tuple(map(len, left)) != later.masks[name].shape:
                    raise BadInput(f"{name}: the later plan's mask does not fit what the earlier one leaves of it")
                there = later.masks[name].tensor()
                places = tuple(i.reshape([-1 if d == dim else 1 for d in range(len(shape))]) for dim, i in enumerate(left))
                stays[places] = there & stays[places] if self.masks else there
            else:
                for dim in range(len(shape)):
                    gone = sorted({*left[dim].tolist()} - {*end.get((name, dim), left[dim]).tolist()})
                    stays.index_fill_(dim, torch.tensor(gone, dtype=torch.int64), False)
            masks[name] = Mask.of(stays)
        return masks

    def to_json(self) -> str:
        """The plan as a JSON text; `from_json` reads it back."""
        events = [
            {"sparsity": e.sparsity, "tie": e.tie, "loss": e.loss, "kept": {n: list(i) for n, i in e.kept.items()}}
            for e in self.events
        ]
        return json.dumps(
            {
                "schema": self.SCHEMA,
                "architecture": self.architecture,
                "widths": dict(self.widths),
                "frozen": dict(self.frozen),
                "attention": self.attention,
                "bound": [[pair.one, pair.other] for pair in self.bound],
                "events": events,
                "masks": {name: mask.as_json() for name, mask in self.masks.items()},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan.

        Raises:
            BadInput: not a plan, or one of a newer schema.
        """
        try:
            raw = json.loads(text)
            if raw["schema"] != cls.SCHEMA:
                raise BadInput(f"plan schema {raw['schema']}, this version reads {cls.SCHEMA}: update compressor")
            events = tuple(
                Event(float(e["sparsity"]), {n: tuple(i) for n, i in e["kept"].items()}, e["tie"], e["loss"])
                for e in raw["events"]
            )
            bound = tuple(Bound(one, other) for one, other in raw.get("bound", ()))
            attention = raw.get("attention", "heads")
            masks = {str(name): Mask.from_json(mask) for name, mask in raw.get("masks", {}).items()}
            plan = cls(dict(raw["widths"]), raw["architecture"], events, dict(raw["frozen"]), attention, bound, masks)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"not a plan: {type(error).__name__} {first_line(error)}") from error
        plan._check()
        return plan

    def _check(self) -> None:
        """Refuse what no pruning could have made."""
        texts = (self.architecture, *self.frozen, *self.frozen.values(), *(t for b in self.bound for t in (b.one, b.other)))
        if not all(isinstance(text, str) for text in texts) or self.attention not in get_args(Attention):
            raise BadInput("not a plan: its reasons, fingerprint or attention are not what they should be")
        if not all(_is_index(w) and w > 0 for w in self.widths.values()):
            raise BadInput("not a plan: its widths are not what they should be")
        if sum(self.widths.values()) > MOST_NODES:
            raise BadInput(f"not a plan: more than {MOST_NODES:,} nodes")
        before: dict[str, frozenset[int]] = {}
        for number, event in enumerate(self.events, 1):
            where = f"plan, event {number}"
            numbers = isinstance(event.tie, bool) and isinstance(event.loss, (float, int, NoneType))
            if not numbers or not 0 <= event.sparsity < 1:
                raise BadInput(f"{where}: its sparsity, tie or loss is not what it should be")
            if event.kept.keys() != self.widths.keys():
                raise BadInput(f"{where}: it speaks of other groups than the plan has widths for")
            for name, indices in event.kept.items():
                _check_indices(f"{where}, group {name}", indices, self.widths[name])
                if name in before and not before[name].issuperset(indices):
                    raise BadInput(f"{where}, group {name}: a node comes back that an earlier event removed")
                before[name] = frozenset(indices)


MOST_WEIGHTS = 10**10
MOST_NODES = 10_000_000
"""Far above any network's; a plan that claims more is damaged."""


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_indices(where: str, indices: tuple[Any, ...], width: int) -> None:
    """Refuse kept indices that no pruning could have made."""
    if not indices:
        raise BadInput(f"{where}: no node would be left; keep at least one")
    if not all(_is_index(i) for i in indices) or min(indices) < 0 or max(indices) >= width:
        raise BadInput(f"{where}: index out of range for its {width} nodes")
    if any(one >= other for one, other in itertools.pairwise(indices)):
        raise BadInput(f"{where}: indices must rise, each once")


def fingerprint(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """A short name for an architecture: a hash of its tensors' names and shapes."""
    text = json.dumps(sorted((name, list(shape)) for name, shape in shapes))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class InputSpec:
    """One input of a network: `3x224x224`, `int64:128`, or with the argument's name `ids:int64:128`.

    Attributes:
        shape: of one sample, without the batch.
        dtype: name of the data type.
        name: the argument of `forward`; None for an input given by position.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None

    DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        named = [self.name] if self.name else []
        return ":".join([*named, *([self.dtype] if named or self.dtype != "float32" else []), shape])

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read `[name:][dtype:]3x224x224`.

        Raises:
            WrongUsage: it is written otherwise, or a size is 0.
        """
        *before, size = text.split(":")
        dtype = before.pop() if before and before[-1] in cls.DTYPES else "float32"
        if len(before) > 1 or not all(name.isidentifier() for name in before):
            raise WrongUsage(f"input {text}: write SHAPE, DTYPE:SHAPE or NAME:DTYPE:SHAPE; DTYPE is {', '.join(cls.DTYPES)}")
        sizes = size.split("x")
        if not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) > 0 for part in sizes):
            raise WrongUsage(f"input {text}: a shape is sizes of at least 1 without the batch, such as 3x224x224")
        return cls(tuple(int(part) for part in sizes), dtype, before[0] if before else None)


@dataclass(frozen=True)
class Origin:
    """Where a network comes from; travels with it as `model.origin` and in our checkpoints.

    Attributes:
        network: its builder: a name in `compressor.networks`, `torchvision:resnet50`, `timm:...`, `package.module:factory`
            or `file.py:factory`; None for a network that was loaded as a whole.
        arguments: what the builder was called with.
        inputs: what it takes; empty where that is not known.
        data: name or path of the data set it belongs to; None for none.
        plan: what was removed since it was built; by the last pruning alone, where it and an earlier one cannot be joined.
        preprocessing: mean and standard deviation that images are normalised with, where they were chosen.
        notes: sentences about how the file was read; they are not saved.
        sizes: numbers of channels that modules remember in their attributes, where nodes were removed: `attn.num_heads` -> 3.
    """

    network: str | None
    arguments: Mapping[str, Any]
    inputs: tuple[InputSpec, ...] = ()
    data: str | None = None
    plan: Plan | None = None
    preprocessing: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input."""
        return self.inputs[0].shape if self.inputs else ()


def total_by_layer(structure: Structure) -> dict[str, int]:
    """Layer name -> number of its outputs, for every layer whose outputs are counted as nodes."""
    widths: dict[str, int] = defaultdict(int)
    for group in structure.groups:
        for s in group.slices:
            if s.role in ("produce", "pass") and s.layer not in structure.outputs:
                widths[s.layer] += s.index.numel()
    return dict(widths)
