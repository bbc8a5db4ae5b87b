"""Proof of a surgery: the smaller network equals the dense one with the removed nodes' readers zeroed.

A fresh network hides mistakes (its batch norms are the identity, some heads are zero), so every surgery is proven twice: on the
weights as they are, and on a copy with randomised weights and norms, whose output must depend on the input.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compressor.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.errors import first_line
from compressor.state import outputs_of
from compressor.surgery import shrink, zero_reads, zeroed_reads
from compressor.types import Group, Kept, Structure


def prove(model: nn.Module, small: nn.Module, structure: Structure, kept: Kept, inputs: tuple[Tensor, ...]) -> Equivalence:
    """Compare `small` with `model`, whose reads of removed nodes are zeroed, on the weights as they are.

    Args:
        inputs: positional inputs `(batch, ...)`; more than one sample.
    """
    reference = outputs_of(model, inputs, zeroed_reads(model, structure, kept))
    return Equivalence.of("dense with zeroed reads = small", reference, outputs_of(small, inputs), TORCH_TOLERANCE)


def prove_randomised(
    model: nn.Module, structure: Structure, kept: Kept, inputs: tuple[Tensor, ...], seed: int = 0
) -> Equivalence:
    """The same proof with random weights and norms. Inconclusive where the output hardly varies even so."""
    random = randomised(model, seed, structure, kept)
    small = shrink(random, structure, kept)
    zero_reads(random, structure, kept)
    what = "dense with zeroed reads = small, randomised weights"
    return Equivalence.of(what, outputs_of(random, inputs), outputs_of(small, inputs), TORCH_TOLERANCE)


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
    elif name == "running_var" or (isinstance(module, _NormBase) and name == "weight"):
        noise = 0.5 + noise.abs()
    else:
        noise *= 0.1
    return noise.to(tensor)


def prove_else_freeze(model: nn.Module, structure: Structure, inputs: tuple[Tensor, ...]) -> Structure:
    """The structure with every group frozen whose removal does not give the same network.

    Half of every group is removed at random, with random weights. If that fails, the groups are halved until those at fault
    are found, each with what went wrong.
    """
    generator = torch.Generator().manual_seed(0)
    halves = {g.name: _random_half(g, generator) for g in structure.prunable}

    def failure(groups: tuple[Group, ...]) -> str | None:
        kept = structure.keep_all() | {g.name: halves[g.name] for g in groups}
        try:
            proof = prove_randomised(model, structure, kept, inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:  # the network's own code
            return f"the smaller network does not run: {first_line(error)}"
        return None if proof else f"removal changes the result (by {proof.needed_tolerance:.1e} of its range)"

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
    return structure.freeze(frozen)


def _random_half(group: Group, generator: torch.Generator) -> Tensor:
    return torch.randperm(group.width, generator=generator)[: max(1, group.width // 2)].sort().values
