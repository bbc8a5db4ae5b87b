"""What is kept of a network: pure data that can be saved, read, compared and replayed."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from compressor.errors import BadInput, first_line
from compressor.settings import Attention
from compressor.types.structure import Bound, Kept, Structure


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
