"""What came out of a pruning, in numbers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compressor.errors import NotEquivalent
from compressor.model.cost import Cost, cost, tensor_bytes
from compressor.model.inputs import Inputs
from compressor.model.precision import bytes_as_it_came
from compressor.proof.equivalence import Equivalence
from compressor.pruning.controls import Ablation
from compressor.pruning.events import State
from compressor.selection.budget import Unit
from compressor.types.plan import Plan
from compressor.types.structure import Structure, total_by_layer

NEAR_COLLAPSE = 4
"""A group with fewer nodes than this is reported by name."""


@dataclass(frozen=True)
class Spent:
    """A budget and what became of it: how much of `unit` was asked to be left, is left, and was there."""

    unit: Unit
    asked: float
    reached: float
    dense: float


@dataclass(frozen=True)
class Sparse:
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


@dataclass(frozen=True)
class Summary:
    """What happened, in numbers.

    Attributes:
        method: its name, and `options` its options.
        asked: node sparsity asked for; `reached` what came out.
        before: cost of the dense network; `after` of the small one.
        widths: layer -> (nodes before, nodes after).
        proofs: the equivalence of dense and small network, on real and on randomised weights.
        near_collapse: group -> nodes left, where that is fewer than 4.
        frozen: group that stayed whole -> why.
        events: number of pruning events that removed something.
        samples: samples seen by each event's scores.
        seconds: what the parts took.
        notes: sentences for the reader.
        budget: what was asked to be left, and what is.
        round_to: what the widths are multiples of.
        open_share: share of the dense network's nodes that could be pruned.
        weights: where single weights were removed, what became of them; `asked` is a weight sparsity then.
        ablation: the control that was run in place of the method itself.
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
    notes: tuple[str, ...]
    budget: Spent | None = None
    round_to: int = 1
    open_share: float = 1.0
    weights: Sparse | None = None
    ablation: Ablation | None = None

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
    """What `compress` returns: the smaller network, the plan that made it, the numbers, and the first event's sorted scores."""

    model: nn.Module
    plan: Plan
    summary: Summary
    curves: Mapping[str, Tensor] = field(default_factory=dict)


class Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._since = now - self._since, now


def summarise(
    name: str, options: dict[str, Any], asked: float, model: nn.Module, dense: nn.Module, found: Structure, state: State,
    inputs: Inputs, proofs: tuple[Equivalence, ...], clock: Clock, notes: list[str],
) -> Summary:  # fmt: skip
    """The numbers; sizes are those of the precision that `model` came in, in which the small network is handed over."""
    before, after = cost(dense, inputs), cost(state.model, inputs)
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
        notes=tuple(notes),
        open_share=found.open_share,
        weights=_sparse(found, state) if state.kept else None,
    )


def _sparse(found: Structure, state: State) -> Sparse:
    ways, dense = state.ways, found.nodes
    assert ways is not None
    by_layer = {name: (mask.numel(), int(mask.sum())) for name, mask in state.kept.items()}
    total, left = (sum(numbers) for numbers in zip(*by_layer.values(), strict=True))
    return Sparse(total, left, ways.effective, dense - state.structure.nodes, by_layer, ways.silent, ways.outputs)


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
    return {g.name: g.frozen for g in structure.frozen if g.frozen and counted.keys() & set(g.layers("produce", "pass"))}
