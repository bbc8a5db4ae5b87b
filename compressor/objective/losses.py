"""The losses that have a name, and those of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import BadInput, WrongUsage
from compressor.model.observe import tensors_in
from compressor.objective.batches import Batch
from compressor.options import spelled
from compressor.system.user_code import object_named

Loss = Callable[[Any, Batch], Tensor]
"""(outputs of the network, batch) -> mean loss of the batch, a scalar."""


IGNORED = -100
"""torch's label for pixels that do not count."""


def cross_entropy(outputs: Any, batch: Batch) -> Tensor:
    """The paper's loss: cross-entropy of logits `(batch, classes, ...)`, averaged over the batch (and its pixels)."""
    logits, target = _only(outputs), batch[1]
    _check_labels(logits, target)
    return F.cross_entropy(logits, target)


def nll_logits(outputs: Any, batch: Batch) -> Tensor:
    """What the SNIP-it authors' code computes: minus the mean logit of the true class, without log-softmax."""
    logits, target = _only(outputs), batch[1]
    _check_labels(logits, target)
    return F.nll_loss(logits, target)


def bce(outputs: Any, batch: Batch) -> Tensor:
    """Binary cross-entropy of logits, each output a yes or no of its own: multi-label targets `(batch, labels)` in [0, 1]."""
    logits, target = _alike(_only(outputs), batch[1])
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise BadInput("bce needs targets in [0, 1]; for class labels use cross-entropy")
    return F.binary_cross_entropy_with_logits(logits, target)


def mse(outputs: Any, batch: Batch) -> Tensor:
    """Mean squared error, for regression: targets shaped like the outputs."""
    return F.mse_loss(*_alike(_only(outputs), batch[1]))


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "bce": bce, "mse": mse, "nll-logits": nll_logits}


def loss_named(loss: str | Loss) -> Loss:
    """A loss by its name on the command line, `module:function` or `file.py:function`, or the callable itself.

    Raises:
        WrongUsage: no loss has that name.
    """
    if callable(loss):
        return loss
    if ":" in loss:
        own: Loss = object_named(loss, "loss")
        if not callable(own):
            raise WrongUsage(f"{spelled('loss', loss)}: not a function of (outputs, batch)")
        return own
    if loss not in LOSSES:
        raise WrongUsage(f"no loss {loss!r}: choose {', '.join(LOSSES)}, or name a function as file.py:function")
    return LOSSES[loss]


def _only(outputs: Any) -> Tensor:
    found = list(tensors_in(outputs))
    if len(found) != 1:
        raise BadInput(
            f"the network has {len(found)} outputs, this loss takes one; "
            f"give a loss of your own: {spelled('loss', 'file.py:function')} of (outputs, batch)"
        )
    return found[0]


def _check_labels(logits: Tensor, target: Tensor) -> None:
    if target.is_floating_point():
        _check_probabilities(logits, target)
        return
    if target.dim() == 0 or logits.dim() < 2:
        return
    lowest, highest = int(target.min()), int(target.max())
    if highest == IGNORED:
        raise BadInput(f"all labels of a batch are {IGNORED}, which are ignored: it has no loss; leave such samples out")
    if (lowest < 0 and lowest != IGNORED) or highest >= logits.shape[1]:
        way = (
            f"for yes or no take {spelled('loss', 'bce')}"
            if logits.shape[1] == 1 and lowest >= 0 and highest <= 1
            else "correct the data"
        )
        raise BadInput(f"labels run from {lowest} to {highest}, the network has {logits.shape[1]} outputs; {way}")


def _check_probabilities(logits: Tensor, target: Tensor) -> None:
    fit = target.shape == logits.shape and logits.dim() > 1 and bool((target >= 0).all())
    if not fit or not torch.allclose(target.sum(1), torch.ones((), dtype=target.dtype, device=target.device), atol=1e-3):
        raise BadInput(
            f"targets {tuple(target.shape)} are neither class labels nor probabilities of {logits.shape[-1]} classes; "
            f"for regression use {spelled('loss', 'mse')}, for yes or no {spelled('loss', 'bce')}"
        )


def _alike(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, for half precision rounds; the target in the outputs' shape where only sizes of 1 differ."""
    if [n for n in target.shape if n != 1] == [n for n in values.shape if n != 1]:
        target = target.reshape(values.shape)
    if target.shape != values.shape:  # torch would broadcast, and compare every sample with every other
        raise BadInput(f"targets {tuple(target.shape)} do not fit the network's outputs {tuple(values.shape)}; make them alike")
    precision = torch.promote_types(values.dtype, torch.float32)
    return values.to(precision), target.to(precision)
