"""What the scores are derivatives of: batches of data, a forward pass and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import BadInput, WrongUsage
from compressor.state import observed, tensors_in

Batch = Any
"""What the data yields: `(inputs, target)`, where `inputs` is a tensor `(batch, ...)` or a tuple of them."""

Loss = Callable[[Any, Batch], Tensor]
"""(outputs of the network, batch) -> mean loss of the batch, a scalar."""


def cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    """The paper's loss: cross-entropy of logits `(batch, classes)`, averaged over the batch."""
    return F.cross_entropy(outputs, batch[1])


def nll_logits(outputs: Tensor, batch: Batch) -> Tensor:
    """What the SNIP-it authors' code computes: minus the mean logit of the true class, without log-softmax."""
    return F.nll_loss(outputs, batch[1])


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "nll-logits": nll_logits}


def loss_named(loss: str | Loss) -> Loss:
    """A loss by its name on the command line, or the callable itself.

    Raises:
        WrongUsage: no loss has that name.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise WrongUsage(f"no loss {loss!r}: choose {', '.join(LOSSES)}")
    return LOSSES[loss]


def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
    """The positional inputs in a batch `(inputs, target)`."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def call(model: nn.Module, batch: Batch) -> Any:
    """The default forward pass: the batch's inputs as positional arguments."""
    return model(*inputs_of(batch))


def size_of(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(next(tensors_in(batch)))


@dataclass
class Objective:
    """Batches, forward and loss in one hand.

    Attributes:
        data: anything that yields batches: a re-iterable is read afresh at each event; an iterator is cached at the first.
        loss: mean loss of a batch.
        forward: how a batch goes through the network.
        device: where batches are moved to.
        seed: what a method's own random draws start from.
    """

    data: Iterable[Batch]
    loss: Loss = cross_entropy
    forward: Callable[[nn.Module, Batch], Any] = call
    device: str = "cpu"
    seed: int = 0
    _cache: list[Batch] | None = field(default=None, init=False)

    def batches(self) -> Iterator[Batch]:
        """The batches of one event, on the device.

        Raises:
            BadInput: there are none.
        """
        if self._cache is None and isinstance(self.data, Iterator):
            self._cache = list(self.data)
        empty = True
        for batch in self._cache if self._cache is not None else self.data:
            empty = False
            yield to_device(batch, self.device)
        if empty:
            raise BadInput("the data yields no batch; give at least one sample")

    def loss_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of one batch, a scalar with its graph.

        Raises:
            BadInput: the loss does not fit the outputs and targets.
        """
        outputs = self.forward(model, batch)
        try:
            loss = self.loss(outputs, batch)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(outputs))
            raise BadInput(f"the loss does not fit the network's outputs {shapes}: {error}") from error
        if loss.dim() != 0:
            raise BadInput(f"the loss must be one number per batch, not {tuple(loss.shape)}")
        return loss


def to_device(batch: Batch, device: str) -> Batch:
    """The same batch with its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(to_device(part, device) for part in batch)
    return batch


def accuracy(model: nn.Module, batches: Iterable[Batch], device: str = "cpu") -> tuple[float, int]:
    """Share of samples whose arg-max is the target, and the number of samples. In eval mode."""
    right = total = 0
    with observed(model) as twin, torch.no_grad():
        for batch in batches:
            x, y = to_device(batch, device)
            right += int((twin(x).argmax(1) == y).sum())
            total += len(y)
    return right / total, total
