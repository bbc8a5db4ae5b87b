"""What a network is called with: tensors by position or by name, all with the samples along their first dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import BadInput

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]
"""Positional inputs, or keyword arguments of the network's `forward`; each `(batch, ...)`."""

FEW = 16
"""Samples of an example that proofs run on."""


def as_inputs(value: Any) -> Inputs:
    """One tensor, several in a list or tuple, or a mapping of them, as `Inputs`.

    Raises:
        BadInput: something in it is not a tensor with a batch dimension, or the batch sizes differ.
    """
    found: Inputs = value if isinstance(value, Mapping) else tuple(value) if isinstance(value, (tuple, list)) else (value,)
    parts = tensors(found)
    if not parts or not all(isinstance(x, Tensor) and x.dim() for x in parts):
        raise BadInput(
            "inputs are a tensor (batch, ...), several of them, or a dict of them; give example_inputs= and forward="
        )
    if len({len(x) for x in parts}) > 1:
        raise BadInput(f"inputs of different batch sizes: {', '.join(str(tuple(x.shape)) for x in parts)}")
    return found


def tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors, in order."""
    return list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)


def arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments of the call."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call a network."""
    positional, named = arguments(inputs)
    return model(*positional, **named)


def each(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same inputs with every tensor changed."""
    if isinstance(inputs, Mapping):
        return {name: change(x) for name, x in inputs.items()}
    return tuple(change(x) for x in inputs)


def samples(inputs: Inputs) -> int:
    """Number of samples."""
    return len(tensors(inputs)[0])


def suited(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs on the network's device, floating-point ones in its precision."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    precision = precision_of(model)
    return each(inputs, lambda x: x.to(device, precision) if x.is_floating_point() else x.to(device))


def precision_of(model: nn.Module) -> torch.dtype:
    """The data type of a network's first floating-point parameter; float32 for a network without any."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def several(inputs: Inputs) -> Inputs:
    """Between 2 and 16 samples: the first ones; of a single one, noisy copies beside it."""
    if samples(inputs) > 1:
        return each(inputs, lambda x: x[:FEW])
    generator = torch.Generator().manual_seed(0)

    def copies(x: Tensor) -> Tensor:
        repeated = x.repeat(FEW, *(1 for _ in x.shape[1:]))
        if x.is_floating_point():
            noise = torch.randn(repeated.shape, generator=generator).to(repeated)
            repeated[1:] += (noise * (x.std() if x.numel() > 1 else 1))[1:]
        return repeated

    return each(inputs, copies)


def far_apart(x: Tensor) -> Tensor:
    """Samples that differ by an offset of each channel: noise alone averages out where a network pools over many positions."""
    if not x.is_floating_point() or x.dim() < 3:
        return x
    generator = torch.Generator().manual_seed(len(x))
    offsets = torch.randn(x.shape[:2], generator=generator).to(x)
    return x + 2 * float(x.std()) * offsets.reshape(*x.shape[:2], *(1 for _ in x.shape[2:]))


def unlike(inputs: Inputs) -> list[Inputs]:
    """The inputs, and others unlike them: these find out what is silent or constant on some samples only."""
    apart = each(inputs, far_apart)
    return [inputs, scaled(inputs, 10), scaled(inputs, -10), apart, scaled(apart, 10)]


def scaled(inputs: Inputs, factor: int) -> Inputs:
    """The inputs, real numbers multiplied."""
    return each(inputs, lambda x: factor * x if x.is_floating_point() else x)
