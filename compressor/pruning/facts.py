"""What a reader of a result should know: facts while the work goes on, sentences at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from compressor.options import spelled


class Fact(Enum):
    """What there is to know; its sentence is in `SENTENCES`."""

    FRESH_NORMS = auto()
    UNUSED_DATA = auto()
    ON_NOISE = auto()
    OTHER_PRECISION = auto()
    ZEROS_BEFORE = auto()
    OTHER_GRAPH = auto()
    TIE = auto()
    EXACT_WIDTHS = auto()
    NO_REWIND = auto()
    NO_PENALTY = auto()
    OTHER_OPERATORS = auto()
    CHOSEN = auto()
    FOR_FRESH = auto()
    FOR_TRAINED = auto()
    MASKS_ONLY = auto()
    LESS_REPAIR = auto()
    REPAIR_ON_NOISE = auto()
    ONLY_CUT = auto()
    FEW_ROWS = auto()


@dataclass(frozen=True)
class Note:
    """A fact, and the values that its sentence needs."""

    fact: Fact
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return SENTENCES[self.fact](**self.values)


def note(fact: Fact, **values: Any) -> Note:
    """A fact with its values."""
    return Note(fact, values)


def _other_precision(precision: str) -> str:
    return f"Scored and proven in {precision}, saved in the precision it came in."


def _tie(sparsity: float, unit: str) -> str:
    return f"The cut at {sparsity:.3f} went through {unit}s of equal score: which of them went is arbitrary."


def _no_penalty(method: str) -> str:
    return (
        f"{method} adds its penalty until its last event, which comes before the first epoch: nothing was added; "
        f"a training with {spelled('stage', 'after')} trains with it."
    )


def _chosen(state: str, why: str, method: str, per: str | None, allocate: bool, repair: str) -> str:
    ranked = f" per {PER[per]}" if per else ", from each layer as much as it was measured to spare" if allocate else ""
    done = "its layers refitted to what they gave before" if repair == "least-squares" else f"repair: {repair}"
    return f"The network is {state}, {why}: pruned by {method}{ranked}, {done}."


PER = {"macs": "multiply-add", "parameters": "parameter", "bytes": "byte"}


def _masks_only(nodes: bool) -> str:
    other = f"; {spelled('unit', 'node')} removes whole nodes" if nodes else ""
    return f"Single weights are set to zero in tensors of the same shape: nothing gets faster by that alone{other}."


SENTENCES: Mapping[Fact, Callable[..., str]] = {
    Fact.FRESH_NORMS: lambda: (
        "The batch norms never saw data before the scoring and did not normalise; "
        f"{spelled('calibrate_bn', True)} gives statistics first."
    ),
    Fact.UNUSED_DATA: lambda: "The scores of this method need no data: what was given only says what the network takes.",
    Fact.ON_NOISE: lambda: "No data was given: the network was followed and proven on noise of the shape that it remembers.",
    Fact.OTHER_PRECISION: _other_precision,
    Fact.ZEROS_BEFORE: lambda zeros: f"{zeros:,} weights were zero before; they count as removed.",
    Fact.OTHER_GRAPH: lambda found_by: f"The groups come from {found_by}.",
    Fact.TIE: _tie,
    Fact.EXACT_WIDTHS: lambda: (
        f"Widths that are multiples of 8 or 16 run faster for their multiply-adds: {spelled('round_to', 'auto')}."
    ),
    Fact.NO_REWIND: lambda method: f"{method} rewinds nothing where all its events come before the first epoch.",
    Fact.NO_PENALTY: _no_penalty,
    Fact.OTHER_OPERATORS: lambda why: f"Proven on samples only, not for every value of the inputs: {why}.",
    Fact.CHOSEN: _chosen,
    Fact.FOR_FRESH: lambda method, why: (
        f"{method} is for networks before training, and this one is trained, {why}: `compress prune` chooses for those."
    ),
    Fact.FOR_TRAINED: lambda method, why: (
        f"{method} is for trained networks, and this one is fresh, {why}: what it ranks are initial values."
    ),
    Fact.MASKS_ONLY: _masks_only,
    Fact.LESS_REPAIR: lambda why: f"Less was repaired than was asked for: {why}.",
    Fact.FEW_ROWS: lambda layers: (
        f"Layers refitted on fewer rows than they have columns: {layers}. They were shrunk towards what they were; more "
        f"samples may help, {spelled('repair_samples', 'N')}."
    ),
    Fact.ONLY_CUT: lambda: (
        "The network that the plan is from was repaired after it was cut: this one is only cut, and not as accurate."
    ),
    Fact.REPAIR_ON_NOISE: lambda: (
        "Without data the repair saw random inputs, which recovers some of what went and not most of it: "
        f"{spelled('data', 'DATA')} gives it real ones, labels are not needed."
    ),
}
