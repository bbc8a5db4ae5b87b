"""Proof of a surgery: the smaller network equals the dense one with the removed nodes' readers zeroed.

A fresh network hides mistakes (its batch norms are the identity, some heads are zero), so every surgery is proven twice: on the
weights as they are, and on a copy with randomised weights and norms, whose output must depend on the input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.model.branches import in_branches
from compressor.model.inputs import Inputs, each, run
from compressor.model.observe import observed, outputs_of
from compressor.model.weights import masked
from compressor.proof.equivalence import NARROW, TORCH_TOLERANCE, Equivalence
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

    scales = scaling(network.model, network.inputs)

    def drawn() -> GroupedNetwork:
        return network.with_weights(randomised(network.model, seed, network.structure, kept, scales))

    return _rounding_aside(compared(drawn()), lambda: compared(_in_double_whole(drawn())))


def _rounding_aside(proof: Equivalence, in_double: Callable[[], Equivalence]) -> Equivalence:
    """A proof that failed by a little is tried once more in float64, which tells a wrong network from rounding."""
    if proof or not proof.needed_tolerance < NEARLY:
        return proof
    try:
        again = in_double()
    except (RuntimeError, ValueError, TypeError):  # the network's own code insists on float32
        return replace(proof, tolerance=max(proof.tolerance, SINGLE))
    return replace(again, what=f"{again.what}, in float64") if again else proof


SINGLE = 1e-4
"""Tolerance where nothing but float32 can be had: rounding cannot be told apart further."""

NEARLY = 1.0 / NARROW
"""A difference, as a fraction of a channel's range, that rounding in float32 makes in deep networks with random weights."""


def _in_double_whole(network: GroupedNetwork) -> GroupedNetwork:
    return network.with_weights(_in_double(network.model)).on(each(network.inputs, _doubled))


def _in_double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def _doubled(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def randomised(
    model: nn.Module, seed: int = 0, structure: Structure | None = None, kept: Kept | None = None, scales: Collection[str] = (),
) -> nn.Module:  # fmt: skip
    """A copy in eval mode with random weights that keep signals at a healthy scale, and batch norms that are not the identity.

    Args:
        scales: names of parameters that multiply, whatever they are called: as `scaling` finds.
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
                whole = f"{prefix}.{name}" if prefix else name
                value = _random_like(module, name, tensor, generator, stays.get(whole, 1.0), whole in scales)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    return copy.deepcopy(model, memo).eval()


MULTIPLY = frozenset(
    "mul mul_ multiply div div_ divide true_divide __mul__ __rmul__ __imul__ __truediv__ __itruediv__".split()  # noqa: SIM905
)


def scaling(model: nn.Module, inputs: Inputs) -> frozenset[str]:
    """Names of the parameters of one dimension or none that something is multiplied or divided by: near 0 they silence it."""
    named = ((name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.dim() < 2)
    unsure = {name for name, _ in named if name.rpartition(".")[2] not in ("weight", "bias", "gamma", "beta")}
    if not unsure:
        return frozenset()
    seen: set[int] = set()
    with observed(model) as twin, torch.no_grad(), _Multiplied(seen):
        try:
            run(twin, inputs)
        except Exception:  # noqa: BLE001 - some code looks at the type of what it is given; names must do then
            return frozenset()
        named = ((name, p) for name, p in twin.named_parameters(remove_duplicate=False) if name in unsure)
        return frozenset(name for name, p in named if p.untyped_storage().data_ptr() in seen)


class _Multiplied(TorchFunctionMode):
    """Notes where what is multiplied or divided lies; a view of a parameter lies where it does."""

    def __init__(self, seen: set[int]) -> None:
        self.seen = seen

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") in MULTIPLY:
            self.seen.update(x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor))
        return function(*args, **(kwargs or {}))


def _random_like(
    module: nn.Module, name: str, tensor: Tensor, generator: torch.Generator, stays: float, scales: bool
) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if scales:
        noise = 0.5 + noise.abs()
    elif tensor.dim() > 1:
        noise *= math.sqrt(2 / max(1.0, stays * tensor[0].numel()))
    elif "var" in name or (name in ("weight", "gamma") and not isinstance(module, nn.PReLU)):  # of a norm of any kind
        noise = 0.5 + noise.abs()
    else:
        noise *= 0.1
    return noise.to(tensor)
