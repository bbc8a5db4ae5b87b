"""What a criterion differentiates by: single weights, or a gate of 1 on every node.

A criterion that is a formula in weights w, the gradient g = dL/dw and products with the Hessian H works on nodes, too: there
the variable is the gate c = 1 of a node, on every read of it by the layers that use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd

from compressor.errors import BadInput, UnsupportedNetwork, first_line
from compressor.model.observe import observed
from compressor.model.weights import maskable
from compressor.objective.batches import size_of
from compressor.objective.objective import Objective
from compressor.options import spelled
from compressor.settings import Unit
from compressor.types.structure import Slice, Structure

GateArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a layer, as a hook before it may change them."""

Variables = dict[str, Tensor]
"""Weight or group -> the leaf tensor, of the weight's shape or `(width,)`."""


@contextmanager
def variables(model: nn.Module, structure: Structure, unit: Unit) -> Iterator[tuple[nn.Module, Variables]]:
    """A twin of `model` in eval mode, and what to differentiate by.

    Raises:
        UnsupportedNetwork: a node is read by a function rather than a layer, where no gate can sit.
    """
    with observed(model) as twin, torch.enable_grad():
        if unit == "weight":
            yield twin, {name: weight.requires_grad_() for name, weight in maskable(twin).items()}
        else:
            yield twin, _gates(twin, structure)


def _gates(twin: nn.Module, structure: Structure) -> Variables:
    gates: Variables = {}
    for group in structure.prunable:
        device = next(twin.parameters()).device
        gates[group.name] = torch.ones(group.width, device=device, requires_grad=True)
        unread = not any(s.role == "read" for s in group.slices)
        for s in group.slices:
            if s.role == ("produce" if unread else "read"):
                _place(twin, structure, gates[group.name], s)
    return gates


def _place(twin: nn.Module, structure: Structure, gate: Tensor, s: Slice) -> None:
    if s.tensor in structure.functional or s.tensor.rpartition(".")[2].startswith("units_"):
        raise UnsupportedNetwork(
            f"{s.tensor}: a function applies it, so that no gate can sit there; use {spelled('unit', 'weight')}"
        )
    module = twin.get_submodule(s.layer)
    dim = -1 if isinstance(module, nn.Linear) else 1

    def scaled(x: Tensor, index: Tensor) -> Tensor:
        index = index.to(x.device)
        factors = torch.ones(x.shape[dim], device=x.device, dtype=x.dtype)
        factors = factors.index_put((index.flatten(),), gate.to(x.dtype).repeat_interleave(index.shape[1]))
        return x * factors.reshape([-1 if n == dim % x.dim() else 1 for n in range(x.dim())])

    if s.role == "produce":
        module.register_forward_hook(lambda _, args, out: scaled(out, s.index))
        return
    index = input_channels(module, s)

    def gate_input(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> GateArguments:
        if args:
            return (scaled(args[0], index), *args[1:]), options
        return (), {**options, "input": scaled(options["input"], index)}

    module.register_forward_pre_hook(gate_input, with_kwargs=True)


def gradient(twin: nn.Module, by: Variables, objective: Objective) -> tuple[Variables, float, int]:
    """dL/dv of the mean loss over all samples, that loss, and the number of samples.

    Raises:
        BadInput: the loss is not finite, or depends on none of the variables.
    """
    for variable in by.values():
        variable.grad = None
    loss_sum, samples = 0.0, 0
    for batch in objective.batches():
        size, loss = size_of(batch), finite(objective.loss_of(twin, batch))
        if not loss.requires_grad:
            raise BadInput("the loss does not depend on anything that could be removed")
        torch.autograd.backward(loss * size, inputs=list(by.values()))
        loss_sum, samples = loss_sum + loss.item() * size, samples + size
    found = {name: _taken(variable) / samples for name, variable in by.items()}
    return found, loss_sum / samples, samples


def _taken(variable: Tensor) -> Tensor:
    gradient, variable.grad = variable.grad, None
    return torch.zeros_like(variable) if gradient is None else gradient


def hessian_product(twin: nn.Module, by: Variables, objective: Objective, direction: Mapping[str, Tensor]) -> Variables:
    """H v of the mean loss over all samples: the gradient of <dL/dv, direction> (Pearlmutter's trick).

    Raises:
        UnsupportedNetwork: an operator has no second derivative; the message names it.
    """
    sums = {name: torch.zeros_like(variable) for name, variable in by.items()}
    leaves, samples = list(by.values()), 0
    for batch in objective.batches():
        size = size_of(batch)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no second derivative
            loss = finite(objective.loss_of(twin, batch))
            try:
                first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
                curved = {name: g for name, g in zip(by, first, strict=True) if g is not None and g.requires_grad}
                second: tuple[Tensor | None, ...] = (None,) * len(leaves)
                if curved:  # else the loss is linear in the variables
                    directions = [direction[name] for name in curved]
                    second = torch.autograd.grad([*curved.values()], leaves, directions, allow_unused=True)
            except RuntimeError as error:
                raise UnsupportedNetwork(
                    f"no second derivative: {first_line(error)}; use a criterion of first order"
                ) from error
        for total, part in zip(sums.values(), second, strict=True):
            if part is not None:
                total.add_(part, alpha=size)
        samples += size
    return {name: total / samples for name, total in sums.items()}


def finite(loss: Tensor) -> Tensor:
    if not bool(torch.isfinite(loss)):
        raise BadInput(f"the loss is {loss.item()}: look for NaN or huge values in the weights and the data")
    return loss


def input_channels(module: nn.Module, s: Slice) -> Tensor:
    """The input channels `(width, k)` that a slice of the module's weight reads; each group of a convolution reads its own."""
    assert isinstance(module, (nn.Linear, _ConvNd))
    groups, size = getattr(module, "groups", 1), module.weight.shape[1]
    if getattr(module, "transposed", False):
        return s.index
    return torch.cat([s.index + n * size for n in range(groups)], dim=1)
