"""What the data yields: batches, taken apart and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import BadInput
from compressor.model.inputs import Inputs, as_inputs, run, suited, tensors
from compressor.model.observe import tensors_in

Batch = Any
"""What the data yields: `(inputs, target)`, where `inputs` is a tensor `(batch, ...)`, a tuple or a dict of them."""


def inputs_of(batch: Batch) -> Inputs:
    """The network's inputs in a batch `(inputs, target)`.

    Raises:
        BadInput: they are not tensors, or the batch is a dict of the user's own form.
    """
    if isinstance(batch, Mapping):
        raise BadInput("batches are (inputs, target); for others give example_inputs= and forward=")
    return as_inputs(batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch)


def call(model: nn.Module, batch: Batch) -> Any:
    """The default forward pass: the batch's inputs, by position or, where they are a dict, by name."""
    return run(model, inputs_of(batch))


def size_of(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(next(tensors_in(batch)))


def check_finite(batch: Any) -> None:
    """Refuse NaN and infinity in a batch, or in inputs.

    Raises:
        BadInput: there are some.
    """
    if not all(bool(torch.isfinite(x).all()) for x in tensors_in(batch) if x.is_floating_point()):
        raise BadInput("the data holds NaN or infinite values; correct or remove those samples")


def to_device(batch: Batch, device: str) -> Batch:
    """The same batch with its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        moved = {name: to_device(part, device) for name, part in batch.items()}
        return batch if all(moved[name] is part for name, part in batch.items()) else moved
    if isinstance(batch, (tuple, list)):
        return rebuilt(batch, (to_device(part, device) for part in batch))
    return batch


def rebuilt(batch: Any, parts: Iterable[Any]) -> tuple[Any, ...]:
    """A tuple of other parts; where the batch's have names, theirs have them, too."""
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def suited_batch(model: nn.Module, batch: Batch) -> Batch:
    """The batch, of the same form, with its inputs in the network's precision; another form than ours is left to `forward`."""
    try:
        inputs = suited(model, inputs_of(batch))
    except BadInput:
        return batch
    pair = isinstance(batch, (tuple, list))
    single = isinstance(batch[0] if pair else batch, Tensor)
    given = tensors(inputs)[0] if single else inputs
    return rebuilt(batch, (given, *batch[1:])) if pair else given
