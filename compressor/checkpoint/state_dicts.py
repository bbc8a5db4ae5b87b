"""State dicts of others: found in what they lie in, and as the network itself would name and hold them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compressor.errors import BadInput

LEFTOVERS = ("n_averaged", "total_ops", "total_params")
"""Entries that averaging and counting tools leave in state dicts."""

COMPUTED = (
    (re.compile(r"(^|\.)parametrizations\."), "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"),
    (re.compile(r"(^|\.)weight_[gv]$"), "torch.nn.utils.remove_weight_norm(layer)"),
    (re.compile(r"(^|\.)weight_(orig|u|v)$"), "torch.nn.utils.remove_spectral_norm(layer)"),
)
"""Names of tensors from which a weight is computed, and what stores the weight itself."""


@dataclass(frozen=True)
class Reading:
    """A state dict in one of the ways in which it can be read.

    Attributes:
        tensors: by the names that the network gives them.
        beside: names of tensors that are left out, as those of a loss that was saved with the network.
        masked: how many weights were multiplied by their masks.
    """

    tensors: dict[str, Tensor]
    beside: tuple[str, ...] = ()
    masked: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was done to it."""
        found = []
        if self.beside:
            more = f" and {len(self.beside) - 3} more" if len(self.beside) > 3 else ""
            found.append(f"Not of the network, and left out: {', '.join(self.beside[:3])}{more}.")
        if self.masked:
            found.append(f"{self.masked} weights were read with the masks of torch.nn.utils.prune, as zeros.")
        return tuple(found)


def readings(state: Mapping[str, Tensor]) -> Iterator[Reading]:
    """The state dict as it is, and without prefixes: that of all names, such as `module.`, or of more than half of them."""
    plain = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in LEFTOVERS}
    now = _unmasked(plain)
    while now.tensors:
        yield now
        names: dict[str, list[str]] = {}
        for name in now.tensors:
            head, dot, _ = name.partition(".")
            names.setdefault(head if dot else "", []).append(name)
        head = max(names, key=lambda head: len(names[head]))
        if not head or 2 * len(names[head]) <= len(now.tensors):
            return
        beside = tuple(sorted(name for name in now.tensors if not name.startswith(f"{head}.")))
        tensors = {name.partition(".")[2]: now.tensors[name] for name in names[head]}
        now = Reading(tensors, (*now.beside, *beside), now.masked)


def _unmasked(state: dict[str, Tensor]) -> Reading:
    """With each `weight_orig` and `weight_mask` of torch.nn.utils.prune as the weight that they make."""
    found, masked = dict(state), 0
    for name, mask in state.items():
        plain = name.removesuffix("_mask")
        original = state.get(f"{plain}_orig")
        if plain == name or original is None or original.shape != mask.shape:
            continue
        del found[name], found[f"{plain}_orig"]
        found[plain], masked = original * mask.to(original.dtype), masked + 1
    return Reading(found, (), masked)


def check_stored(state: Collection[str], expected: Collection[str], label: object) -> None:
    """Refuse tensors from which weights are computed, where the network has the weights themselves.

    Raises:
        BadInput: naming the first, and what stores the weight.
    """
    for name in sorted(set(state) - set(expected)):
        for pattern, way in COMPUTED:
            if pattern.search(name):
                raise BadInput(f"{label}: {name} is what a weight is computed from; store the weight before it is saved: {way}")


def are_tensors(value: Any) -> bool:
    """Whether it is a dict of tensors by their names."""
    return isinstance(value, Mapping) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())


def tensors_of(value: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors among what a dict holds."""
    return {name: t for name, t in value.items() if isinstance(name, str) and isinstance(t, Tensor)}
