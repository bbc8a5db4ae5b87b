"""Looking at a network without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressor.types import Origin


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode with frozen parameters; afterwards the network is exactly as it was.

    Restored: train/eval flags, `requires_grad`, buffers (some networks write to them even in eval mode) and the CPU's random
    state. Gradients and parameters are not touched by the body, because nothing requires a gradient.
    """
    flags = {module: module.training for module in model.modules()}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            model.eval()
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, training in flags.items():
                module.training = training
            for parameter, requires_grad in trained.items():
                parameter.requires_grad_(requires_grad)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def origin_of(model: nn.Module) -> Origin | None:
    """Where a network comes from; None for one that is not ours."""
    origin = getattr(model, "origin", None)
    return origin if isinstance(origin, Origin) else None


def set_origin(model: nn.Module, origin: Origin) -> None:
    """Note, in place, where a network comes from; copies of it carry the note along."""
    model.__dict__["origin"] = origin


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...], parameters: dict[str, Tensor] | None = None) -> list[Tensor]:
    """All output tensors of one forward pass in eval mode; `parameters` replace the network's own where given."""
    with left_as_found(model), torch.no_grad():
        outputs = functional_call(model, parameters, inputs) if parameters else model(*inputs)
    return list(tensors_in(outputs))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a network's outputs, in order: a tensor, a tuple, a dict or a dataclass of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
