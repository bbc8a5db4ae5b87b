"""The proofs that every pruning ends with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.coupling import Traced, Untraced
from compressor.errors import NotEquivalent
from compressor.model.inputs import Inputs, each, far_apart, scaled, tensors, unlike
from compressor.model.observe import outputs_of
from compressor.options import spelled
from compressor.proof.equivalence import Equivalence
from compressor.proof.prove import prove, prove_masked, prove_randomised
from compressor.pruning.events import PruningState
from compressor.pruning.facts import Fact, Note, note
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.shrink import sliced, tensors_of
from compressor.types.structure import Kept, Structure

SCALES = (1, 3, 10, 1000)
"""Factors on the inputs that proofs run on: what sleeps on samples may wake on larger ones."""


def proven(dense: GroupedNetwork, state: PruningState) -> tuple[Equivalence, ...]:
    """The proofs that a small network is the dense one without what the plan removed: its weights, and what it gives.

    Raises:
        NotEquivalent: it is not, or that cannot be seen.
    """
    plan, apart = state.plan, dense.on(each(dense.inputs, far_apart))
    weights = _weights(dense, state)
    real = _at_scales(_proofs_of_masks(dense, state) if state.kept else _proofs(dense, state))
    for seed in range(3):
        random = prove_randomised(apart if seed else dense, plan.kept, seed)
        if random.conclusive:
            break
    else:
        raise NotEquivalent("the proof says nothing: with random weights the output hardly depends on the input")
    for proof in (weights, real, random):
        if not proof and proof.kind == "weights":
            raise NotEquivalent(f"not so: {proof.what}")
        if not proof:
            raise NotEquivalent(
                f"{proof.what}: they differ by {proof.needed_tolerance:.1e} of a channel's range, "
                f"{proof.tolerance:.0e} is allowed"
            )
    return weights, real, random


def same_operators(
    traced: Traced | Untraced, found: Structure, small: nn.Module, kept: Kept, inputs: Inputs
) -> tuple[list[Equivalence], list[Note]]:
    """The proof by labels, which holds for every value of the inputs; where it is not possible, why.

    Args:
        traced: the dense network, `found` its groups.
        small: what `kept` leaves of it, with any weights.
    Raises:
        NotEquivalent: an operator of the small network does something else.
    """
    compared = traced.compare(small, found, kept, inputs)
    if not compared:
        raise NotEquivalent(f"the small network is another, though that may not show on samples: {compared.wrong}")
    if compared.unlike:
        return [], [note(Fact.OTHER_OPERATORS, why=compared.unlike)]
    what = f"all {compared.operators} operators of small = dense on what is left, for every value of the inputs"
    return [Equivalence.shown("structure", what)], []


def since(proofs: Iterable[Equivalence], what: str) -> tuple[Equivalence, ...]:
    """The proofs of weights that were the dense network's, and no longer are."""
    return tuple(replace(p, what=f"{p.what}, when they were cut; {what} since") if p.kind == "weights" else p for p in proofs)


def _weights(dense: GroupedNetwork, state: PruningState) -> Equivalence:
    """Every tensor of the small network is a slice of the dense one's, bit for bit; constants of dead nodes may have moved."""
    there, dense_tensors = tensors_of(state.network.model), tensors_of(dense.model)
    wanted = sliced(dense_tensors, dense.structure, state.plan.kept)
    masks = sliced(state.kept, dense.structure, state.plan.kept) if state.kept else {}
    for names in _alike(dense_tensors):  # one tensor of several names is cut, and masked, under one of them
        smallest = min((wanted[name] for name in names), key=Tensor.numel)
        wanted |= dict.fromkeys(names, smallest)
        masks |= dict.fromkeys(names, next(masks[name] for name in names if name in masks)) if masks.keys() & set(names) else {}
    other = [
        name for name in there.keys() | wanted.keys() if not _as_wanted(there.get(name), wanted.get(name), masks.get(name))
    ]
    if not other:
        masked = ", zero where masked" if state.kept else ""
        return Equivalence.shown("weights", f"all {len(there)} tensors of small = slices of dense, bit for bit{masked}")
    moved = [name for name in other if name.rpartition(".")[2] in ("bias", "running_mean")]
    if state.kept and len(moved) == len(other):
        what = f"{len(there) - len(other)} tensors of small = slices of dense, bit for bit, zero where masked"
        return Equivalence.shown("weights", f"{what}; {len(moved)} also hold constants of nodes that went")
    return Equivalence.shown("weights", f"{sorted(other)[0]} of small = a slice of dense, bit for bit", holds=False)


def _alike(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of every tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return [its for its in names.values() if len(its) > 1]


def _as_wanted(there: Tensor | None, wanted: Tensor | None, mask: Tensor | None) -> bool:
    if there is None or wanted is None or there.shape != wanted.shape or there.dtype != wanted.dtype:
        return False
    if mask is not None:
        wanted = wanted.detach() * mask.to(wanted.device)
    return torch.equal(there, wanted) or (
        torch.equal(there.isnan(), wanted.isnan()) and torch.equal(there.nan_to_num(), wanted.nan_to_num())
    )


def _proofs(dense: GroupedNetwork, state: PruningState) -> Iterator[Equivalence]:
    for given in _scaled(dense, dense.inputs):
        yield prove(dense.on(given), state.model, state.plan.kept)


def _scaled(dense: GroupedNetwork, inputs: Inputs) -> Iterator[Inputs]:
    """The inputs, and larger ones on which the dense network stays finite."""
    yield inputs
    if any(x.is_floating_point() for x in tensors(inputs)):
        for factor in SCALES[1:]:
            given = scaled(inputs, factor)
            if all(bool(torch.isfinite(y).all()) for y in outputs_of(dense.model, given)):
                yield given


def _at_scales(proofs: Iterator[Equivalence]) -> Equivalence:
    """The worst of several; conclusive where one is."""
    found = list(proofs)
    worst = min(found, key=lambda p: (bool(p), -p.needed_tolerance))
    return replace(worst, variation=max(p.variation for p in found))


def _proofs_of_masks(dense: GroupedNetwork, state: PruningState) -> Iterator[Equivalence]:
    """That the small network is the masked dense one, on inputs that its output depends on."""
    conclusive = False
    for given in _scaled(dense, dense.inputs):
        proof = prove_masked(dense.model, state.model, state.kept, given)
        conclusive |= proof.conclusive
        yield proof
    if conclusive or (state.ways and not state.ways.connected):
        return
    for given in unlike(dense.inputs):
        proof = prove_masked(dense.model, state.model, state.kept, given)
        yield proof
        if not proof or proof.conclusive:
            return
    way = spelled("calibrate_bn", True)
    raise NotEquivalent(f"the proof says nothing: the output hardly depends on the input; keep more weights, or {way}")
