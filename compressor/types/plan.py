"""What is kept of a network: pure data that can be saved, read, compared and replayed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, get_args

import torch
from torch import Tensor

from compressor.errors import BadInput, first_line
from compressor.settings import Attention
from compressor.types.changes import changed, changes_of
from compressor.types.join import joined_masks
from compressor.types.mask import Mask, masks_from
from compressor.types.reason import cause_of, reasons_from
from compressor.types.structure import Kept, Structure, Tie


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
        repaired: the network that was left had its norms corrected or its layers refitted; a replay only cuts.
    """

    widths: Mapping[str, int]
    architecture: str
    events: tuple[Event, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    attention: Attention = "heads"
    bound: tuple[Tie, ...] = ()
    masks: Mapping[str, Mask] = field(default_factory=dict)
    repaired: bool = False

    SCHEMA = 2  # 1 listed all that stays at every event

    @property
    def kept(self) -> dict[str, Tensor]:
        """Group name -> kept indices `(kept,)` into the original network, after the last event."""
        if not self.events:
            return {name: torch.arange(width) for name, width in self.widths.items()}
        return {name: torch.tensor(indices) for name, indices in self.events[-1].kept.items()}

    def event(self, kept: Kept, sparsity: float, *, tie: bool = False, loss: float | None = None) -> Plan:
        """This plan and one more event; `kept` indexes the network as this plan leaves it."""
        before = self.events[-1].kept if self.events else self._whole()
        after = {name: tuple(before[name][node] for node in nodes.tolist()) for name, nodes in kept.items()}
        shared = {name: before[name] if nodes == before[name] else nodes for name, nodes in after.items()}
        return replace(self, events=(*self.events, Event(sparsity, shared, tie, loss)))

    def rounded(self, kept: Kept, *, tie: bool | None = None) -> Plan:
        """This plan ending with other widths: `kept` indexes the original network, and what comes back never went."""
        final = {name: tuple(indices.tolist()) for name, indices in kept.items()}
        if not self.events:
            return self

        def kept_longer(event: Event) -> Event:
            back = {name: {*final[name]}.difference(nodes) for name, nodes in event.kept.items()}
            longer = {name: tuple(sorted(back[name].union(nodes))) for name, nodes in event.kept.items() if back[name]}
            return replace(event, kept={**event.kept, **longer})

        last = replace(self.events[-1], kept=final, tie=self.events[-1].tie if tie is None else tie)
        return replace(self, events=(*map(kept_longer, self.events[:-1]), last))

    def with_masks(self, kept: Mapping[str, Tensor]) -> Plan:
        """This plan, which also sets to zero what `kept`, weight -> booleans, does not keep."""
        return replace(self, masks={name: Mask.of(mask) for name, mask in kept.items()})

    def then(self, later: Plan, structure: Structure | None = None) -> Plan:
        """This plan followed by `later`, a plan of the network that this one leaves, as one plan of the original.

        Where one of the two masks weights and the other removes nodes, those nodes lose their weights. That is not always the
        same as having no nodes: a norm over channels still sees them. Replaying such a plan is refused. A node that became
        constant before its readers went stays in a replay, where a padded border keeps its constant from being moved; what the
        readers said because of it may then be another constant.

        Args:
            structure: of the original network; it is needed where one of the two masks weights and one of them removes nodes.
        Raises:
            BadInput: `later` speaks of other groups or widths; or the structure is missing, or another network's.
        """
        before = self.kept
        if dict(later.widths) != {name: len(nodes) for name, nodes in before.items()}:
            raise BadInput("the later plan does not start from the network that the earlier one leaves")
        events = tuple(
            replace(event, kept={name: tuple(before[name][list(nodes)].tolist()) for name, nodes in event.kept.items()})
            for event in later.events
        )
        plan = replace(self, events=(*self.events, *events), repaired=self.repaired or later.repaired)
        if not self.masks and not later.masks:
            return plan
        if structure is None and any(len(kept) < self.widths[name] for name, kept in plan.kept.items()):
            raise BadInput("plans that mask weights and remove nodes need the original network's structure to be joined")
        return replace(plan, masks=joined_masks(self.masks, later.masks, before, plan.kept, structure))

    def to_json(self, *, masks: bool = True) -> str:
        """The plan as a JSON text; `from_json` reads it back.

        Args:
            masks: with the masks' bits; without, for a file that holds them as tensors.
        """
        before: Mapping[str, tuple[int, ...]] = self._whole()
        events = []
        for e in self.events:
            changes = changes_of({} if e is self.events[-1] else before, e.kept)  # the last is the outcome, and lists all
            events.append({"sparsity": e.sparsity, "tie": e.tie, "loss": e.loss, **changes})
            before = e.kept
        return json.dumps(
            {
                "schema": self.SCHEMA,
                "architecture": self.architecture,
                "widths": dict(self.widths),
                "frozen": dict(self.frozen),
                "causes": {name: cause.value for name, why in self.frozen.items() if (cause := cause_of(why))},
                "attention": self.attention,
                "bound": [[pair.one, pair.other] for pair in self.bound],
                "events": events,
                "masks": {name: mask.as_json(bits=masks) for name, mask in self.masks.items()},
                **({"repaired": True} if self.repaired else {}),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str, masks: Mapping[str, Tensor] | None = None) -> Plan:
        """Read a plan.

        Args:
            masks: weight -> `Mask.packed`, from a file that holds the masks as tensors.
        Raises:
            BadInput: not a plan, or one of a newer schema.
        """
        try:
            raw = json.loads(text)
            if raw["schema"] not in range(1, cls.SCHEMA + 1):
                raise BadInput(f"plan schema {raw['schema']}, this version reads 1 to {cls.SCHEMA}: update compressor")
            bound = tuple(Tie(one, other) for one, other in raw.get("bound", ()))
            attention = raw.get("attention", "heads")
            bits = masks_from(raw.get("masks", {}), masks or {})
            plan = cls(
                dict(raw["widths"]),
                raw["architecture"],
                (),
                reasons_from(dict(raw["frozen"]), raw.get("causes")),
                attention,
                bound,
                bits,
                raw.get("repaired", False) is True,
            )
            plan._check_texts_and_widths()
            plan = replace(plan, events=plan._events_from(raw["events"], raw["schema"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"not a plan: {type(error).__name__} {first_line(error)}") from error
        plan._check_events()
        return plan

    def _whole(self) -> dict[str, tuple[int, ...]]:
        """What is kept before the first event."""
        return {name: tuple(range(width)) for name, width in self.widths.items()}

    def _events_from(self, raw: list[dict[str, Any]], schema: int) -> tuple[Event, ...]:
        """Read the events of a plan of these widths.

        Args:
            schema: in 1, events name every group.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: damaged.
        """
        events: list[Event] = []
        before, listed = self._whole() if raw else {}, 0
        for e in raw:
            kept = changed(before if schema > 1 else {}, e)
            listed += sum(len(nodes) for name, nodes in kept.items() if nodes is not before.get(name))
            if listed > MOST_LISTED:
                raise ValueError(f"more than {MOST_LISTED:,} nodes in its events")
            events.append(Event(float(e["sparsity"]), kept, e["tie"], e["loss"]))
            before = kept
        return tuple(events)

    def _check_texts_and_widths(self) -> None:
        """Refuse what no pruning could have made."""
        texts = (self.architecture, *self.frozen, *self.frozen.values(), *(t for b in self.bound for t in (b.one, b.other)))
        if not all(isinstance(text, str) for text in texts) or self.attention not in get_args(Attention):
            raise BadInput("not a plan: its reasons, fingerprint or attention are not what they should be")
        if not all(_is_index(w) and w > 0 for w in self.widths.values()):
            raise BadInput("not a plan: its widths are not what they should be")
        if sum(self.widths.values()) > MOST_NODES:
            raise BadInput(f"not a plan: more than {MOST_NODES:,} nodes")

    def _check_events(self) -> None:
        """Refuse events that no pruning could have made."""
        before: Mapping[str, tuple[int, ...]] = {}
        for number, event in enumerate(self.events, 1):
            where = f"plan, event {number}"
            numbers = isinstance(event.tie, bool) and isinstance(event.loss, (float, int, NoneType))
            if not numbers or not 0 <= event.sparsity < 1:
                raise BadInput(f"{where}: its sparsity, tie or loss is not what it should be")
            if event.kept.keys() != self.widths.keys():
                raise BadInput(f"{where}: it speaks of other groups than the plan has widths for")
            for name, indices in event.kept.items():
                if indices is before.get(name):
                    continue
                _check_indices(f"{where}, group {name}", indices, self.widths[name])
                if name in before and not set(before[name]).issuperset(indices):
                    raise BadInput(f"{where}, group {name}: a node comes back that an earlier event removed")
            before = event.kept


MOST_NODES = 10_000_000
MOST_LISTED = 50_000_000
"""Nodes of a network, and nodes that all events of a plan list: far above any's; a plan that claims more is damaged."""


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
