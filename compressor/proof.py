"""Proof of a surgery: the smaller network equals the dense one with the removed nodes' readers zeroed.

A fresh network hides mistakes (its batch norms are the identity, some heads are zero), so every surgery is proven twice: on the
weights as they are, and on a copy with randomised weights and norms, whose output must depend on the input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compressor.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.errors import UnsupportedNetwork, first_line
from compressor.inputs import Inputs, each, run
from compressor.masked import reference_outputs
from compressor.state import observed, outputs_of
from compressor.surgery import shrink
from compressor.types import Group, Kept, Structure

DRAWS = 2
"""Random removals that a group must survive before it may be pruned."""


def prove(model: nn.Module, small: nn.Module, structure: Structure, kept: Kept, inputs: Inputs) -> Equivalence:
    """Compare `small` with `model`, whose reads of removed nodes are zeroed, on the weights as they are.

    Args:
        inputs: what the network is called with, more than one sample.
    """

    def compared(dense: nn.Module, other: nn.Module, x: Inputs) -> Equivalence:
        reference = reference_outputs(dense, structure, kept, x)
        return Equivalence.of("dense with zeroed reads = small", reference, outputs_of(other, x), TORCH_TOLERANCE)

    proof = compared(model, small, inputs)
    return _rounding_aside(proof, lambda: compared(_in_double(model), _in_double(small), each(inputs, _doubled)))


def prove_randomised(model: nn.Module, structure: Structure, kept: Kept, inputs: Inputs, seed: int = 0) -> Equivalence:
    """The same proof with random weights and norms. Inconclusive where the output hardly varies even so."""

    def compared(dense: nn.Module, x: Inputs) -> Equivalence:
        small = shrink(dense, structure, kept)
        reference = reference_outputs(dense, structure, kept, x, inplace=True)
        what = "dense with zeroed reads = small, randomised weights"
        return Equivalence.of(what, reference, outputs_of(small, x), TORCH_TOLERANCE)

    def again() -> Equivalence:
        return compared(_in_double(randomised(model, seed, structure, kept)), each(inputs, _doubled))

    return _rounding_aside(compared(randomised(model, seed, structure, kept), inputs), again)


def _rounding_aside(proof: Equivalence, in_double: Callable[[], Equivalence]) -> Equivalence:
    """A proof that failed by a little is tried once more in float64, which tells a wrong network from rounding."""
    if proof or not proof.needed_tolerance < NEARLY:
        return proof
    try:
        again = in_double()
    except (RuntimeError, ValueError, TypeError):  # the network's own code insists on float32
        return proof
    return replace(again, what=f"{again.what}, in float64") if again else proof


NEARLY = 1e-2
"""A difference, as a fraction of the output's range, that rounding in float32 could make in a deep network."""


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
    elif "var" in name or (isinstance(module, _NormBase) and name == "weight"):
        noise = 0.5 + noise.abs()
    else:
        noise *= 0.1
    return noise.to(tensor)


def prove_else_freeze(model: nn.Module, structure: Structure, inputs: Inputs) -> Structure:
    """The structure with every group frozen whose removal does not give the same network.

    A random number of nodes of every group is removed, with random weights; the smaller network must also run in train mode.
    If that fails, the groups are halved until those at fault are found, each with what went wrong.

    Raises:
        UnsupportedNetwork: not even the whole network equals itself (it is random, or its output is not finite).
    """
    training = runs_in_training(model, inputs)

    def failure(groups: tuple[Group, ...]) -> str | None:
        for seed in range(DRAWS):
            generator = torch.Generator().manual_seed(seed)
            some = {g.name: _some(g, generator) for g in structure.prunable}
            kept = structure.keep_all() | {g.name: some[g.name] for g in groups}
            try:
                proof = prove_randomised(model, structure, kept, inputs, seed)
                if not proof:
                    return f"removal changes the result (by {proof.needed_tolerance:.1e} of its range)"
                if training and not runs_in_training(shrink(model, structure, kept), inputs):
                    return "the smaller network does not run in train mode"
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:  # the network's own code
                return f"the smaller network does not run: {first_line(error)}"
        return None

    def at_fault(groups: tuple[Group, ...]) -> dict[str, str]:
        reason = failure(groups)
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0].name: reason}
        middle = len(groups) // 2
        found = at_fault(groups[:middle]) | at_fault(groups[middle:])
        return found or {g.name: f"only together with others: {reason}" for g in groups}

    frozen: dict[str, str] = {}
    while bad := at_fault(tuple(g for g in structure.prunable if g.name not in frozen)):
        frozen |= bad
        if len(frozen) == len(structure.prunable) and (reason := failure(())):
            raise UnsupportedNetwork(f"no proof is possible, even with nothing removed: {reason}")
    return structure.freeze(frozen)


def runs_in_training(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a copy of the network runs in train mode, where some have branches of their own."""
    with observed(model) as twin, torch.no_grad():
        try:
            run(twin.train(), inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):  # the network's own code
            return False
    return True


def _some(group: Group, generator: torch.Generator) -> Tensor:
    """A random number of a group's nodes, different from that of other groups: some code counts on equal halves."""
    count = int(torch.randint(1, max(2, group.width), (), generator=generator))
    return torch.randperm(group.width, generator=generator)[:count].sort().values
