"""Half precision: scored and proven in float32, handed back as it came."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from compressor.model.inputs import Inputs, each, tensors


def working_copy(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The network in the precision to work in: float32, or float64 where the inputs are. Itself where it already is.

    Where reading a weight in train mode changes it, as spectral norm does, a copy in eval mode.
    """
    wide = any(x.dtype == torch.float64 for x in tensors(inputs))
    precision = torch.float64 if wide else torch.float32
    floats = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    changes = any(is_parametrized(module) and module.training for module in model.modules())
    if all(t.dtype == precision for t in floats):
        return copy.deepcopy(model).eval() if changes else model
    memo: dict[int, Tensor] = {}
    for t in floats:  # deepcopy takes these instead of copying: the network is never held three times
        value = t.detach().to(precision, copy=True)
        memo[id(t)] = nn.Parameter(value, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else value
    working = copy.deepcopy(model, memo)
    return working.eval() if changes else working


def in_other_precision(working: nn.Module, model: nn.Module) -> bool:
    """Whether a working copy holds its tensors in another data type."""
    came = _types(model)
    return any(t.dtype != came.get(name, t.dtype) for name, t in _tensors(working))


def wide(inputs: Inputs) -> Inputs:
    """Inputs in half precision as float32; all others as they are."""
    return each(inputs, lambda x: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)


def as_it_came(small: nn.Module, model: nn.Module) -> None:
    """Give, in place, every tensor of `small` the data type that the tensor of that name has in `model`."""
    came = _types(model)
    for name, t in _tensors(small):
        if name in came and t.dtype != came[name]:
            t.data = t.data.to(came[name])


def bytes_as_it_came(small: nn.Module, model: nn.Module) -> int:
    """Bytes of the tensors of `small` in the data types that those of that name have in `model`."""
    came = _types(model)
    return sum(t.numel() * came.get(name, t.dtype).itemsize for name, t in _tensors(small))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by their first names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _types(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: t.dtype for name, t in _tensors(model)}
