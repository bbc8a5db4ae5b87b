"""What goes into a network with each batch, labels aside: what repairs and curves of sensitivity look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import own_randomness
from compressor.errors import BadInput, CompressError
from compressor.model.inputs import Inputs, each
from compressor.model.observe import observed
from compressor.objective.batches import Batch, call, suited_batch
from compressor.objective.objective import Objective
from compressor.options import spelled
from compressor.surgery.network import GroupedNetwork


def without_data(objective: Objective) -> bool:
    return isinstance(objective.data, tuple) and not objective.data


def unlabelled(dense: GroupedNetwork, objective: Objective, most: int) -> Iterator[Inputs]:
    """What goes into the network with each batch; noise like the example's values where there are no data."""
    if without_data(objective):
        generator = torch.Generator().manual_seed(objective.seed)
        yield each(dense.inputs, lambda x: _noise(x, most, generator))
        return
    with observed(dense.model) as twin:
        for batch in objective.batches():
            yield _given(twin, suited_batch(twin, batch), objective)


def tells_inputs(
    model: nn.Module, data: Iterable[Batch] | None, forward: Callable[[nn.Module, Batch], Any], device: str
) -> bool:
    """Whether what goes into a network can be told from a batch, so that repairs and curves of sensitivity can be had."""
    if data is None:
        return False
    if iter(data) is data:  # it can be read once only
        return forward is call
    objective = Objective(data, forward=forward, device=device)
    with own_randomness(data), observed(model) as twin, suppress(CompressError):
        return bool(_given(twin, suited_batch(twin, next(objective.batches())), objective))
    return False


class _Seen(Exception):
    """A network was called, and with what."""


def _given(model: nn.Module, batch: Batch, objective: Objective) -> Inputs:
    """What the objective's forward pass calls a network with.

    Raises:
        BadInput: something else than tensors.
    """

    def seen(_: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        raise _Seen(args, options)

    handle = model.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        objective.forward(model, batch)
    except _Seen as call:
        args, options = call.args
    else:
        raise BadInput(
            f"the forward pass does not call the network itself: nothing can be refitted; {spelled('repair', 'none')}"
        )
    finally:
        handle.remove()
    found: Inputs = dict(options) if options and not args else args
    values = list(found.values()) if isinstance(found, Mapping) else list(found)
    if (args and options) or not all(isinstance(x, Tensor) and x.dim() for x in values) or len({len(x) for x in values}) > 1:
        raise BadInput(f"a repair needs a network that takes tensors, all by place or all by name; {spelled('repair', 'none')}")
    return found


def _noise(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Values like those of an example: normal with its mean and deviation, or whole numbers that it has."""
    shape = (count, *x.shape[1:])
    if x.is_floating_point():
        return (torch.randn(shape, generator=generator) * float(x.std() if x.numel() > 1 else 1) + float(x.mean())).to(x)
    places = torch.randint(x.numel(), shape, generator=generator)
    return x.flatten()[places.to(x.device)]
