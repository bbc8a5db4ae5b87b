"""The proofs that every pruning ends with."""

from __future__ import annotations

from compressor.errors import NotEquivalent
from compressor.model.inputs import each, far_apart, unlike
from compressor.options import spelled
from compressor.proof.equivalence import Equivalence
from compressor.proof.prove import prove, prove_masked, prove_randomised
from compressor.pruning.events import PruningState
from compressor.surgery.network import GroupedNetwork


def _proof_of_masks(dense: GroupedNetwork, state: PruningState) -> Equivalence:
    """That the small network is the masked dense one, on inputs that its output depends on."""
    for given in unlike(dense.inputs):
        proof = prove_masked(dense.model, state.model, state.kept, given)
        if not proof or proof.conclusive or (state.ways and not state.ways.connected):
            return proof
    way = spelled("calibrate_bn", True)
    raise NotEquivalent(f"the proof says nothing: the output hardly depends on the input; keep more weights, or {way}")


def proven(dense: GroupedNetwork, state: PruningState) -> tuple[Equivalence, ...]:
    """The proofs that a small network is the dense one without what the plan removed.

    Raises:
        NotEquivalent: it is not, or that cannot be seen.
    """
    plan, apart = state.plan, dense.on(each(dense.inputs, far_apart))
    real = _proof_of_masks(dense, state) if state.kept else prove(dense, state.model, plan.kept)
    for seed in range(3):
        random = prove_randomised(apart if seed else dense, plan.kept, seed)
        if random.conclusive:
            break
    else:
        raise NotEquivalent("the proof says nothing: with random weights the output hardly depends on the input")
    for proof in (real, random):
        if not proof:
            raise NotEquivalent(
                f"{proof.what}: they differ by {proof.needed_tolerance:.1e} of the output's range, "
                f"{proof.tolerance:.0e} is allowed"
            )
    return real, random
