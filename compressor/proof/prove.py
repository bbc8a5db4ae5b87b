"""Proof of a surgery: the smaller network equals the dense one with the removed nodes' readers zeroed.

A fresh network hides mistakes (its batch norms are the identity, some heads are zero), so every surgery is proven twice: on the
weights as they are, and on a copy with randomised weights and norms, whose output must depend on the input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.model.branches import in_branches
from compressor.model.inputs import Inputs, each
from compressor.model.observe import outputs_of
from compressor.model.weights import masked
from compressor.proof.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.proof.reference import reference_outputs
from compressor.surgery.network import GroupedNetwork
from compressor.types.structure import Kept, Structure


def prove(network: GroupedNetwork, small: nn.Module, kept: Kept) -> Equivalence:
    """Compare `small` with `network`, whose reads of removed nodes are zeroed, on the weights as they are."""

    def compared(dense: GroupedNetwork, other: nn.Module) -> Equivalence:
        reference = reference_outputs(dense, kept)
        return Equivalence.of("dense with zeroed reads = small", reference, outputs_of(other, dense.inputs), TORCH_TOLERANCE)

    return _rounding_aside(compared(network, small), lambda: compared(_in_double_whole(network), _in_double(small)))


def prove_masked(model: nn.Module, small: nn.Module, kept: Mapping[str, Tensor], inputs: Inputs) -> Equivalence:
    """Compare `small` with `model`, whose weights are zero where `kept`, booleans by name, is not."""

    def compared(dense: nn.Module, other: nn.Module, x: Inputs) -> Equivalence:
        return Equivalence.of("masked dense = small", outputs_of(dense, x), outputs_of(other, x), TORCH_TOLERANCE)

    whole = masked(model, kept)
    return _rounding_aside(
        compared(whole, small, inputs), lambda: compared(_in_double(whole), _in_double(small), each(inputs, _doubled))
    )


def prove_randomised(network: GroupedNetwork, kept: Kept, seed: int = 0, *, branches: bool = False) -> Equivalence:
    """The same proof with random weights and norms. Inconclusive where the output hardly varies even so.

    Args:
        branches: also of what the network gives only in training, such as auxiliary heads.
    """

    def compared(dense: GroupedNetwork) -> Equivalence:
        small = dense.shrink(kept)
        reference = reference_outputs(dense, kept, inplace=True, branches=branches)
        what = "dense with zeroed reads = small, randomised weights"
        within = in_branches if branches else lambda _: nullcontext()
        found = outputs_of(small.model, small.inputs, within=within, inplace=True)
        return Equivalence.of(what, reference, found, TORCH_TOLERANCE)

    def drawn() -> GroupedNetwork:
        return network.with_weights(randomised(network.model, seed, network.structure, kept))

    return _rounding_aside(compared(drawn()), lambda: compared(_in_double_whole(drawn())))


def _rounding_aside(proof: Equivalence, in_double: Callable[[], Equivalence]) -> Equivalence:
    """A proof that failed by a little is tried once more in float64, which tells a wrong network from rounding."""
    if proof or not proof.needed_tolerance < NEARLY:
        return proof
    try:
        again = in_double()
    except (RuntimeError, ValueError, TypeError):  # the network's own code insists on float32
        return proof
    return replace(again, what=f"{again.what}, in float64") if again else proof


NEARLY = 1.0
"""A difference, as a fraction of the output's range, that rounding in float32 makes in deep networks with random weights."""


def _in_double_whole(network: GroupedNetwork) -> GroupedNetwork:
    return network.with_weights(_in_double(network.model)).on(each(network.inputs, _doubled))


def _in_double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def _doubled(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def randomised(model: nn.Module, seed: int = 0, structure: Structure | None = None, kept: Kept | None = None) -> nn.Module:
    """A copy with random weights that keep signals at a healthy scale, and batch norms that are not the identity.

    Args:
        kept: with `structure`, the nodes that will be read: the scale is right for them, not for the dense network, through
            which the few that stay of many would send next to nothing.
    """
    entries = structure.kept_entries(kept) if structure is not None and kept is not None else {}
    stays = {name: len(indices) / structure.shapes[name][dim] for (name, dim), indices in entries.items() if dim and structure}
    generator = torch.Generator().manual_seed(seed)
    memo: dict[int, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.is_floating_point() and id(tensor) not in memo:
                value = _random_like(module, name, tensor, generator, stays.get(f"{prefix}.{name}" if prefix else name, 1.0))
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    return copy.deepcopy(model, memo)


def _random_like(module: nn.Module, name: str, tensor: Tensor, generator: torch.Generator, stays: float) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() > 1:
        noise *= math.sqrt(2 / max(1.0, stays * tensor[0].numel()))
    elif "var" in name or (name in ("weight", "gamma") and not isinstance(module, nn.PReLU)):  # of a norm of any kind
        noise = 0.5 + noise.abs()
    else:
        noise *= 0.1
    return noise.to(tensor)
