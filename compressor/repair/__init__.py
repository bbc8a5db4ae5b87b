"""Repair: what a network that lost nodes can still compute of what it did, without labels and without training.

`norms` corrects the batch norms by what changed in front of them. `least-squares` refits each layer that reads, from input to
output, to what it gave before, and tries the norms behind that. What comes nearest to the dense network's outputs on samples
kept aside stays.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.coupling.label_flow import Untraceable
from compressor.errors import UnsupportedNetwork
from compressor.model.inputs import Inputs, each, run, samples
from compressor.model.observe import observed, outputs_of, tensors_in
from compressor.objective.distance import distance
from compressor.options import spelled
from compressor.repair.chunks import CHUNK, cut, fitting, taken
from compressor.repair.least_squares import FEWEST, LayerRefit, least_squares
from compressor.repair.norms import correct, norms_of, statistics
from compressor.settings import Repairing
from compressor.system.progress import Progress

__all__ = ["Repair", "repaired"]

BATCH = 128
"""Samples that run together while norms are corrected."""

ASIDE = 8
"""One sample of so many is kept aside to judge by."""

LEAST = 16
"""Samples without which nothing is refitted."""

Way = Literal["as pruned", "norms", "least squares", "least squares, then norms"]


@dataclass(frozen=True)
class Repair:
    """What a repair came to.

    Attributes:
        asked: what was asked for.
        kept: what was done to the network that is handed over: the way nearest to the dense network's outputs.
        samples: seen; `aside` of them were kept to judge by.
        noise: they were drawn at random, for there were no data.
        distance: way -> squared distance to the dense outputs on the samples kept aside, as a share of their variance.
        layers: refitted, in the order in which they run.
        why: less was done than was asked for.
        seconds: that it took.
    """

    asked: Repairing
    kept: Way
    samples: int
    aside: int
    noise: bool
    distance: Mapping[Way, float]
    layers: tuple[LayerRefit, ...]
    why: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        return dataclasses.asdict(self)


def repaired(
    dense: nn.Module, small: nn.Module, stay: Mapping[tuple[str, int], Tensor], batches: Iterable[Inputs], how: Repairing,
    most: int, *, noise: bool = False, seed: int = 0, progress: Progress = lambda *_: None,
) -> tuple[nn.Module, Repair]:  # fmt: skip
    """A repaired copy of a small network.

    Args:
        dense: the network that it was cut from; neither is changed.
        stay: (tensor, dimension) -> sorted indices of the dense network's entries that `small` has, of what shrank.
        batches: inputs, of the networks' precision; labels are not needed.
        how: `norms`, or `least-squares`, which does the other, too.
        most: samples looked at.
        noise: the inputs are no data.
        seed: of the places drawn from each sample.
    Raises:
        UnsupportedNetwork: the dense network's forward pass is random.
    """
    started = time.perf_counter()
    whole = taken(batches, most)
    size = samples(whole)
    fits = fitting(dense, whole)
    chunk = max(1, min(CHUNK, fits // FEWEST, size // (ASIDE + FEWEST)))
    batch = max(2, min(BATCH, fits))
    _check_repeats(dense, each(whole, lambda x: x[:chunk]))
    held = max(1, size // ASIDE) if size >= LEAST else 0
    shown, rest = each(whole, lambda x: x[: size - held]), each(whole, lambda x: x[size - held :])
    aside = cut(rest if held else whole, batch)
    target = [outputs_of(dense, inputs) for inputs in aside]
    there: dict[Way, nn.Module] = {"as pruned": small}
    layers: list[LayerRefit] = []
    why = ""
    progress("correcting the norms", 0, 0)
    groups = cut(shown, batch)
    was = statistics(dense, groups) if norms_of(dense) and samples(shown) > 1 else {}
    if was:
        there["norms"] = _corrected(small, dense, stay, was, groups)
    if how == "least-squares" and size < LEAST:
        why = f"{size} samples are too few to refit layers; give {LEAST} or more"
    elif how == "least-squares":
        fitted = copy.deepcopy(small)
        try:
            layers = least_squares(dense, fitted, stay, cut(shown, chunk, whole=True), seed, progress)
        except (Untraceable, UnsupportedNetwork) as error:
            why = f"layers cannot be refitted: {error}"
        else:
            there["least squares"] = fitted
            if was:
                there["least squares, then norms"] = _corrected(fitted, dense, stay, was, groups)
    elif not was:
        why = f"it has no batch norms to correct; {spelled('repair', 'least-squares')} refits layers"
    distances = {way: distance([outputs_of(m, inputs) for inputs in aside], target) for way, m in there.items()}
    best = min(distances, key=lambda way: distances[way])
    found = there[best]
    record = Repair(
        how, best, size, held, noise, distances, tuple(layers) if best.startswith("least") else (), why,
        time.perf_counter() - started,
    )  # fmt: skip
    return (copy.deepcopy(small) if found is small else found), record


def _corrected(
    small: nn.Module, dense: nn.Module, stay: Mapping[tuple[str, int], Tensor], was: Any, groups: Sequence[Inputs]
) -> nn.Module:
    fixed = copy.deepcopy(small)
    correct(fixed, dense, stay, was, statistics(small, groups))
    return fixed


def _check_repeats(model: nn.Module, inputs: Inputs) -> None:
    """Refuse a network that gives other outputs each time.

    Raises:
        UnsupportedNetwork: it does.
    """
    with observed(model) as twin, torch.no_grad():
        pairs = zip(tensors_in(run(twin, inputs)), tensors_in(run(twin, inputs)), strict=True)
    for one, other in pairs:
        if one.is_floating_point() and not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max())):
            raise UnsupportedNetwork(
                "its forward pass is random: the same inputs give other outputs each time, and nothing can be refitted to "
                f"those; {spelled('repair', 'none')}"
            )
