"""The outcome of comparing two networks: true or false, with the tolerance that would have been needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

TORCH_TOLERANCE = 1e-5
"""Difference allowed between two torch networks, as a fraction of a channel's range."""

NARROW = 1e-3
"""A channel's range counts as at least this share of the whole output's: below it lies what rounding of the others makes."""

ROUNDINGS = 16
"""A difference of so many times the reference's own rounding says nothing."""

Kind = Literal["structure", "weights", "samples"]
"""What a proof looks at: every operator, by its labels; every weight; or outputs on some inputs."""


@dataclass(frozen=True)
class Equivalence:
    """Whether two networks computed the same; true or false like a boolean.

    Attributes:
        what: which pair was compared; of a proof that looks at no samples, all that it says.
        max_difference: absolute difference of two outputs, largest in relation to its channel's range.
        output_range: of that channel, largest minus smallest reference output (its magnitude where that is 0).
        tolerance: difference allowed, as a fraction of `output_range`.
        samples: number of samples compared.
        agreement: share of samples with the same arg-max, among those whose margin is above the tolerance; None when
            no sample has such a margin.
        clear_samples: how many samples have such a margin.
        variation: how much the reference output moves between samples, as a fraction of the whole output's range.
        kind: what the proof looks at. Of `structure` and `weights`, numbers say nothing.
    """

    what: str
    max_difference: float
    output_range: float
    tolerance: float
    samples: int
    agreement: float | None
    clear_samples: int
    variation: float
    kind: Kind = "samples"

    LEAST_VARIATION = 1e-3

    @property
    def needed_tolerance(self) -> float:
        """The tolerance that would have been needed."""
        return self.max_difference / self.output_range if self.output_range > 0 else float(self.max_difference > 0)

    @property
    def conclusive(self) -> bool:
        """The outputs depend on the inputs, so that agreement means something."""
        return self.variation >= self.LEAST_VARIATION

    def __bool__(self) -> bool:
        return self.needed_tolerance <= self.tolerance and self.agreement in (None, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """For reports; a difference without a number (other shapes, NaN) is None."""
        if self.kind != "samples":
            return {"what": self.what, "kind": self.kind, "equivalent": bool(self)}
        return {
            "what": self.what,
            "kind": self.kind,
            "equivalent": bool(self),
            "max_difference": self.max_difference if math.isfinite(self.max_difference) else None,
            "output_range": self.output_range,
            "tolerance": self.tolerance,
            "needed_tolerance": self.needed_tolerance if math.isfinite(self.needed_tolerance) else None,
            "samples": self.samples,
            "argmax_agreement": self.agreement,
            "samples_with_clear_margin": self.clear_samples,
        }

    @classmethod
    def shown(cls, kind: Kind, what: str, holds: bool = True) -> Equivalence:
        """The outcome of a proof that looks at no samples."""
        return cls(what, 0.0 if holds else float("inf"), 1.0, 0.0, 0, None, 0, 1.0, kind)

    @classmethod
    def of(
        cls, what: str, reference: list[Tensor], candidate: list[Tensor], tolerance: float, exact: list[Tensor] | None = None
    ) -> Equivalence:
        """Compare the outputs of two networks on the same inputs, every output channel by its own range.

        Channels are those of the second dimension and of the last.

        Args:
            what: which pair this is, for the report.
            reference: one tensor `(batch, ...)` per output of the network.
            candidate: the same outputs of the other network.
            tolerance: difference allowed, as a fraction of the range of the reference's channel.
            exact: the reference in float64, which tells how much of it is rounding.
        """
        differs = cls(what, float("inf"), 1.0, tolerance, 0, None, 0, 0.0)
        if len(reference) != len(candidate):
            return differs
        outcomes = []
        for place, (one, other) in enumerate(zip(reference, candidate, strict=True)):
            if one.shape != other.shape or not bool(torch.isfinite(other).all() & torch.isfinite(one).all()):
                return differs
            rounding = None if exact is None else (one.double().cpu() - exact[place].double().cpu()).abs()
            outcomes.append(cls._of_one(what, one.double().cpu(), other.double().cpu(), tolerance, rounding))
        worst = min(outcomes, key=lambda o: (bool(o), -o.needed_tolerance))
        return replace(worst, variation=max(o.variation for o in outcomes))

    @classmethod
    def _of_one(cls, what: str, one: Tensor, other: Tensor, tolerance: float, rounding: Tensor | None) -> Equivalence:
        rows = one.flatten(1) if one.dim() > 1 else one.reshape(-1, 1)
        others = other.reshape(rows.shape)
        spread = float(rows.max() - rows.min()) or float(rows.abs().max())
        variation = float((rows.max(0).values - rows.min(0).values).max()) / spread if spread else 0.0
        agreement, clear = None, 0
        if one.dim() == 2 and one.shape[1] > 1:
            first, second = rows.topk(2).values.unbind(1)
            has_margin = first - second > 2 * tolerance * spread
            clear = int(has_margin.sum())
            if clear:
                agreement = float((rows.argmax(1) == others.argmax(1))[has_margin].double().mean())
        difference, its = _worst((one - other).abs(), one, spread, rounding, tolerance)
        return cls(what, difference, its, tolerance, len(rows), agreement, clear, variation)


def _worst(
    differences: Tensor, reference: Tensor, spread: float, rounding: Tensor | None, tolerance: float
) -> tuple[float, float]:
    """The difference that is largest in relation to its channel's range, and that range."""
    worst = float(differences.max()) if differences.numel() else 0.0, spread
    if not spread:
        return worst
    for dim in sorted({1, reference.dim() - 1}) if reference.dim() > 1 else ():
        found, values = (t.movedim(dim, 0).flatten(1) for t in (differences, reference))
        ranges = (values.amax(1) - values.amin(1)).clamp(min=NARROW * spread)
        if rounding is not None:
            made = ROUNDINGS * rounding.movedim(dim, 0).flatten(1).amax(1) / tolerance
            ranges = torch.maximum(ranges, made.clamp(max=spread))
        most = found.amax(1)
        place = int((most / ranges).argmax())
        if float(most[place]) * worst[1] > worst[0] * float(ranges[place]):
            worst = float(most[place]), float(ranges[place])
    return worst
