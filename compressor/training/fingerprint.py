"""What tells whether data and a loss are the ones that a run began with."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import Columns, length_of, own_randomness, seed_all
from compressor.model.observe import tensors_in
from compressor.objective.batches import Batch
from compressor.objective.losses import Loss


def fingerprint_of(tensors: Iterable[Tensor]) -> str:
    """A hash of tensors' values."""
    digest = hashlib.blake2b(digest_size=12)
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def fingerprint_of_data(data: Columns | Iterable[Batch], seed: int) -> str:
    """A hash of the data; of what is not in memory, of the first batch, if that is the same at each look, and their number."""
    if isinstance(data, Columns):
        return fingerprint_of((data.inputs, data.targets))

    def first() -> str:
        seed_all(data, seed)  # loaders shuffle by it
        return fingerprint_of(tensors_in(next(iter(data), None)))

    with own_randomness(data):
        one, again = first(), first()
    number = length_of(data)
    return f"{one if one == again else 'another at each look'}{'' if number is None else f', {number} batches'}"


def loss_text(loss: str | Loss, found: Loss) -> str:
    """A loss by its name; of code of the user's own, with a hash of what it does."""
    if isinstance(loss, str) and ":" not in loss:
        return loss
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return f"{name} {hashlib.sha256(_said(found, []).encode()).hexdigest()[:12]}"


PLAIN = (str, bytes, int, float, complex, type(None), type(...))


def _said(value: Any, within: list[Any]) -> str:
    """What a value is, as text that every process gives alike; what it is made of, if it is code.

    Args:
        within: the values that hold it, which it may hold in turn.
    """
    if isinstance(value, PLAIN):
        return repr(value)
    if any(value is outer for outer in within):
        return "..."
    inner = functools.partial(_said, within=[*within, value])
    if isinstance(value, CodeType):
        return inner((value.co_code, value.co_names, value.co_consts))
    if isinstance(value, FunctionType):
        return inner((value.__code__, value.__defaults__, value.__kwdefaults__, _held_by(value)))
    if isinstance(value, MethodType):
        return inner((value.__func__, value.__self__))
    if isinstance(value, functools.partial):
        return inner((value.func, value.args, value.keywords))
    if isinstance(value, Tensor):
        return fingerprint_of([value])
    if isinstance(value, nn.Module):
        return inner((repr(value), type(value).forward, dict(value.state_dict())))
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{inner(key)}: {inner(held)}' for key, held in value.items()))}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(inner, value))})"
    if callable(value) and isinstance(type(value).__call__, FunctionType):
        return inner((type(value).__qualname__, type(value).__call__, getattr(value, "__dict__", {})))
    return type(value).__qualname__


def _held_by(function: FunctionType) -> list[Any]:
    """What the function took from around it; a name that has no value yet is nothing."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found
