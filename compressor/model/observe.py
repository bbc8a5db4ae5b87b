"""Looking at a network without leaving a trace."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressor.model.inputs import Inputs, arguments


@contextmanager
def observed(model: nn.Module) -> Iterator[nn.Module]:
    """A twin of `model` in eval mode: it shares the parameters' memory, frozen, and has buffers and flags of its own.

    Whatever is done to the twin (hooks, buffers that a network writes to in eval mode, another device), the network itself
    never notices. The CPU's random state is put back afterwards.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    with torch.random.fork_rng(devices=[]):
        yield copy.deepcopy(model, memo).eval()


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        yield model.eval()


@contextmanager
def _in_full() -> Iterator[None]:
    """Products in full float32: the 10 bits of TF32 on a GPU would drown a proof."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, those that a checkpoint leaves out too; the network's own tensors, not copies."""
    return {**dict(model.named_buffers()), **model.state_dict()}


def put_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give, in place, a network of the same shapes what `values_of` held; buffers may have grown since."""
    there = model.state_dict()
    model.load_state_dict({name: values[name] for name in there})
    for name, buffer in dict(model.named_buffers()).items():
        if name not in there and name in values:
            owner, _, attribute = name.rpartition(".")
            model.get_submodule(owner)._buffers[attribute] = values[name].to(buffer.device, copy=True)


def outputs_of(
    model: nn.Module,
    inputs: Inputs,
    parameters: dict[str, Tensor] | None = None,
    within: Callable[[nn.Module], AbstractContextManager[Any]] = lambda _: nullcontext(),
    *,
    inplace: bool = False,
) -> list[Tensor]:
    """All output tensors of one forward pass in eval mode.

    Args:
        parameters: in place of the network's own.
        within: of the network that runs, the context that it runs in.
        inplace: run `model` itself, which nobody needs as it was, rather than a twin.
    """
    with _in_eval(model) if inplace else observed(model) as twin, torch.no_grad(), _in_full(), within(twin):
        outputs = functional_call(twin, parameters or {}, *arguments(inputs))
    return list(tensors_in(outputs))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a network's outputs, in order: a tensor, a tuple, a dict or a dataclass of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
