"""What came out of a pruning, in numbers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compressor.errors import NotEquivalent
from compressor.model.cost import Cost, tensor_bytes
from compressor.model.precision import bytes_as_it_came
from compressor.model.speed import multiple_of
from compressor.proof.equivalence import Equivalence
from compressor.pruning.events import PruningState
from compressor.pruning.facts import Note
from compressor.pruning.result_text import result_text
from compressor.repair import Repair
from compressor.settings import Ablation, Pruning, Resource
from compressor.surgery.network import GroupedNetwork
from compressor.types.plan import Plan
from compressor.types.structure import Structure, total_by_layer

NEAR_COLLAPSE = 4
"""A group with fewer nodes than this is reported by name."""


@dataclass(frozen=True)
class BudgetOutcome:
    """A budget and what became of it: how much of `unit` was asked to be left, is left, and was there."""

    unit: Resource
    asked: float
    reached: float
    dense: float


@dataclass(frozen=True)
class WeightSummary:
    """What became of single weights.

    Attributes:
        total: weights that sparsity is counted over, in the dense network.
        left: of those that were not set to zero; before nodes without a path went.
        effective: of those on a path from input to output.
        dead: nodes that lay on no path and are gone.
        by_layer: weight -> (entries, entries left).
        silent: outputs that nothing of the input arrives at, of `outputs`.
    """

    total: int
    left: int
    effective: int
    dead: int
    by_layer: dict[str, tuple[int, int]]
    silent: int
    outputs: int

    @property
    def reached(self) -> float:
        """Weight sparsity: 1 - weights left / dense weights."""
        return 1 - self.left / self.total

    @property
    def effective_sparsity(self) -> float:
        """1 - weights on a path / dense weights."""
        return 1 - self.effective / self.total

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        layers = {name: {"dense": dense, "left": left} for name, (dense, left) in self.by_layer.items()}
        return {"total": self.total, "left": self.left, "on_a_path": self.effective, "dead_nodes": self.dead,
                "silent_outputs": self.silent, "layers": layers}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What happened, in numbers.

    Attributes:
        method: its name, and `options` its options.
        asked: node sparsity asked for; `reached` what came out.
        before: cost of the dense network; `after` of the small one.
        widths: layer -> (nodes before, nodes after).
        proofs: that the small network is the dense one without what went: of its operators (where both programs correspond),
            its weights, and its outputs, on real and on randomised weights.
        near_collapse: group -> nodes left, where that is fewer than 4.
        frozen: group that stayed whole -> why.
        events: number of pruning events that removed something.
        samples: samples seen by each event's scores.
        seconds: what the parts took.
        facts: for the reader.
        budget: what was asked to be left, and what is.
        open_share: share of the dense network's nodes that could be pruned.
        weights: where single weights were removed, what became of them; `asked` is a weight sparsity then.
        settings: what was asked of the pruning; None where a plan was replayed.
        repair: what was done to what is left, without training; None: nothing.
    """

    method: str
    options: dict[str, Any]
    asked: float
    reached: float
    total_nodes: int
    before: Cost
    after: Cost
    widths: dict[str, tuple[int, int]]
    proofs: tuple[Equivalence, ...]
    near_collapse: dict[str, int]
    frozen: dict[str, str]
    events: int
    samples: int
    seconds: dict[str, float]
    facts: tuple[Note, ...]
    budget: BudgetOutcome | None = None
    open_share: float = 1.0
    weights: WeightSummary | None = None
    settings: Pruning | None = None
    repair: Repair | None = None

    @property
    def round_to(self) -> int:
        """What the widths are multiples of."""
        return 1 if self.settings is None else multiple_of(self.settings)

    @property
    def ablation(self) -> Ablation | None:
        """The control that was run in place of the method itself."""
        return None if self.settings is None else self.settings.ablation

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the reader."""
        return tuple(map(str, self.facts))

    @property
    def disconnected(self) -> bool:
        """The output no longer depends on the input, as was allowed."""
        return self.weights is not None and 0 < self.weights.outputs == self.weights.silent

    @property
    def weight_sparsity(self) -> float:
        """1 - non-zero weights left / dense weights, over convolutions and linear layers."""
        return 1 - self.after.weights / self.before.weights if self.before.weights else 0.0


@dataclass(frozen=True)
class Result:
    """What `compress` returns: the smaller network, the plan that made it, the numbers, and the first event's sorted scores;
    where the network was repaired, also as it was `pruned`, in the precision to work in.

    Printed, it is the table of the command line.
    """

    model: nn.Module
    plan: Plan
    summary: Summary
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    pruned: nn.Module | None = None

    def __str__(self) -> str:
        return result_text(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain data, ready for JSON: raw values, no ratios (readers compute those)."""
        s = self.summary
        budget_of_nodes = s.weights is None and (s.budget is None or s.budget.unit == "nodes")
        return {
            "method": s.method,
            "options": s.options,
            "samples_per_event": s.samples,
            "events": [{"sparsity": e.sparsity, "loss": e.loss, "tie": e.tie} for e in self.plan.events],
            "node_sparsity": {"asked": s.asked if budget_of_nodes else None, "reached": s.reached},
            "masks": None if s.weights is None else {"asked": s.asked, **s.weights.as_dict()},
            "asked": None if s.settings is None else dataclasses.asdict(s.settings),
            "ablation": s.ablation,
            "budget": dataclasses.asdict(s.budget) if s.budget else None,
            "round_to": s.round_to,
            "open_share": s.open_share,
            "weight_sparsity": s.weight_sparsity,
            "nodes": {"dense": s.total_nodes, "small": round((1 - s.reached) * s.total_nodes)},
            **{
                name: {"dense": getattr(s.before, name), "small": getattr(s.after, name)}
                for name in ("macs", "parameters", "weights", "tensor_bytes", "csr_bytes")
            },
            "widths": {layer: {"dense": dense, "small": small} for layer, (dense, small) in s.widths.items()},
            "near_collapse": s.near_collapse,
            "frozen": s.frozen,
            "equivalence": [proof.as_dict() for proof in s.proofs],
            "repair": None if s.repair is None else s.repair.as_dict(),
            "seconds": s.seconds,
            "notes": list(s.notes),
        }


class Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """What the body takes; laps go on as before."""
        start = time.perf_counter()
        yield
        self.laps[name] = time.perf_counter() - start

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._since = now - self._since, now


def summarise(
    name: str, options: dict[str, Any], asked: float, model: nn.Module, dense: GroupedNetwork, state: PruningState,
    proofs: tuple[Equivalence, ...], clock: Clock, facts: list[Note], repair: Repair | None = None,
) -> Summary:  # fmt: skip
    """The numbers; sizes are those of the precision that `model` came in, in which the small network is handed over."""
    found, before, after = dense.structure, dense.cost(), state.network.cost()
    if after.macs > before.macs:
        raise NotEquivalent("the small network needs more multiply-adds than the dense one; this is a bug, please report it")
    return Summary(
        method=name,
        options=options,
        asked=asked,
        reached=1 - state.structure.nodes / found.total_nodes,
        total_nodes=found.total_nodes,
        before=dataclasses.replace(before, tensor_bytes=tensor_bytes(model)),
        after=dataclasses.replace(after, tensor_bytes=bytes_as_it_came(state.model, model)),
        widths=_widths(found, state.structure),
        proofs=proofs,
        near_collapse=_near_collapse(found, state.structure),
        frozen=reasons_of(found),
        events=len(state.plan.events),
        samples=state.samples,
        seconds=clock.laps,
        facts=tuple(facts),
        open_share=found.open_share,
        weights=_sparse(found, state) if state.kept else None,
        repair=repair,
    )


def _sparse(found: Structure, state: PruningState) -> WeightSummary:
    ways, dense = state.ways, found.nodes
    assert ways is not None
    by_layer = {name: (mask.numel(), int(mask.sum())) for name, mask in state.kept.items()}
    total, left = (sum(numbers) for numbers in zip(*by_layer.values(), strict=True))
    return WeightSummary(total, left, ways.effective, dense - state.structure.nodes, by_layer, ways.silent, ways.outputs)


def _widths(before: Structure, after: Structure) -> dict[str, tuple[int, int]]:
    """Layer -> nodes before and after."""
    small = total_by_layer(after)
    return {layer: (width, small.get(layer, 0)) for layer, width in total_by_layer(before).items()}


def _near_collapse(before: Structure, after: Structure) -> dict[str, int]:
    """Group -> nodes left, where few are left of more."""
    pairs = zip(before.prunable, after.prunable, strict=True)
    return {now.name: now.width for was, now in pairs if now.width < min(NEAR_COLLAPSE, was.width)}


def reasons_of(structure: Structure) -> dict[str, str]:
    """Group -> why it stays whole, for all that are counted as nodes."""
    counted = total_by_layer(structure)
    return {g.name: g.frozen for g in structure.frozen if g.frozen and counted.keys() & set(g.makers)}
